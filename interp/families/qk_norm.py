"""Norms of queries and keys before the rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attlas.interp.structure import norm_eps


@dataclass(frozen=True)
class QKNorms:
    """A layer's RMSNorms; they run past any hooks of others.

    Attributes:
        q, k: the modules.
        over_heads: one norm over all heads' coordinates together (OLMo 2); else each head by itself.
        offset: what is added to a norm's weight (Gemma: 1).
    """

    q: Any
    k: Any
    over_heads: bool = False
    offset: float = 0.0

    def __call__(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """(q, k) normed, both [B, T, head, d_head]."""
        return self._of(self.q, q), self._of(self.k, k)

    def _of(self, norm: Any, x: Tensor) -> Tensor:
        if not self.over_heads:
            return norm.forward(x)
        return norm.forward(x.flatten(-2)).unflatten(-1, x.shape[-2:])

    def factors(self, which: str, x: Tensor) -> Tensor:
        """What the norm of "q" or "k" multiplies each coordinate of x [..., head, d_head] with: weight / scale."""
        norm = self.q if which == "q" else self.k
        normed = x.flatten(-2) if self.over_heads else x
        scale = (normed.pow(2).mean(-1, keepdim=True) + norm_eps(norm)).sqrt()
        return ((norm.weight.detach().to(x) + self.offset) / scale).expand_as(normed).reshape(x.shape)
