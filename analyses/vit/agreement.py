"""Do ways of measuring a head's importance agree? Spearman's rank correlation, with intervals over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from attlas.analyses.vit.importance import HeadImportance
from attlas.data.stats import bootstrap_spearman


@dataclass(frozen=True)
class Agreement:
    """Rank correlation over heads of two measures, each "ablation:metric"; NaN as interval where images are too few."""

    first: str
    second: str
    spearman: float
    low: float
    high: float
    n_heads: int


def agreement(importance: Sequence[HeadImportance], *, seed: int = 0, n_samples: int = 1000) -> list[Agreement]:
    """Every pair of measures; images are resampled for both measures alike, heads are fixed."""
    measures = {f"{e.ablation}:{m}": v.reshape(len(v), -1) for e in importance for m, v in e.per_image.items()}
    if not measures:
        return []
    return [
        Agreement(first, second, *found, measures[first].shape[1])
        for first, second in combinations(measures, 2)
        for found in [bootstrap_spearman(measures[first], measures[second], seed=seed, n_samples=n_samples)]
    ]
