"""How a long computation says how far it is, without printing: one protocol, `Track`, for all who loop and all who show.

Functions that loop for seconds or more take `track=no_track` and write `for batch in track(batches, "entropy")`; where
there is more to say, such as a loss, `track.news("EV 0.91")`. The command line passes what draws bars or writes lines,
the dashboard its job, a notebook a curve; tests pass nothing. Trainings, which take minutes, draw a bar by themselves
where a person watches (`terminal_track`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import length_hint
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")


@runtime_checkable
class Track(Protocol):
    """Shows how far loops are. Calls nest: what is begun inside a loop is a part of its item."""

    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Go through an iterable, showing what is being done; the total where the iterable has no length."""
        ...

    def news(self, text: str, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """How the innermost loop is doing: a few words, and the rows of a table behind them, such as a curve's."""
        ...


class Silent:
    """Passes everything through and shows nothing."""

    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        yield from iterable

    def news(self, text: str, rows: Sequence[Mapping[str, Any]] = ()) -> None: ...


no_track = Silent()


def item_count(iterable: Iterable[Any], total: int | None = None) -> int | None:
    """How many items a loop has: the total where one is given, else what the iterable tells; None where neither does.

    Example:
        >>> from attlas.data.progress import item_count
        >>> item_count("abc"), item_count((x for x in "abc")), item_count((x for x in "abc"), 3)
        (3, None, 3)
    """
    if total is not None:
        return total
    found = length_hint(iterable, -1)
    return None if found < 0 else found


def terminal_track(wanted: bool = True) -> Track:
    """Bars on stderr where that is a terminal; silence elsewhere (a log, a pipe, a notebook), or where none is wanted."""
    return TerminalBars() if wanted and sys.stderr is not None and sys.stderr.isatty() else no_track


class TerminalBars:
    """Bars that rich draws on stderr."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: list[TaskID] = []

    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        from rich.console import Console
        from rich.progress import Progress, TextColumn

        if self._bars is None:
            columns = (*Progress.get_default_columns(), TextColumn("[dim]{task.fields[news]}"))
            self._bars = Progress(*columns, console=Console(stderr=True))
            self._bars.start()
        bars = self._bars
        self._tasks.append(bars.add_task(description, total=item_count(iterable, total), news=""))
        try:
            for item in iterable:
                yield item
                bars.advance(self._tasks[-1])
        finally:
            self._tasks.pop()
            if not self._tasks:
                bars.stop()
                self._bars = None

    def news(self, text: str, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        if self._bars is not None:
            self._bars.update(self._tasks[-1], news=text)
