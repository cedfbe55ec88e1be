"""Which keys a query may attend to by position alone, and by how much logits are scaled: one rule an attention layer.

Everything here that makes attention again from queries and keys takes a rule, so a sliding window cannot be forgotten.
Masks that depend on the input (padding, packing) come on top of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from attlas.kernels.dispatch import require


@dataclass(frozen=True)
class AttentionRule:
    """The rule of one layer.

    Attributes:
        causal: position i attends to keys j ≤ i alone.
        sliding_window: besides, to |i − j| < sliding_window alone; None for no limit.
        scale: of the logits; None for 1/√d_head.
        softcap: c of logits c·tanh(logit/c) (Gemma 2); None for logits as they are.
        sinks: [H] a learned logit a head beside those of the keys (gpt-oss), whose mass goes to no key; None without.

    Raises:
        KernelError: sliding_window below 1, or softcap not above 0.
    """

    causal: bool
    sliding_window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        require(self.sliding_window is None or self.sliding_window > 0, f"sliding_window {self.sliding_window} below 1")
        require(self.softcap is None or self.softcap > 0, f"softcap {self.softcap} is not above 0")

    def scaled(self, d_head: int) -> float:
        """The factor on q·k."""
        return d_head**-0.5 if self.scale is None else self.scale

    def capped(self, logits: Tensor) -> Tensor:
        """Scaled logits as the softmax gets them; masks come after."""
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def weights(self, logits: Tensor, heads: slice = slice(None)) -> Tensor:
        """Softmax over the keys, and the sink where there is one: the keys' weights [..., H, T, S]; 0 without a key.

        Args:
            logits: capped, and −inf where a query may not look.
            heads: which heads these are.
        """
        found = logits.softmax(-1).nan_to_num(0.0)
        if self.sinks is None:
            return found
        return found * self.on_keys(logits.logsumexp(-1), heads).unsqueeze(-1)

    def on_keys(self, log_z: Tensor, heads: slice = slice(None)) -> Tensor:
        """Share of the mass that the keys hold, the sink the rest; log_z [..., H, T] is log Σ exp(logit) over the keys."""
        if self.sinks is None:
            return torch.ones_like(log_z)
        return torch.sigmoid(log_z - self.sinks.detach()[heads].to(log_z)[:, None])

    def first_position(self, n_queries: int, n_keys: int) -> int:
        """Position of the first query: causal queries are the last positions, others the first."""
        return n_keys - n_queries if self.causal else 0

    def span(self, first: int, last: int, n_keys: int) -> tuple[int, int]:
        """(first, end) of the keys that any position first … last may attend to."""
        reach = n_keys if self.sliding_window is None else self.sliding_window - 1
        low = min(max(0, first - reach), n_keys)
        return low, max(low, min(n_keys, last + 1 + (0 if self.causal else reach)))

    def allowed(self, positions: Tensor, keys: Tensor) -> Tensor:
        """bool [R, S]: may position r attend to key s. Both int64, of [R] and [S]."""
        offset = positions[:, None] - keys[None]
        open_ = torch.ones_like(offset, dtype=torch.bool)
        if self.causal:
            open_ = offset >= 0
        return open_ if self.sliding_window is None else open_ & (offset.abs() < self.sliding_window)

    def n_keys(self, positions: Tensor, n_keys: int) -> Tensor:
        """How many of `n_keys` keys each position may attend to, int64 [R]."""
        low, high = torch.zeros_like(positions), torch.full_like(positions, n_keys)
        if self.causal:
            high = (positions + 1).clamp(max=n_keys)
        if self.sliding_window is not None:
            low = (positions - self.sliding_window + 1).clamp(min=0)
            high = torch.minimum(high, positions + self.sliding_window)
        return (high - low).clamp(min=0)

    def n_queries(self, n_tokens: int) -> Tensor:
        """How many of n_tokens positions may attend to each key, int64 [n_tokens]."""
        keys = torch.arange(n_tokens)
        turned = n_tokens - 1 - keys  # seen from the end, a key is what a query is from the front
        return self.n_keys(turned if self.causal else keys, n_tokens)
