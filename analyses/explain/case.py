"""What is asked about one feature or head: excerpts to label from, and held-out ones to judge the label by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from attlas.analyses.explain.config import LEAST_SHOWN, LEAST_TESTED

TESTS = ("detection", "fuzzing")


@dataclass(frozen=True)
class Excerpt:
    """A held-out text, and whether "yes" is the right answer."""

    text: str
    truth: bool


@dataclass(frozen=True)
class Case:
    """A feature or a head.

    Attributes:
        subject: as notes name it, such as "feature/SAE-RUN/746" or "head/gpt2-mini/3.0".
        shown: excerpts with marks, to label from.
        detection, fuzzing: held-out excerpts, as many right as wrong ones.
        feature, layer, head: which one; None where that says nothing.
    """

    subject: str
    shown: tuple[str, ...]
    detection: tuple[Excerpt, ...]
    fuzzing: tuple[Excerpt, ...]
    feature: int | None = None
    layer: int | None = None
    head: int | None = None

    @property
    def is_head(self) -> bool:
        return self.head is not None

    @property
    def enough(self) -> bool:
        """Whether there are excerpts enough to label and to judge."""
        return len(self.shown) >= LEAST_SHOWN and min(len(self.detection), len(self.fuzzing)) >= LEAST_TESTED

    def excerpts(self, test: str) -> tuple[Excerpt, ...]:
        """Those of "detection" or "fuzzing"."""
        found: tuple[Excerpt, ...] = getattr(self, test)
        return found


def marked(tokens: Sequence[str], at: Collection[int], left: str = "<<", right: str = ">>") -> str:
    """Text of tokens on one line, each of those at these places between the marks."""
    text = "".join(f"{left}{token}{right}" if i in at else token for i, token in enumerate(tokens))
    return " ".join(text.replace("\n", " ⏎ ").split())
