"""Reading q and k of `torch.nn.MultiheadAttention`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attlas.analyses.stability.layer import AttentionLayer, HeadWeights, Reading
from attlas.errors import UnsupportedModelError
from attlas.kernels import AttentionRule


def multihead_layer(name: str, module: nn.MultiheadAttention) -> AttentionLayer:
    """The layer of a MultiheadAttention, self- or cross-attention, batch first or not.

    Raises:
        UnsupportedModelError: it was built with add_bias_kv or add_zero_attn, which add keys of their own.
    """
    if module.bias_k is not None or module.add_zero_attn:
        raise UnsupportedModelError(
            f"'{name}' has add_bias_kv or add_zero_attn, whose extra keys are not read; drop them"
        )

    def weights() -> HeadWeights:
        return _weights(module)

    return AttentionLayer(name, module, module.num_heads, _read, weights)


def _split(module: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Projection weights, each [out, in]."""
    if module.in_proj_weight is not None:
        q, k, v = module.in_proj_weight.chunk(3)
        return q, k, v
    return module.q_proj_weight, module.k_proj_weight, module.v_proj_weight


def _biases(module: nn.MultiheadAttention) -> tuple[Tensor | None, Tensor | None]:
    if module.in_proj_bias is None:
        return None, None
    q, k, _ = module.in_proj_bias.chunk(3)
    return q, k


def _weights(module: nn.MultiheadAttention) -> HeadWeights:
    n = module.num_heads
    w_q, w_k, w_v = (w.T.reshape(w.shape[1], n, -1).transpose(0, 1) for w in _split(module))
    b_q, b_k = (None if b is None else b.reshape(n, -1) for b in _biases(module))
    return HeadWeights(w_q, w_k, w_v, module.out_proj.weight.T, b_q, b_k)


def _read(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], n_sequences: int) -> Reading | None:
    assert isinstance(module, nn.MultiheadAttention)
    named = dict(zip(("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask"), args, strict=False))
    named |= kwargs
    query, key = named["query"].detach(), named["key"].detach()
    same = named["query"] is named["key"]
    batch_size = 1
    if query.ndim == 2:
        query, key = query[None], key[None]
    else:
        if not module.batch_first:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
        batch_size = query.shape[0]
    query, key = query[:n_sequences], key[:n_sequences]
    (w_q, w_k, _), (b_q, b_k) = _split(module), _biases(module)
    n = module.num_heads
    q = F.linear(query, w_q, b_q).unflatten(-1, (n, -1)).transpose(1, 2)
    k = F.linear(key, w_k, b_k).unflatten(-1, (n, -1)).transpose(1, 2)
    mask = _mask(named.get("attn_mask"), named.get("key_padding_mask"), batch_size, n, n_sequences)
    # is_causal is only a hint beside a mask; the mask is what attention uses.
    causal = bool(named.get("is_causal", False)) and mask is None and q.shape[2] <= k.shape[2]
    padding = named.get("key_padding_mask")
    real = torch.ones(q.shape[0], q.shape[2], dtype=torch.bool, device=q.device)
    if same and padding is not None:  # of cross-attention's queries no padding is told
        real = (_additive(padding if padding.ndim == 2 else padding[None])[:n_sequences] > -torch.inf).expand_as(real)
    return Reading(q, k, mask, AttentionRule(causal), query if same else None, real)


def _mask(attn: Tensor | None, padding: Tensor | None, batch: int, heads: int, n_sequences: int) -> Tensor | None:
    """Both masks of MultiheadAttention (where True means *not*) as one in our sense: additive, −inf = may not."""
    found: Tensor | None = None
    if attn is not None:
        found = _additive(attn)
        if found.ndim == 3:
            found = found.view(batch, heads, *found.shape[1:])[:n_sequences]
        else:
            found = found[None, None]
    if padding is not None:
        pad = _additive(padding if padding.ndim == 2 else padding[None])[:n_sequences, None, None]
        found = pad if found is None else found + pad
    return found


def _additive(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.detach().float()
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask, -torch.inf)
