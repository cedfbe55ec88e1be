"""Balanced accuracy of an explainer's answers, beside that with another's label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attlas.analyses.explain.asking import Asker
from attlas.analyses.explain.case import Case
from attlas.analyses.explain.config import ExplainConfig
from attlas.analyses.explain.prompts import judge_prompt, read_marks
from attlas.data.stats import count_mean

Marks = list[bool | None]


@dataclass(frozen=True)
class Judged:
    """A test of one case: what is right, and what was said with its label and with another's (None: not read)."""

    case: Case
    test: str
    truth: list[bool]
    said: Marks
    control_label: str | None = None
    said_control: Marks | None = None

    def row(self) -> dict[str, Any]:
        """Its row of table explanation_scores; an answer that could not be read counts as no."""
        right = np.array([bool(s) == t for s, t in zip(self.said, self.truth, strict=True)], float)
        accuracy, low, high = (float(v) for v in count_mean(right))  # as many yes as no: balanced
        row: dict[str, Any] = {"test": self.test, "accuracy": accuracy, "low": low, "high": high}
        row |= {"n_excerpts": len(right), "n_unread": sum(s is None for s in self.said)}
        row |= {"control_label": self.control_label, "control_accuracy": None}
        row |= {"gain": None, "gain_low": None, "gain_high": None}
        if self.said_control is not None:
            other = np.array([bool(s) == t for s, t in zip(self.said_control, self.truth, strict=True)], float)
            gain, gain_low, gain_high = (float(v) for v in count_mean(right - other, differences=True))
            row |= {"control_accuracy": float(other.mean())}
            row |= {"gain": gain, "gain_low": gain_low, "gain_high": gain_high}
        return row


def judge(asker: Asker, case: Case, test: str, label: str, config: ExplainConfig, what: str) -> Marks | None:
    """What is said of each held-out excerpt; None where the budget ended before all were asked about."""
    texts = [excerpt.text for excerpt in case.excerpts(test)]
    said: Marks = []
    for start in range(0, len(texts), config.per_prompt):
        part = texts[start : start + config.per_prompt]
        answer = asker.ask(f"{test} of {what}", judge_prompt(case, test, label, part, config))
        if answer is None:
            return None
        read = read_marks(answer, len(part))
        said += read if read is not None else [None] * len(part)
    return said
