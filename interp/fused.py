"""How one projection holds queries, keys and values together: where each one's outputs stand."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FusedQKV:
    """Layout of a fused projection's outputs.

    Attributes:
        n_heads, n_kv_heads, d_head: shape.
        by_head: outputs are (head, q | k | v, d_head), as in GPT-NeoX; else all of q, then k, then v (GPT-2, Phi-3).
    """

    n_heads: int
    n_kv_heads: int
    d_head: int
    by_head: bool = False

    def take(self, fused: Tensor, kind: str) -> Tensor:
        """[..., n_heads or n_kv_heads, d_head] of "q", "k" or "v", a view of [..., outputs]."""
        if self.by_head:
            return fused.unflatten(-1, (self.n_heads, 3, self.d_head))[..., "qkv".index(kind), :]
        counts = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        slot = "qkv".index(kind)
        start = sum(counts[:slot])
        return fused[..., start * self.d_head : (start + counts[slot]) * self.d_head].unflatten(-1, (-1, self.d_head))

    def put(self, fused: Tensor, kind: str, part: Tensor) -> Tensor:
        """A copy of [..., outputs] with "q", "k" or "v" in place of its own."""
        anew = fused.clone()
        self.take(anew, kind).copy_(part)
        return anew
