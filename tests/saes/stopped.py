"""A training that is interrupted after so many steps, from inside its loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from attlas.data.progress import Silent

T = TypeVar("T")


class StopError(Exception):
    """Raised in the middle of a training."""


class StopAfter(Silent):
    """A track whose training raises StopError when so many steps are done."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        for done, item in enumerate(iterable):
            if description == "training" and done == self.steps:
                raise StopError
            yield item
