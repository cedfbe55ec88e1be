"""Do ways of measuring a head's importance agree? Spearman's rank correlation, with bootstrap intervals *(ours)*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from attlas.analyses.vit_importance import HeadImportance


@dataclass(frozen=True)
class Agreement:
    """Rank correlation over heads of two measures, each "ablation:metric"."""

    first: str
    second: str
    spearman: float
    low: float
    high: float
    n_heads: int


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's ρ over the last axis, ties by mean rank; NaN where one side is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(x, axis=-1) for x in (a, b)]
    ra, rb = (r - r.mean(-1, keepdims=True) for r in ranks)
    scale = np.sqrt((ra**2).sum(-1) * (rb**2).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: np.ndarray = (ra * rb).sum(-1) / scale
    return rho


def agreement(importance: Sequence[HeadImportance], *, seed: int = 0, n_samples: int = 1000) -> list[Agreement]:
    """Every pair of measures; images are resampled for both measures alike, heads are fixed."""
    measures = {f"{e.ablation}:{m}": v.reshape(len(v), -1) for e in importance for m, v in e.per_image.items()}
    if not measures:
        return []
    n = len(next(iter(measures.values())))
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_samples) / n
    resampled = {name: weights @ v for name, v in measures.items()}
    found = []
    for first, second in combinations(measures, 2):
        rho = float(spearman(measures[first].mean(0), measures[second].mean(0)))
        drawn = spearman(resampled[first], resampled[second])
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
        found.append(Agreement(first, second, rho, float(low), float(high), measures[first].shape[1]))
    return found
