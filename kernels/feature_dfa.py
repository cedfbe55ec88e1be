"""Direct feature attribution of chosen features (Kissane et al. 2024, arXiv 2406.17759), without T×T×H in memory.

DFA[f, dest, src, h] = A^h[dest, src] · (v^h_src · W_enc[h-slice, f]). The projection v·W_enc is taken first (one number a
key, head and feature), and attention rows are made for the chosen destinations alone, one chunk of heads at a time. The sum
over heads and sources is z·W_enc[:, f]; what makes it an autoencoder's pre-activation (normalisation, biases, the two
paths of gated encoders) is in `attlas.saes.reading`. The key-value head of query head h is h // (H / K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.kernels.attention_rule import AttentionRule
from attlas.kernels.dispatch import require, require_like

# Attention weights held at once.
TILE_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class FeatureDFA:
    """Contributions to the pre-activation of P (sequence, position, feature) triples."""

    by_head: Tensor
    """[P, H]: summed over sources."""
    by_source: Tensor
    """[P, S]: summed over heads; 0 at keys that the position may not attend to."""
    by_head_source: Tensor | None
    """[P, H, S], when asked for."""

    @property
    def total(self) -> Tensor:
        """[P]: scale · z·W_enc[:, f], the pre-activation without its bias terms."""
        return self.by_head.sum(-1)


def feature_dfa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    W_enc: Tensor,
    features: Tensor,
    positions: Tensor,
    rule: AttentionRule,
    *,
    sequences: Tensor | None = None,
    scale: Tensor | None = None,
    mask: Tensor | None = None,
    keep_heads: bool = False,
) -> FeatureDFA:
    """Attribute features at given destinations to heads and source positions.

    Args:
        q: [B, H, T, e]; k, v: [B, K, T, e]; after any rotary embedding.
        W_enc: [H·e, F].
        features, positions: [P] int64, a feature and a destination each.
        sequences: [P] int64, the batch row of each; default 0 for all.
        scale: [P], by which the contributions of each are multiplied (a token's normalisation); default 1.
        rule, mask: as in `attention_stats`.
        keep_heads: also return [P, H, S], which costs that much memory.

    Raises:
        KernelError: shapes, dtypes or devices do not fit, or a position, feature or sequence is out of range.

    Example:
        >>> from attlas.kernels import AttentionRule, feature_dfa
        >>> q, k, v = (torch.randn(1, 2, 7, 4) for _ in range(3))  # [B, heads, T, d_head]
        >>> W_enc = torch.randn(8, 16)  # [heads · d_head, F]
        >>> features, positions = torch.tensor([3, 5]), torch.tensor([6, 6])
        >>> found = feature_dfa(q, k, v, W_enc, features, positions, AttentionRule(causal=True))
        >>> found.by_head.shape, found.by_source.shape  # [P, heads], [P, T]
        (torch.Size([2, 2]), torch.Size([2, 7]))
        >>> torch.allclose(found.by_head.sum(-1), found.by_source.sum(-1), atol=1e-5)
        True
    """
    B, H, T, e = q.shape
    K, S = k.shape[1], k.shape[2]
    require(v.shape == k.shape and H % K == 0 and k.shape[3] == e, f"k {tuple(k.shape)}, v {tuple(v.shape)}: bad shape")
    require(W_enc.shape[0] == H * e, f"W_enc has {W_enc.shape[0]} rows, {H} heads of width {e} need {H * e}")
    require_like(q, k=k, v=v, W_enc=W_enc)
    rows = torch.zeros_like(positions) if sequences is None else sequences
    require(features.shape == positions.shape == rows.shape, "features, positions and sequences differ in shape")
    require(scale is None or scale.shape == features.shape, "scale and features differ in shape")
    for name, index, size in (("feature", features, W_enc.shape[1]), ("position", positions, T), ("sequence", rows, B)):
        if index.numel():
            low, high = int(index.min()), int(index.max())
            require(low >= 0 and high < size, f"{name} {low if low < 0 else high} is not below {size}")
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    sharpness, shift = rule.scaled(e), rule.first_position(T, S)
    P = features.shape[0]
    by_head, by_source = q.new_zeros(P, H, dtype=dtype), q.new_zeros(P, S, dtype=dtype)
    both = q.new_zeros(P, H, S, dtype=dtype) if keep_heads else None
    full_mask = None if mask is None else mask.expand(B, H, T, S)
    group, at = H // K, torch.arange(S, device=q.device)
    chunk = max(1, TILE_ELEMENTS // max(1, S * group))
    for b in rows.unique().tolist():
        mine = (rows == b).nonzero().squeeze(1)
        for part in mine.split(chunk):
            chosen = features[part]
            # attention is the position's, whatever the feature: its U rows are made once
            dest, row = positions[part].unique(return_inverse=True)
            closed_keys = ~rule.allowed(dest + shift, at)  # [U, S]
            for head in range(0, H, group):
                span = slice(head, head + group)
                keys, vals = k[b, head // group].to(dtype), v[b, head // group].to(dtype)  # [S, e]
                logits = rule.capped(torch.einsum("gue,se->gus", q[b, span][:, dest].to(dtype), keys) * sharpness)
                if full_mask is not None:
                    chosen_mask = full_mask[b, span][:, dest]
                    if chosen_mask.dtype == torch.bool:
                        logits = logits.masked_fill(~chosen_mask, -math.inf)
                    else:
                        logits = logits + chosen_mask
                logits = logits.masked_fill(closed_keys, -math.inf)
                weights = rule.weights(logits, span)  # no key at all: no contribution
                slices = W_enc[head * e : (head + group) * e, chosen].to(dtype).view(group, e, -1)
                parts = torch.einsum("se,gep->gps", vals, slices).mul_(weights[:, row])
                if scale is not None:
                    parts = parts * scale[part, None].to(dtype)
                by_head[part, span] = parts.sum(-1).T
                by_source[part] += parts.sum(0)
                if both is not None:
                    both[part, span] = parts.transpose(0, 1)
    return FeatureDFA(by_head, by_source, both)
