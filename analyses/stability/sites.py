"""Where a model attends, for instruments that sit in a training loop: q, k and weights of every attention layer.

A site reads q and k from the *inputs* of an attention module, by running the projections once more on a few sequences.
So it needs one pre-hook a layer, whatever the module does inside (SDPA, flash attention, dropout, checkpointing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attlas.errors import UnsupportedModelError
from attlas.interp.anatomy import Anatomy, LayerParts, linear_weight
from attlas.interp.families import describe
from attlas.kernels import AttentionRule

_ALIBI = ("bloom", "mpt", "falcon")


@dataclass(frozen=True)
class Reading:
    """What one attention module attends with.

    Attributes:
        q: [B, H, T, e], after any rotary embedding; k: [B, K, S, e].
        mask: as `attlas.kernels.attention_stats` takes it, or None.
        rule: causality, sliding window and scale of the logits; the mask comes on top of it.
        inputs: [B, T, d], what the projections were applied to, for the weight-based bound; or None.
        queries: bool [B, T], False for padding, which is left out on either side; None: as the mask tells (see
            `real_tokens`), for self-attention.
    """

    q: Tensor
    k: Tensor
    mask: Tensor | None = None
    rule: AttentionRule = field(default_factory=lambda: AttentionRule(causal=True))
    inputs: Tensor | None = None
    queries: Tensor | None = None

    @property
    def real(self) -> Tensor | None:
        """bool [B, T], which queries are tokens and not padding; None: all."""
        return real_tokens(self.mask, self.q.shape[2], self.k.shape[2]) if self.queries is None else self.queries

    @property
    def whole_mask(self) -> Tensor | None:
        """The mask with padding left without any key."""
        real = self.real
        if real is None or bool(real.all()):
            return self.mask
        rows = real[:, None, :, None]
        if self.mask is None or self.mask.dtype == torch.bool:
            return rows if self.mask is None else rows & self.mask
        return torch.where(rows, self.mask, -torch.inf)


def real_tokens(mask: Tensor | None, n_queries: int, n_keys: int) -> Tensor | None:
    """bool [B, T]: which tokens of self-attention are no padding, as its mask tells: those that some query may attend to.

    None where it cannot tell: no mask, other keys than queries, or a mask by which no token attends to itself.
    """
    if mask is None or mask.ndim != 4 or n_queries != n_keys or mask.shape[-1] != n_keys:
        return None
    open_ = (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).any(1)
    if open_.shape[1] == 1:
        return open_[:, 0]
    if not bool(open_.diagonal(dim1=-2, dim2=-1).any()):
        return None
    return open_.any(1)


@dataclass(frozen=True)
class HeadWeights:
    """Weights of one attention layer: w_q [H, d, e], w_k and w_v [K, d, e], w_o [H·e, d]; biases [H, e], [K, e] or None."""

    w_q: Tensor
    w_k: Tensor
    w_v: Tensor | None
    w_o: Tensor | None
    b_q: Tensor | None = None
    b_k: Tensor | None = None


Reader = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], int], Reading | None]


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer. For a module of your own, write `read` (and `weights`, for norms and the weight-based bound).

    Attributes:
        name: what tables call it.
        module: its forward call is watched.
        n_heads: query heads.
        read: (module, args, kwargs, n_sequences) of a forward call → Reading of the first sequences, or None to skip.
        weights: → HeadWeights, or None.
        rotary: whether a rotation stands between W_Q and W_K.
    """

    name: str
    module: nn.Module
    n_heads: int
    read: Reader
    weights: Callable[[], HeadWeights] | None = None
    rotary: bool = False


Adapter = Callable[[nn.Module], Iterable[AttentionSite]]


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DistributedDataParallel and DataParallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if inner is None:
            return model
        model = inner


def attention_sites(model: nn.Module, adapter: Adapter | None = None) -> tuple[AttentionSite, ...]:
    """Every attention layer of a model, in order.

    Args:
        model: GPT-2, Llama, ViT (Hugging Face), any module with `nn.MultiheadAttention` in it, or any with an adapter.
        adapter: module → sites, for modules of your own.

    Raises:
        UnsupportedModelError: nothing to watch, ALiBi biases, or a MultiheadAttention with bias_kv or zero_attn.
    """
    inner: Any = unwrap(model)
    if adapter is not None:
        sites = tuple(adapter(inner))
        if not sites:
            raise UnsupportedModelError(
                f"the adapter found no attention in {type(inner).__name__}; it must yield sites"
            )
        return sites
    config = getattr(inner, "config", None)
    model_type = getattr(config, "model_type", "")
    if getattr(config, "alibi", False) or model_type in _ALIBI[:2]:
        raise UnsupportedModelError(
            f"model type '{model_type}' adds ALiBi biases to its logits, which are not read; pass adapter="
        )
    try:
        anatomy = describe(inner)
    except UnsupportedModelError:
        anatomy = None
    if anatomy is not None:
        return tuple(_family_site(anatomy, layer) for layer in range(len(anatomy.layers)))
    from attlas.analyses.stability.sites_torch import multihead_site

    found = [(n, m) for n, m in inner.named_modules() if isinstance(m, nn.MultiheadAttention)]
    if found:
        return tuple(multihead_site(name or "attention", module) for name, module in found)
    likely = sorted({type(m).__name__ for m in inner.modules() if "attention" in type(m).__name__.lower()})
    seen = f"; it has {', '.join(likely[:4])}, which hide q and k" if likely else ""
    raise UnsupportedModelError(
        f"{type(inner).__name__} has no attention that Attlas reads{seen}; pass adapter= (see docs/entropy.md)"
    )


# -- Hugging Face families ---------------------------------------------------------------------------------------------


def _family_site(anatomy: Anatomy, layer: int) -> AttentionSite:
    parts, cfg = anatomy.layers[layer], anatomy.cfg

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], n_sequences: int) -> Reading | None:
        hidden = args[0] if args else kwargs["hidden_states"]
        cached = kwargs.get("past_key_values")
        if cached is not None and cached.get_seq_length(layer) > 0:
            return None  # generation: keys of earlier calls are not among the inputs
        x = hidden[:n_sequences].detach()
        q, k = _project(parts, x, cfg.n_heads, cfg.n_kv_heads)
        if anatomy.rotary is not None:
            cos, sin = kwargs["position_embeddings"]
            rows = slice(0, 1 if cos.shape[0] == 1 else n_sequences)
            q, k = anatomy.rotary(q, k, (cos[rows], sin[rows]))
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 and isinstance(args[1], Tensor) else None)
        allowed = boolean_mask(mask, n_sequences, k.shape[2])
        return Reading(q, k, allowed, parts.rule, x)

    def weights() -> HeadWeights:
        return _family_weights(parts, cfg.n_heads, cfg.n_kv_heads)

    return AttentionSite(f"blocks.{layer}.attn", parts.attn, cfg.n_heads, read, weights, anatomy.rotary is not None)


def _project(parts: LayerParts, x: Tensor, n_heads: int, n_kv: int) -> tuple[Tensor, Tensor]:
    """q [B, H, T, e], k [B, K, T, e]; through `.forward`, past any hooks of others."""
    if parts.fused_qkv:
        q, k, _ = parts.q.forward(x).chunk(3, dim=-1)
    else:
        q, k = parts.q.forward(x), parts.k.forward(x)
    return (
        q.reshape(*q.shape[:-1], n_heads, -1).transpose(1, 2),
        k.reshape(*k.shape[:-1], n_kv, -1).transpose(1, 2),
    )


def boolean_mask(mask: Tensor | None, n_sequences: int, n_keys: int) -> Tensor | None:
    """Any mask of transformers as bool [B, 1, T or 1, S], True = may attend: 4-D bool or additive, or 2-D padding."""
    if mask is None:
        return None
    mask = mask if mask.shape[0] == 1 else mask[:n_sequences]
    if mask.ndim == 2:
        return (mask[:, None, None, -n_keys:] != 0) if mask.shape[1] >= n_keys else None
    mask = mask[..., :n_keys]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _family_weights(parts: LayerParts, n_heads: int, n_kv: int) -> HeadWeights:
    q, k, v = (linear_weight(m) for m in (parts.q, parts.k, parts.v))  # [in, out]
    b_q, b_k = (getattr(m, "bias", None) for m in (parts.q, parts.k))
    if parts.fused_qkv:
        q, k, v = q.chunk(3, dim=1)
        b_q, b_k = (None, None) if b_q is None else b_q.chunk(3)[:2]

    def heads(weight: Tensor, n: int) -> Tensor:
        return weight.reshape(weight.shape[0], n, -1).transpose(0, 1)

    return HeadWeights(
        heads(q, n_heads),
        heads(k, n_kv),
        heads(v, n_kv),
        linear_weight(parts.out_proj),
        None if b_q is None else b_q.reshape(n_heads, -1),
        None if b_k is None else b_k.reshape(n_kv, -1),
    )
