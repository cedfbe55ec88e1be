"""What the circuit page asks about: a model, a prompt and its autoencoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setup:
    """What a pass depends on.

    Attributes:
        model: its name.
        text: the prompt.
        saes: run ids of autoencoders, at most one a layer.
        right, wrong: token ids of the logit difference; None takes the likeliest and the second.
    """

    model: str
    text: str
    saes: tuple[str, ...]
    right: int | None = None
    wrong: int | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.model, self.text, self.saes)
