"""The two operations in which a TopK SAE spends its time, on any leading dimensions."""

from __future__ import annotations

import torch
from torch import Tensor


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, b_dec: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k largest of ReLU((x − b_dec)·W_enc + b_enc): [..., D] → values and int64 indices, both [..., k]."""
    pre = (x if b_dec is None else x - b_dec) @ W_enc + b_enc
    values, indices = pre.topk(k, dim=-1)
    return torch.relu(values), indices


def sparse_decode(values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """Σ_k values·W_dec[indices] + b_dec: twice [..., k] → [..., D]."""
    return (values.unsqueeze(-2) @ W_dec[indices]).squeeze(-2) + b_dec
