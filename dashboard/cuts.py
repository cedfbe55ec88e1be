"""Which tables a page was given only a part of, noted while its data is made, so that the page can say so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_CUT: ContextVar[list[dict[str, Any]] | None] = ContextVar("attlas_cut", default=None)


@contextmanager
def cuts() -> Iterator[list[dict[str, Any]]]:
    """Within, every table that is cut is noted: {table, shown, total}."""
    found: list[dict[str, Any]] = []
    token = _CUT.set(found)
    try:
        yield found
    finally:
        _CUT.reset(token)


def are_noted() -> bool:
    """Whether anybody asks: counting the rows of a cut table takes a query."""
    return _CUT.get() is not None


def note(table: str, shown: int, total: int) -> None:
    """A table of `total` rows of which `shown` were given; nothing when it is whole, or nobody asks."""
    found = _CUT.get()
    if found is not None and total > shown:
        found.append({"table": table, "shown": shown, "total": total})
