"""What the scores of a feature are when only its head shares and its density are kept *(ours)*.

A direction in hook_z inherits the attention of the heads it reads, so attribution at induction, local or distant sources
says little of the feature. The null of a feature: directions with its norm of W_enc in every head's slice, each slice
turned at random, and an offset that makes them active on as many tokens, in the same competition (see
`feature_directions`); scored on the same tokens by the same code.

Features alike in head norms and density (k-means, `n_profiles` groups) share a null: `n_draws` random directions, each
with the norms and density of a member. For a p below 1 / n_draws, null scores are pooled over groups after each is brought
to its group's mean and spread, on a scale of like spread for all shares; where fewer than ten are as high, p comes from a
generalised Pareto tail fitted to the 250 highest (Knijnenburg et al. 2009, doi 10.1093/bioinformatics/btp211), and is never
less than a tenth of what counting can tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.features.directions import (
    MIN_EXAMPLES,
    SCORES,
    Examples,
    Sample,
    Scores,
    encoder_directions,
    feature_examples,
    fire,
    score,
)
from attlas.analyses.features.relations import phrase_shares
from attlas.data.progress import Track, no_track
from attlas.errors import require_counts
from attlas.interp import HookedModel
from attlas.saes.base import SAE

# Weight of log₂ density beside head norms (in units of the median norm) when features are grouped.
_DENSITY_WEIGHT = 0.2
# Features a profile, on average, where there are few.
_LEAST_ALIKE = 16
# The highest null values that a tail is fitted to, and how many there must be in all.
_TAIL, _LEAST_NULL = 250, 2_500


@dataclass(frozen=True)
class NullConfig:
    """How the null is made.

    Attributes:
        n_draws: random directions of each profile.
        n_profiles: groups of features alike in head norms and density, at most (and 16 features a group).
        n_tokens: tokens, the first of the data, that features and null are scored on.
        seed: of the directions and the grouping.
    """

    n_draws: int = 200
    n_profiles: int = 64
    n_tokens: int = 32_768
    seed: int = 0

    def __post_init__(self) -> None:
        require_counts(self, "n_draws", "n_profiles", "n_tokens")


@dataclass(frozen=True)
class Profiles:
    """Groups of features.

    Attributes:
        of: int64 [F] group of each feature, −1 for those active in fewer than `MIN_EXAMPLES` sequences.
        members: int64 [C, R] the feature whose norms and density a draw has.
    """

    of: np.ndarray
    members: np.ndarray


@dataclass(frozen=True)
class NullScores:
    """Scores of features beside those of their nulls.

    Attributes:
        scores: of the F features.
        null: name → float64 [C, R] scores of the random directions.
        profiles: which null is a feature's.
        examples: of the random directions; direction c·R + r.
        directions: float32 [C, R, D].
    """

    scores: Scores
    null: dict[str, np.ndarray]
    profiles: Profiles
    examples: Examples
    directions: Tensor

    def mean(self, name: str) -> np.ndarray:
        """[F] mean score of a feature's null; NaN without one."""
        return self._of(np.nanmean(self.null[name], axis=1))

    def quantile(self, name: str, q: float) -> np.ndarray:
        """[F] quantile of a feature's null."""
        return self._of(np.nanquantile(self.null[name], q, axis=1))

    def _of(self, by_profile: np.ndarray) -> np.ndarray:
        of = self.profiles.of
        if not len(by_profile):  # no feature has enough examples
            return np.full(len(of), np.nan)
        return np.where(of >= 0, by_profile[np.maximum(of, 0)], np.nan)

    def p(self, name: str) -> np.ndarray:
        """[F] one-sided p of a score as high, over nulls brought to mean 0 and spread 1 of their profile on the scale of
        arcsin √score, where profiles differ less in shape: counted, or from the fitted tail. NaN without a score."""
        return pooled_p(_stable(self.scores[name]), _stable(self.null[name]), self.profiles.of)


def pooled_p(score: np.ndarray, null: np.ndarray, of: np.ndarray) -> np.ndarray:
    """[F] one-sided p of a score [F] as high among all nulls [C, R], each brought to mean 0 and spread 1 of its group.

    Args:
        of: int64 [F] group of each, −1 for none; p is NaN there and without a score.
    """
    if not len(null):  # no feature has enough examples
        return np.full(len(of), np.nan)
    mean, spread = np.nanmean(null, axis=1), np.maximum(np.nanstd(null, axis=1), 1e-9)
    pooled = ((null - mean[:, None]) / spread[:, None]).ravel()
    group = np.maximum(of, 0)
    z = np.where(of >= 0, (score - mean[group]) / spread[group], np.nan)
    return tail_p(z, np.sort(pooled[np.isfinite(pooled)]))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q of each p, over those that are not NaN."""
    from scipy.stats import false_discovery_control

    q = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def tail_p(z: np.ndarray, null: np.ndarray) -> np.ndarray:
    """[F] share of the null that is as high as z, NaN where z is.

    Args:
        null: sorted, [n]. With `_LEAST_NULL` values or more, those with fewer than ten above them get p from the tail.
    """
    from scipy.stats import genpareto

    n = len(null)
    above = n - np.searchsorted(null, z - 1e-12)
    p = (1 + above) / (1 + n)
    far = (above < 10) & np.isfinite(z)
    if n >= _LEAST_NULL and far.any():
        threshold = null[-_TAIL - 1]
        shape, _, scale = genpareto.fit(null[-_TAIL:] - threshold, floc=0)
        fitted = _TAIL / n * genpareto.sf(z[far] - threshold, shape, scale=scale)
        p[far] = np.clip(fitted, 0.1 / (1 + n), 10 / n)
    return np.where(np.isfinite(z), p, np.nan)


def _stable(share: np.ndarray) -> np.ndarray:
    """arcsin √share: the spread of a mean share then hangs little on its size."""
    stable: np.ndarray = np.arcsin(np.sqrt(np.clip(share, 0, 1)))
    return stable


def profiles(norms: Tensor, n_active: np.ndarray, usable: np.ndarray, config: NullConfig) -> Profiles:
    """Group features by head norms and density.

    Args:
        norms: float32 [F, H].
        n_active: int64 [F] tokens of the sample.
        usable: bool [F].
    """
    from sklearn.cluster import KMeans

    of = np.full(len(norms), -1, dtype=np.int64)
    chosen = np.flatnonzero(usable)
    if not len(chosen):
        return Profiles(of, np.zeros((0, config.n_draws), dtype=np.int64))
    mine = norms[chosen].numpy()
    typical = max(float(np.median(mine)), 1e-12)
    points = np.concatenate([mine / typical, _DENSITY_WEIGHT * np.log2(n_active[chosen])[:, None]], axis=1)
    n = min(config.n_profiles, max(1, len(chosen) // _LEAST_ALIKE), len(np.unique(points, axis=0)))
    _, label = np.unique(KMeans(n, n_init=1, random_state=config.seed).fit_predict(points), return_inverse=True)
    of[chosen] = label
    generator = np.random.default_rng(config.seed)
    groups = [generator.permutation(chosen[label == c]) for c in range(label.max() + 1)]
    return Profiles(of, np.stack([np.resize(group, config.n_draws) for group in groups]))


def null_directions(norms: Tensor, d_head: int, seed: int | list[int]) -> Tensor:
    """Directions with given norms of their head slices, each slice turned at random: [..., H] → [..., H·d_head]."""
    drawn = np.random.default_rng(seed).standard_normal((*norms.shape, d_head), dtype=np.float32)
    draws = torch.from_numpy(drawn)
    return (norms[..., None] * draws / draws.norm(dim=-1, keepdim=True)).flatten(-2)


def null_examples(found: Sample, groups: Profiles, directions: Tensor, n_top: int, track: Track = no_track) -> Examples:
    """Where random directions [C, R, D] fire: `direction` is c·R + r."""
    C, R = groups.members.shape
    n_active = found.stream.count[torch.from_numpy(groups.members)]
    first, x = torch.arange(C) * R, found.x.flatten(0, 1)
    parts = []
    for r in track(range(R), "null: directions", R):
        pre = (directions[:, r] @ x.T).view(C, *found.bar.shape)
        at = fire(pre, found.bar, n_active[:, r], n_top)
        parts.append(Examples(first[at.direction] + r, at.sequence, at.position, at.activation))
    columns = zip(*((p.direction, p.sequence, p.position, p.activation) for p in parts), strict=True)
    return Examples(*(torch.cat(column) for column in columns))


@torch.no_grad()
def null_scores(
    model: HookedModel,
    sae: SAE,
    found: Sample,
    hook: str,
    config: NullConfig,
    *,
    n_top: int,
    batch_size: int,
    track: Track = no_track,
) -> NullScores:
    """Score every feature and its null on a sample."""
    H, F = model.cfg.n_heads, sae.cfg.d_sae
    own = encoder_directions(sae)
    norms = own.unflatten(-1, (H, -1)).norm(dim=-1)
    mine = feature_examples(found.stream)
    usable = np.bincount(mine.direction.numpy(), minlength=F) >= MIN_EXAMPLES
    groups = profiles(norms, found.stream.count.numpy(), usable, config)
    drawn = null_directions(norms[torch.from_numpy(groups.members)], own.shape[1] // H, config.seed)
    examples = null_examples(found, groups, drawn, n_top, track)
    drawn_rows = drawn.flatten(0, 1)
    scores = score(model, hook, found.tokens, mine, own, batch_size=batch_size)
    null = score(model, hook, found.tokens, examples, drawn_rows, batch_size=batch_size, track=track)
    for found_scores, which, n in ((scores, mine, F), (null, examples, len(drawn_rows))):
        shares = phrase_shares(found.tokens, which.direction, which.sequence, which.position, n)
        found_scores.columns["phrase"] = np.where(np.isnan(found_scores["local"]), np.nan, shares)
    by_profile = {name: null[name].reshape(groups.members.shape) for name in (*SCORES, "source_entropy", "phrase")}
    return NullScores(scores, by_profile, groups, examples, drawn)
