"""Which family a feature of an attention layer belongs to, from where its direct feature attribution comes.

After the definitions of Kissane et al. 2024 (arXiv 2406.17759); scores and thresholds are ours. All are shares of the
positive attribution over source positions (BOS left out), averaged over a feature's top examples:

- induction: on the token after an earlier occurrence of the current token;
- local: on the last 8 positions, the current one among them;
- long_range: on positions 32 or more back.

The label is the family with the largest ratio of score to threshold, when that is 1 or more, else "unassigned".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

THRESHOLDS = {"induction": 0.3, "local": 0.6, "long_range": 0.4}
LOCAL_WINDOW = 8
LONG_DISTANCE = 32
MIN_EXAMPLES = 3


@dataclass(frozen=True)
class FamilyScore:
    """Scores in 0 … 1, NaN without enough examples, and the label."""

    induction: float
    local: float
    long_range: float
    label: str


def example_shares(by_source: np.ndarray, tokens: np.ndarray, position: int) -> tuple[float, float, float] | None:
    """(induction, local, long_range) shares of one example, or None when nothing is positive.

    Args:
        by_source: [T] attribution by source position.
        tokens: int [T] of the sequence.
        position: destination.
    """
    positive = np.clip(by_source[: position + 1], 0, None).astype(np.float64)
    positive[0] = 0
    total = positive.sum()
    if total <= 0:
        return None
    sources = np.arange(position + 1)
    after_copy = np.zeros(position + 1, dtype=bool)
    after_copy[1:] = tokens[:position] == tokens[position]
    return (
        float(positive[after_copy].sum() / total),
        float(positive[sources > position - LOCAL_WINDOW].sum() / total),
        float(positive[sources <= position - LONG_DISTANCE].sum() / total),
    )


def family(shares: list[tuple[float, float, float]]) -> FamilyScore:
    """Scores and label from the shares of a feature's examples."""
    if len(shares) < MIN_EXAMPLES:
        return FamilyScore(float("nan"), float("nan"), float("nan"), "unassigned")
    scores = dict(zip(THRESHOLDS, np.mean(shares, axis=0).tolist(), strict=True))
    best = max(THRESHOLDS, key=lambda name: scores[name] / THRESHOLDS[name])
    label = best if scores[best] >= THRESHOLDS[best] else "unassigned"
    return FamilyScore(scores["induction"], scores["local"], scores["long_range"], label.replace("_", "-"))
