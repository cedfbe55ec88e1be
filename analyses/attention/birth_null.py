"""What a head would score without being an induction, previous-token or duplicate-token head *(ours)*.

Scores of heads that attend to nothing in particular are not 0: a uniform head of 100 keys has 0.01 of each. Two nulls, on the
sequences the score is read from:

- **turned**: the head's queries turned at random in the head's space, all by one rotation a draw. Norms of queries and keys
  stay, what they say to each other is chance; in a model with random weights it is the score's own distribution. With
  rotary positions each pair of coordinates turns by its own angle, which commutes with the positions' rotation; those
  that no position turns (Pythia, GPT-J) turn together.
- **distances**: the same queries' mean weight at the ten nearest distances, where the token is no repeat: a head that looks
  far back, or near, whatever stands there, gives those as much.

Turned: the value that the largest of all heads exceeds in 5 % of draws (Westfall and Young 1993), each head in its own
standard deviations. Distances: their 95th percentile. The null is the larger of the two. Draws read two of the
sequences, which makes them a little wider than the score's own error.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.common.repeats import SCORES, copy_scores, second_copy
from attlas.interp import Attended, HookedModel, ModelConfig, attended

LEVEL = 0.95
# Distances whose weights a score is compared with, and sequences that draws read.
NEAR = 10
N_TURNED = 2


@torch.no_grad()
def null_scores(model: HookedModel, tokens: Tensor, n_draws: int = 50, seed: int = 0) -> dict[str, np.ndarray]:
    """The null of every score [layer, head] of `repeat_scores`; NaN where n_draws is 0."""
    generator = torch.Generator().manual_seed(seed)
    turned, distant = [], []
    for layer in attended(model, tokens):
        few = second_copy(layer, N_TURNED)
        draws = [copy_scores(_turned(few, model.cfg, generator)) for _ in range(n_draws)]
        turned.append(np.stack(draws) if draws else np.zeros((0, len(SCORES), model.cfg.n_heads)))
        distant.append(_at_distances(layer, tokens))
    found = {}
    for i, name in enumerate(SCORES):
        bar = family_wise(np.stack([layer[:, i] for layer in turned], axis=1)) if n_draws else np.nan
        found[name] = np.maximum(bar, np.stack([layer[i] for layer in distant]))
    return found


def family_wise(draws: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Bars [...] that the draws [n, ...] of all heads together stay below in a share `level` of the draws."""
    mean, spread = draws.mean(0), draws.std(0)
    z = (draws - mean) / np.maximum(spread, 1e-12)
    return np.asarray(mean + spread * np.quantile(z.reshape(len(z), -1).max(1), level))


def _turned(layer: Attended, cfg: ModelConfig, generator: torch.Generator) -> Attended:
    """The layer with each head's queries turned by one random rotation that commutes with that of the positions."""
    by_position, still = layer.q[..., : cfg.n_rotating], layer.q[..., cfg.n_rotating :]
    turned = []
    if by_position.shape[-1]:
        turned.append(_turned_pairs(by_position, cfg.rotary_pairs, generator))
    if still.shape[-1]:
        heads, width = still.shape[1], still.shape[3]
        turn, upper = torch.linalg.qr(torch.randn(heads, width, width, dtype=torch.float64, generator=generator))
        turn = turn * upper.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # else not uniform over rotations
        turned.append(still @ turn.to(still))
    return replace(layer, q=torch.cat(turned, dim=-1))


def _turned_pairs(q: Tensor, pairs: str, generator: torch.Generator) -> Tensor:
    """Every pair of coordinates by its own angle."""
    angle = 2 * torch.pi * torch.rand(q.shape[1], 1, q.shape[3] // 2, dtype=torch.float64, generator=generator)
    cos, sin = (f(angle).to(q) for f in (torch.cos, torch.sin))
    a, b = q.chunk(2, dim=-1) if pairs == "half" else (q[..., ::2], q[..., 1::2])
    anew = (a * cos - b * sin, a * sin + b * cos)
    return torch.cat(anew, dim=-1) if pairs == "half" else torch.stack(anew, dim=-1).flatten(-2)


def _at_distances(layer: Attended, tokens: Tensor) -> np.ndarray:
    """95th percentile [score, head] of the second copy's mean weights at the distances nearest to each score's own."""
    length = (tokens.shape[1] - 1) // 2
    queries = torch.arange(length + 1, 2 * length + 1, device=tokens.device)
    keys = queries[:, None] - torch.arange(length + 1, device=tokens.device)  # [R, distance]
    total = torch.zeros(layer.q.shape[1], length + 1, dtype=torch.float64)
    for sequence in range(len(tokens)):
        weights, _ = layer.weights(sequence, slice(length + 1, 2 * length + 1))
        total += weights.gather(-1, keys.expand(len(weights), -1, -1)).mean(1).double().cpu()
    mean = (total / len(tokens)).numpy()
    own = {"previous_token": 1, "duplicate_token": length, "induction": length - 1}
    others = [d for d in range(length + 1) if d not in own.values()]
    rows = []
    for name in SCORES:
        near = [d for _, d in sorted((abs(d - own[name]), d) for d in others)[:NEAR]]
        rows.append(np.quantile(mean[:, near], LEVEL, axis=1) if near else np.zeros(len(mean)))
    return np.stack(rows)
