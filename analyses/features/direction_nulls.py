"""Nulls of what decoder rows say alone: how peaked their logit effects are, and how like another one they point *(ours)*.

A random direction promotes some token most and has a nearest neighbour too, and how strongly depends on the heads it
writes through. So each number stands beside that of directions with the same norm in every head's slice, each slice turned
at random (of hooks without heads: of the same norm):

- logit_z: the largest logit effect, in standard deviations of the direction's effects over the vocabulary from their mean;
- neighbour_cosine: the largest cosine with another row; the null's is within whole random dictionaries.

p and q are as in `feature_null`: groups of features alike in head norms share a null; Benjamini and Hochberg over features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.features.logits import top_effect_z
from attlas.analyses.features.null import NullConfig, Profiles, benjamini_hochberg, null_directions, pooled_p, profiles
from attlas.analyses.features.relations import neighbours
from attlas.interp import HookedModel

# Random dictionaries that nearest neighbours are sought in.
N_DICTIONARIES = 5
DIRECTION_SCORES = ("logit_z", "neighbour_cosine")


@dataclass(frozen=True)
class DirectionNull:
    """One number of every feature beside its null; NaN for features left out.

    Attributes:
        score: float64 [F].
        null: [F] 95th percentile of its null.
        p, q: [F] one-sided, and after Benjamini and Hochberg.
    """

    score: np.ndarray
    null: np.ndarray
    p: np.ndarray
    q: np.ndarray

    def share_beyond(self, level: float = 0.05) -> float | None:
        """Share of the features that have a score whose q is at most `level`; None without any."""
        known = np.isfinite(self.q)
        return float((self.q[known] <= level).mean()) if known.any() else None


def beside(score: np.ndarray, null: np.ndarray, of: np.ndarray) -> DirectionNull:
    """A score [F] beside the null [C, R] of each feature's group `of` (int64 [F], −1 for none)."""
    known = of >= 0
    if not known.any():
        nothing = np.full(len(of), np.nan)
        return DirectionNull(nothing, nothing, nothing, nothing)
    bar = np.where(known, np.nanquantile(null, 0.95, axis=1)[np.maximum(of, 0)], np.nan)
    p = pooled_p(score, null, of)
    return DirectionNull(np.where(known, score, np.nan), bar, p, benjamini_hochberg(p))


@torch.no_grad()
def direction_nulls(
    model: HookedModel, W_dec: Tensor, hook: str, usable: np.ndarray, config: NullConfig
) -> dict[str, DirectionNull]:
    """`DIRECTION_SCORES` of every decoder row beside their nulls; logit_z only of models with an unembedding.

    Args:
        W_dec: [F, D].
        hook: where the autoencoder sits.
        usable: bool [F], features that count (those ever active).
    """
    rows = W_dec.detach().float().cpu()
    H = model.cfg.n_heads if hook.endswith("hook_z") else 1
    norms = rows.unflatten(-1, (H, -1)).norm(dim=-1)
    d_slice = rows.shape[1] // H
    groups = profiles(norms, np.ones(len(rows), dtype=np.int64), usable & (norms.sum(1) > 0).numpy(), config)
    found = {"neighbour_cosine": _neighbours(rows, norms, d_slice, groups, config.seed)}
    if model.structure.unembed is not None:
        drawn = null_directions(norms[torch.from_numpy(groups.members)], d_slice, [config.seed, 1]).flatten(0, 1)
        null = top_effect_z(model, drawn.to(W_dec.device, W_dec.dtype), hook).reshape(groups.members.shape)
        found["logit_z"] = beside(top_effect_z(model, W_dec, hook), null, groups.of)
    return found


def _neighbours(rows: Tensor, norms: Tensor, d_slice: int, groups: Profiles, seed: int) -> DirectionNull:
    if len(rows) < 2:
        nothing = np.full(len(rows), np.nan)
        return DirectionNull(nothing, nothing, nothing, nothing)
    mine = neighbours(rows, 1)[0][:, 0].double().numpy()
    drawn = np.stack(
        [
            neighbours(null_directions(norms, d_slice, [seed, 2, i]), 1)[0][:, 0].double().numpy()
            for i in range(N_DICTIONARIES)
        ]
    )  # [dictionary, F]
    C = len(groups.members)
    by_group = [drawn[:, groups.of == c].ravel() for c in range(C)]
    null = np.full((C, max(map(len, by_group), default=0)), np.nan)
    for row, values in zip(null, by_group, strict=True):
        row[: len(values)] = values
    return beside(mine, null, groups.of)
