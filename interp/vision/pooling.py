"""Attention pooling: a learned query draws an image's embedding from its patches (SigLIP's MultiheadAttentionPoolingHead)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def pooling_attention(module: Any, query: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """The pattern [B, head, n_queries, T] of a torch.nn.MultiheadAttention, and values [B, head, T, d_head], from its weights.

    Args:
        module: the attention module, batch first.
        query: [B, n_queries, d_model].
        source: [B, T, d_model], what is drawn from.
    """
    weights = module.in_proj_weight.chunk(3)
    biases = module.in_proj_bias.chunk(3)
    q, k, v = (
        linear(x, w, b).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for x, w, b in zip((query, source, source), weights, biases, strict=True)
    )
    scores = q @ k.mT * q.shape[-1] ** -0.5
    exact = scores if scores.dtype == torch.float64 else scores.float()
    return exact.softmax(-1).to(q.dtype), v


def pooled(module: Any, pattern: Tensor, values: Tensor) -> Tensor:
    """What the attention gives with that pattern, [B, n_queries, d_model]."""
    z = (pattern @ values).transpose(1, 2).flatten(-2)
    return linear(z, module.out_proj.weight, module.out_proj.bias)


def attention_of(head: nn.Module) -> nn.MultiheadAttention:
    """The attention of a pooling head, whose `forward` gets (query, source, source)."""
    found: Any = head.attention
    assert isinstance(found, nn.MultiheadAttention)
    return found
