"""Which head writes a feature: shares of the decoder row's norm (Kissane et al. 2024, arXiv 2406.17759)."""

from __future__ import annotations

import torch
from torch import Tensor


def head_shares(W_dec: Tensor, n_heads: int) -> Tensor:
    """h(f, i) = ‖W_dec[f, head i]‖₂ / Σ_j ‖W_dec[f, head j]‖₂: [F, n_heads·d_head] → float32 [F, n_heads], rows sum to 1.

    Example:
        >>> from attlas.analyses.features import head_shares
        >>> head_shares(sae.W_dec, n_heads=6).shape  # [features, heads], rows add up to 1
        torch.Size([32, 6])
    """
    norms = W_dec.detach().float().unflatten(-1, (n_heads, -1)).norm(dim=-1)
    return norms / norms.sum(-1, keepdim=True).clamp_min(1e-30)


def head_spread(shares: Tensor) -> Tensor:
    """How many heads write a feature: exp of the shares' entropy, from 1 (one head) to n_heads (all alike), [F]."""
    return torch.special.entr(shares).sum(-1).exp()
