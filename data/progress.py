"""How a long computation reports its progress without printing.

Functions that loop for seconds or more take `track=no_track` and write `for batch in track(batches, "entropy")`.
The command line passes a function that draws a bar on stderr; tests and notebooks pass nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Called with an iterable, what is being done, and the total where `len()` does not tell it."""

    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]: ...


def no_track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Pass everything through, silently."""
    yield from iterable
