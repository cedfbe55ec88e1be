"""Queries and keys of every attention layer with what each query may see: what a statistic of attention is made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attlas.errors import UnsupportedModelError
from attlas.interp.load import AnyModel, as_hooked
from attlas.interp.model import HookedModel
from attlas.kernels import AttentionRule, AttentionStats, attention_stats


@dataclass(frozen=True)
class Attended:
    """What one layer attends with.

    Attributes:
        layer: index, from 0.
        q: [B, H, T, e], after any rotary embedding; k: [B, K, T, e].
        rule: causality, sliding window, scale, cap and learned sinks of the layer.
        tokens: int64 [B, T], or None for images.
        mask: bool [B, 1, T, T], True = may attend, where some tokens are padding; else None. Padding has no key to
            attend to, so it is no query either.
    """

    layer: int
    q: Tensor
    k: Tensor
    rule: AttentionRule
    tokens: Tensor | None = None
    mask: Tensor | None = None

    def stats(self, **options: Any) -> AttentionStats:
        """Statistics of every query; options are `window`, `top_k` and `column` of `attlas.kernels.attention_stats`."""
        return attention_stats(self.q, self.k, self.rule, mask=self.mask, token_ids=self.tokens, **options)

    def weights(self, sequence: int, block: slice) -> tuple[Tensor, Tensor]:
        """Attention of a block of queries of one sequence: weights float [H, R, T], and bool [R, T], what may be seen.

        Rows of layers with a learned sink add up to less than 1.
        """
        dtype = torch.float64 if self.q.dtype == torch.float64 else torch.float32
        q, k = self.q[sequence, :, block].to(dtype), self.k[sequence].to(dtype)
        at = torch.arange(k.shape[1], device=k.device)
        allowed = self.rule.allowed(at[block], at)
        if self.mask is not None:
            allowed = allowed & self.mask[sequence, 0, block]
        keys = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
        logits = self.rule.capped(q @ keys.mT * self.rule.scaled(q.shape[-1]))
        return self.rule.weights(logits.masked_fill(~allowed, -torch.inf)), allowed

    def of_queries(self, queries: Tensor) -> Tensor:
        """Attention of some queries of each sequence, float [B, H, R, T].

        Args:
            queries: int64 [B, R], their positions.
        """
        dtype = torch.float64 if self.q.dtype == torch.float64 else torch.float32
        batch, heads, _, width = self.q.shape
        chosen = queries[:, None, :, None].expand(batch, heads, -1, width)
        q, k = self.q.gather(2, chosen).to(dtype), self.k.to(dtype)
        grouped = q.reshape(batch, k.shape[1], -1, width)  # heads that share a kv head, one after another
        logits = self.rule.capped(grouped @ k.mT * self.rule.scaled(width)).view(batch, heads, queries.shape[1], -1)
        at = torch.arange(k.shape[2], device=k.device)
        allowed = self.rule.allowed(queries.flatten(), at).view(batch, 1, -1, len(at))
        if self.mask is not None:
            allowed = allowed & self.mask.gather(2, queries[:, None, :, None].expand(batch, 1, -1, len(at)))
        return self.rule.weights(logits.masked_fill_(~allowed, -torch.inf))


def attended(
    model: AnyModel, inputs: Tensor, attention_mask: Tensor | None = None, *, absent_too: bool = False
) -> Iterator[Attended]:
    """One forward pass, then every layer in order.

    Args:
        inputs: tokens int64 [B, T], or pixels float [B, C, H, W].
        attention_mask: [B, T], 1 for tokens and 0 for padding, on either side; None: no padding.
        absent_too: the caller leaves out the heads that a pruned model lacks (their q and k are zeros here).

    Raises:
        UnsupportedModelError: heads are absent, and the caller would take them for heads.

    Example:
        >>> from attlas.interp import attended
        >>> layers = list(attended(model, text.tokens))
        >>> layers[0].q.shape, layers[0].k.shape  # [B, heads, T, d_head]
        (torch.Size([8, 6, 24, 32]), torch.Size([8, 6, 24, 32]))
        >>> layers[3].stats(window=4).entropy.shape  # nats, [B, heads, T]
        torch.Size([8, 6, 24])
    """
    model = as_hooked(model)
    if not absent_too:
        refuse_absent_heads(model)
    kind = "rot_" if model.cfg.positional == "rotary" else ""
    inputs = inputs.to(model.device)
    options: dict[str, Any] = {}
    mask = None
    if attention_mask is not None:
        real = attention_mask.to(model.device).bool()
        options["attention_mask"] = real.long()
        mask = (real[:, None, None] & real[:, None, :, None]) if not bool(real.all()) else None
    cache = model.capture(inputs, [f"blocks.*.attn.hook_{kind}q", f"blocks.*.attn.hook_{kind}k"], **options)
    tokens = inputs if inputs.ndim == 2 else None
    for layer, parts in enumerate(model.layers):
        q, k = (cache.pop(f"blocks.{layer}.attn.hook_{kind}{n}").transpose(1, 2) for n in "qk")
        yield Attended(layer, q, k, parts.rule, tokens, mask)


def refuse_absent_heads(model: HookedModel) -> None:
    """The check of all that would take the zeros of absent heads for heads.

    Raises:
        UnsupportedModelError: a compact pruned model.
    """
    if model.absent_heads:
        layer, head = model.absent_heads[0]
        raise UnsupportedModelError(
            f"{model.name} lacks {len(model.absent_heads)} heads, such as {layer}.{head} (pruned), and maps of absent heads "
            "mean nothing; use the model it was pruned from, or attlas entropy, which leaves them out"
        )
