"""Random tokens said twice, and how heads attend from the second copy to the first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from attlas.data.tokenizing import bos_of
from attlas.interp import Attended, HookedModel, attended

# name of the score → its field in the kernel's statistics
SCORES = {"previous_token": "previous_token", "duplicate_token": "duplicate", "induction": "induction"}


def repeated_tokens(model: HookedModel, *, length: int = 100, n: int = 8, seed: int = 0) -> Tensor:
    """[n, 1 + 2·length]: BOS (or token 0), random tokens, the same again."""
    length = min(length, (model.cfg.n_ctx - 1) // 2)
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(1, model.cfg.d_vocab, (n, length), generator=generator)
    bos = bos_of(model.tokenizer) or 0
    start = torch.full((n, 1), bos)
    return torch.cat([start, half, half], dim=1).to(model.device)


@torch.no_grad()
def repeat_scores(model: HookedModel, tokens: Tensor) -> dict[str, np.ndarray]:
    """Previous-token, duplicate-token and induction scores [layer, head] over the second copy's queries.

    Args:
        tokens: int64 [n, 1 + 2·length], from `repeated_tokens`.
    """
    scores = [copy_scores(second_copy(layer)) for layer in attended(model, tokens)]
    return {name: np.stack([layer[i] for layer in scores]) for i, name in enumerate(SCORES)}


def second_copy(layer: Attended, n: int | None = None) -> Attended:
    """The layer with the second copy's queries alone, of the first n sequences."""
    assert layer.tokens is not None
    length = (layer.tokens.shape[1] - 1) // 2
    return replace(layer, q=layer.q[:n, :, length + 1 :], k=layer.k[:n], tokens=layer.tokens[:n])


def copy_scores(layer: Attended) -> np.ndarray:
    """[score, head]."""
    found = layer.stats().reduce()
    return torch.stack([found[field] for field in SCORES.values()]).double().cpu().numpy()
