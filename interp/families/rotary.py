"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864) in the layout of most of transformers."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_half(x: Tensor) -> Tensor:
    """[x1, x2] → [−x2, x1] over the two halves of the last dimension."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rotate(q: Tensor, k: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Apply RoPE to q, k of [B, head, T, d_head]; cos, sin are [B, T, r], and coordinates from r on stay as they are."""
    cos, sin = (t.unsqueeze(1) for t in position_embeddings)
    return _turn(q, cos, sin), _turn(k, cos, sin)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = cos.shape[-1]
    if width == x.shape[-1]:
        return (x * cos + rotate_half(x) * sin).to(x.dtype)  # OLMo 2 keeps cos and sin in float32
    turning, still = x[..., :width], x[..., width:]
    return torch.cat((turning * cos + rotate_half(turning) * sin, still), dim=-1).to(x.dtype)
