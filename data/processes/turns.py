"""Work on a sequence of items, taken in turn by processes, whose results come together in the order of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from attlas.data.processes.group import Group

Item = TypeVar("Item")
Found = TypeVar("Found")


def in_turn(
    group: Group, items: Sequence[Item], work: Callable[[Item], Found], first: int = 0
) -> Iterator[tuple[Item, Found]]:
    """(item, result) in order on process 0; nothing on the others, which must go through it all the same.

    Every item is worked on as one process would, whole and by itself, so results are those of one process to the bit.

    Args:
        first: items before are done already; alike on all processes.

    Example:
        >>> from attlas.data.processes.group import ALONE
        >>> list(in_turn(ALONE, [1, 2, 3], lambda item: item * item, first=1))
        [(2, 4), (3, 9)]
    """
    for start in range(first, len(items), group.size):
        part = items[start : start + group.size]
        own = [work(part[group.rank])] if group.rank < len(part) else []
        for item, found in zip(part, group.values_to_first(own), strict=False):
            yield item, found[0]
