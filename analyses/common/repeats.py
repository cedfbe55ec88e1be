"""Random tokens said twice, and how heads attend from the second copy to the first."""

from __future__ import annotations

import torch
from torch import Tensor

from attlas.interp import HookedModel


def repeated_tokens(model: HookedModel, *, length: int = 100, n: int = 8, seed: int = 0) -> Tensor:
    """[n, 1 + 2·length]: BOS (or token 0), random tokens, the same again."""
    length = min(length, (model.cfg.n_ctx - 1) // 2)
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(1, model.cfg.d_vocab, (n, length), generator=generator)
    bos = getattr(model.tokenizer, "bos_token_id", None) or 0
    start = torch.full((n, 1), bos)
    return torch.cat([start, half, half], dim=1).to(model.device)
