"""Where a model attends, for instruments that sit in a training loop: q, k and weights of every attention layer.

q and k are computed from the *inputs* of an attention module, by running the projections once more on a few sequences.
So it needs one pre-hook a layer, whatever the module does inside (SDPA, flash attention, dropout, checkpointing).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from attlas.analyses.stability.layer import Adapter, AttentionLayer, HeadWeights, Reading, boolean_mask
from attlas.analyses.stability.layers_torch import multihead_layer
from attlas.errors import UnsupportedModelError
from attlas.interp.families import describe
from attlas.interp.structure import LayerModules, ModelStructure, linear_weight

_ALIBI = ("bloom", "mpt", "falcon")
_TURNS = 1.05  # cos² + sin² is 1, a little more in bfloat16, and more where RoPE also stretches (YaRN, LongRoPE)
_CACHES = ("past_key_values", "layer_past", "cache")  # what transformers has called it, by family and version


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DistributedDataParallel and DataParallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if inner is None:
            return model
        model = inner


def attention_layers(model: nn.Module, adapter: Adapter | None = None) -> tuple[AttentionLayer, ...]:
    """Every attention layer of a model, in order.

    Args:
        model: of a supported family (docs/models.md), any module with `nn.MultiheadAttention` in it, or any with an adapter.
        adapter: module → attention layers, for modules of your own.

    Raises:
        UnsupportedModelError: nothing to watch, ALiBi biases, or a MultiheadAttention with bias_kv or zero_attn.
    """
    inner: Any = unwrap(model)
    if adapter is not None:
        given = tuple(adapter(inner))
        if not given:
            raise UnsupportedModelError(
                f"the adapter found no attention in {type(inner).__name__}; it must yield AttentionLayers"
            )
        return given
    config = getattr(inner, "config", None)
    model_type = getattr(config, "model_type", "")
    if getattr(config, "alibi", False) or model_type in _ALIBI[:2]:
        raise UnsupportedModelError(
            f"model type '{model_type}' adds ALiBi biases to its logits, which are not read; pass adapter="
        )
    try:
        structure = describe(inner)
    except UnsupportedModelError:
        structure = None
    if structure is not None:
        return tuple(_family_layer(structure, layer) for layer in range(len(structure.layers)))
    found = [(n, m) for n, m in inner.named_modules() if isinstance(m, nn.MultiheadAttention)]
    if found:
        return tuple(multihead_layer(name or "attention", module) for name, module in found)
    likely = sorted({type(m).__name__ for m in inner.modules() if "attention" in type(m).__name__.lower()})
    seen = f"; it has {', '.join(likely[:4])}, which hide q and k" if likely else ""
    raise UnsupportedModelError(
        f"{type(inner).__name__} has no attention that Attlas reads{seen}; pass adapter= (see docs/entropy.md)"
    )


# -- Hugging Face families ---------------------------------------------------------------------------------------------


def _family_layer(structure: ModelStructure, layer: int) -> AttentionLayer:
    parts, cfg = structure.layers[layer], structure.cfg

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], n_sequences: int) -> Reading | None:
        hidden = args[0] if args else kwargs["hidden_states"]
        cached = next((kwargs[name] for name in _CACHES if kwargs.get(name) is not None), None)
        if cached is not None and cached.get_seq_length(layer) > 0:
            return None  # generation: keys of earlier calls are not among the inputs
        x = hidden[:n_sequences].detach()
        q, k = _project(parts, x, cfg.d_head)
        bounded = parts.qk_norm is None and parts.rule.sinks is None
        if structure.rotary is not None:
            cos, sin = kwargs["position_embeddings"]
            rows = slice(0, 1 if cos.shape[0] == 1 else n_sequences)
            q, k = structure.rotary(q, k, (cos[rows], sin[rows]))
            bounded &= float(cos[0, 0, 0] ** 2 + sin[0, 0, 0] ** 2) < _TURNS
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 and isinstance(args[1], Tensor) else None)
        allowed = boolean_mask(mask, n_sequences, k.shape[2])
        # A bound from weights alone does not hold for normed or stretched queries and keys, nor beside a learned sink.
        return Reading(q, k, allowed, parts.rule, x if bounded else None)

    def weights() -> HeadWeights:
        return _family_weights(parts, cfg.d_head)

    return AttentionLayer(f"blocks.{layer}.attn", parts.attn, cfg.n_heads, read, weights, structure.rotary is not None)


def _project(parts: LayerModules, x: Tensor, d_head: int) -> tuple[Tensor, Tensor]:
    """q [B, H, T, e], k [B, K, T, e], normed where the family does; through `.forward`, past any hooks of others."""
    if parts.fused is not None:
        both = parts.q.forward(x)
        q, k = parts.fused.take(both, "q"), parts.fused.take(both, "k")
    else:
        q, k = (m.forward(x).unflatten(-1, (-1, d_head)) for m in (parts.q, parts.k))
    if parts.qk_norm is not None:
        q, k = parts.qk_norm(q, k)
    return q.transpose(1, 2), k.transpose(1, 2)


def _family_weights(parts: LayerModules, d_head: int) -> HeadWeights:
    """W_Q, W_K, W_V, W_O and the biases of queries and keys."""

    def part(tensor: Tensor, kind: str) -> Tensor:
        return tensor.unflatten(-1, (-1, d_head)) if parts.fused is None else parts.fused.take(tensor, kind)

    def bias(module: nn.Module, kind: str) -> Tensor | None:
        found = getattr(module, "bias", None)
        return None if found is None else part(found, kind)

    q, k, v = (
        part(linear_weight(m), kind).transpose(0, 1) for kind, m in (("q", parts.q), ("k", parts.k), ("v", parts.v))
    )
    return HeadWeights(q, k, v, linear_weight(parts.out_proj), bias(parts.q, "q"), bias(parts.k, "k"))
