"""How a long computation reports its progress without printing.

Functions that loop for seconds or more take `track=no_track` and write `for batch in track(batches, "entropy")`.
The command line passes a function that draws a bar on stderr; tests and notebooks pass nothing. Trainings, which take
minutes, draw one by themselves where a person watches (`terminal_track`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Called with an iterable, what is being done, and the total where `len()` does not tell it."""

    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]: ...


def no_track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Pass everything through, silently."""
    yield from iterable


def terminal_track(wanted: bool = True) -> Track:
    """A bar on stderr where that is a terminal; silence elsewhere (a log, a pipe, a notebook), or where none is wanted."""
    return _bar if wanted and sys.stderr is not None and sys.stderr.isatty() else no_track


def _bar(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import track

    yield from track(iterable, description, total, console=Console(stderr=True))
