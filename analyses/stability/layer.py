"""One attention layer as an instrument sees it: what it reads, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attlas.kernels import AttentionRule


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
class AttentionLayer:
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


Adapter = Callable[[nn.Module], Iterable[AttentionLayer]]


def boolean_mask(mask: Tensor | None, n_sequences: int, n_keys: int) -> Tensor | None:
    """Any mask of transformers as bool [B, 1, T or 1, S], True = may attend: 4-D bool or additive, or 2-D padding."""
    if mask is None:
        return None
    mask = mask if mask.shape[0] == 1 else mask[:n_sequences]
    if mask.ndim == 2:
        return (mask[:, None, None, -n_keys:] != 0) if mask.shape[1] >= n_keys else None
    mask = mask[..., :n_keys]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
