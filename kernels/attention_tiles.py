"""Attention weights a tile at a time: for measures that no statistic of `attention_stats` gives, at O(T) memory.

Weights of a block of queries over the keys it may see lie in one tile of bounded size, unnormalised, with what divides
them; a caller reads its measures off the tile and lets it go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.kernels.attention_rule import AttentionRule
from attlas.kernels.attention_stats import DEVICE_TILES, TILE_ELEMENTS, query_blocks
from attlas.kernels.dispatch import require

_CLOSED = -1e30  # a logit that gets no weight; finite, so that weight · logit is 0


@dataclass(frozen=True)
class Block:
    """Which sequences, queries and keys a tile holds."""

    rows: slice
    queries: slice
    keys: slice


@dataclass(frozen=True)
class AttentionTile:
    """Weights of one layer in one block, n sequences, R queries and S keys.

    Attributes:
        weights: float [n, H, R, S], up to `z`: exp(logit − peak), 0 where a query may not look.
        z: [n, H, R], Σ weights; 1 for a query without a key, whose weights are 0.
        peak: [n, H, R], the largest logit (−1e30 without a key).
        moment: [n, H, R], Σ weights · (logit − peak).
        off_sink: [n, H, R], the largest weight on keys other than the first position, up to z.
        block: where they lie.
    """

    weights: Tensor
    z: Tensor
    peak: Tensor
    moment: Tensor
    off_sink: Tensor
    block: Block

    @property
    def entropy(self) -> Tensor:
        """−Σ a·log a, nats, [n, H, R]."""
        return (self.z.log() - self.moment / self.z).clamp(min=0)

    def behind(self, steps: int) -> Tensor:
        """Weight on the position so many steps before each query, normalised, [n, H, R]; 0 where there is none."""
        found = torch.zeros_like(self.z)
        offset = self.block.queries.start - steps - self.block.keys.start  # key column of the first query
        n_queries, n_keys = self.weights.shape[-2:]
        first, end = max(0, -offset), min(n_queries, n_keys - offset)
        if first < end:
            found[..., first:end] = self.weights.diagonal(offset, -2, -1)
        return found / self.z

    def sums_by(self, codes: Tensor, n_codes: int) -> Tensor:
        """Σ over the keys of each code.

        Args:
            codes: integers [1 or n, R, S] from 0, shared by the heads.

        Returns: [n, H, R, n_codes], of normalised weights.
        """
        found = self.weights.new_zeros(*self.z.shape, n_codes)
        found.scatter_add_(-1, codes.long().unsqueeze(1).expand_as(self.weights), self.weights)
        return found / self.z.unsqueeze(-1)

    def distances(self) -> tuple[Tensor, Tensor]:
        """Mean of query − key (of causal attention the distance) and of its square under each query's weights, [n, H, R] each.

        Positions count from the block's first query, so that near keys lose no digits to far ones.
        """
        at = torch.arange(self.block.keys.start, self.block.keys.stop, device=self.z.device) - self.block.queries.start
        at = at.to(self.z.dtype)
        flat = self.weights.view(-1, len(at))  # one product with a vector each: far faster than one with two columns
        first, second = (flat.mv(power).view_as(self.z) / self.z for power in (at, at**2))
        own = torch.arange(self.z.shape[-1], device=self.z.device, dtype=self.z.dtype)
        own = own * (self.peak > _CLOSED / 2)  # a query without a key is 0 from everything
        return own - first, (own**2 - 2 * own * first + second).clamp(min=0)

    def strongest(self, k: int) -> tuple[Tensor, Tensor]:
        """The k largest weights of each query, normalised, and their keys, [n, H, R, min(k, S)] each, the largest first.

        They lie in the k groups of keys of largest maximum, so that few keys need sorting; a group takes every so-many-th
        key, as maxima of keys far apart are found faster than those of neighbours.
        """
        n_keys = self.weights.shape[-1]
        width = max(1, round((n_keys / k) ** 0.5))
        n_groups = n_keys // width
        if n_groups <= k or n_keys <= k:
            found = self.weights.topk(min(k, n_keys), -1)
            return found.values / self.z.unsqueeze(-1), found.indices + self.block.keys.start
        grouped = self.weights[..., : n_groups * width].unflatten(-1, (width, n_groups))
        best = grouped.amax(-2).topk(k, -1, sorted=False).indices.unsqueeze(-1)
        at = (best + torch.arange(0, n_groups * width, n_groups, device=best.device)).flatten(-2)
        tail = torch.arange(n_groups * width, n_keys, device=best.device).expand(*at.shape[:-1], -1)
        at = torch.cat([at, tail], -1)
        found = self.weights.gather(-1, at).topk(k, -1)
        return found.values / self.z.unsqueeze(-1), at.gather(-1, found.indices) + self.block.keys.start


def tile_blocks(
    batch: int, heads: int, tokens: int, *, causal: bool, device: torch.device | str = "cpu"
) -> Iterator[Block]:
    """Blocks that cover the queries of a batch, each of about TILE_ELEMENTS weights; their keys are those that causality
    leaves.

    Args:
        batch, heads, tokens: of the queries.
        causal: a query sees no later key.
        device: where they are; an accelerator takes larger tiles.
    """
    room = TILE_ELEMENTS * (1 if torch.device(device).type == "cpu" else DEVICE_TILES)
    together = min(batch, max(1, room // max(1, heads * tokens * tokens)))  # short sequences, several at a time
    queries = list(query_blocks(together * heads, tokens, tokens, AttentionRule(causal), room))
    for low in range(0, batch, together):
        rows = slice(low, min(batch, low + together))
        for start, end in queries:
            yield Block(rows, slice(start, end), slice(0, end if causal else tokens))


class Scratch:
    """Room for the tables of a tile, which the next tile takes again: memory anew for each costs more than its arithmetic."""

    def __init__(self) -> None:
        self._rooms: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Room of a shape, of like's dtype and device; what lay in it is lost."""
        n = math.prod(shape)
        room = self._rooms.get(name)
        if room is None or len(room) < n or (room.dtype, room.device) != (like.dtype, like.device):
            room = self._rooms[name] = like.new_empty(n)
        return room[:n].view(shape)


@torch.no_grad()
def attention_tile(
    q: Tensor,
    k: Tensor,
    rule: AttentionRule,
    block: Block,
    mask: Tensor | None = None,
    scratch: Scratch | None = None,
) -> AttentionTile:
    """The weights of one layer in one block.

    Args:
        q: [B, H, T, e] of a whole batch, after any rotary embedding.
        k: [B, K, T, e], K a divisor of H.
        rule: of the layer.
        block: from `tile_blocks`.
        mask: bool [B, 1 or H, T, T], True = may attend (padding), or None.
        scratch: where the weights are put; a tile is over when the next one takes the same room.

    No gradients go through it.

    Raises:
        KernelError: queries and keys of different lengths, heads that kv heads do not divide, or learned sinks.

    Example:
        >>> from attlas.kernels import AttentionRule
        >>> from attlas.kernels.attention_tiles import attention_tile, tile_blocks
        >>> q, k = torch.randn(2, 6, 10, 32), torch.randn(2, 6, 10, 32)  # [B, heads, T, d_head]
        >>> blocks = tile_blocks(2, 6, 10, causal=True)
        >>> tiles = [attention_tile(q, k, AttentionRule(causal=True), block) for block in blocks]
        >>> tiles[0].entropy.shape  # nats, [sequences of the block, heads, queries]
        torch.Size([2, 6, 10])
    """
    n_heads, n_kv = q.shape[1], k.shape[1]
    require(rule.sinks is None, "tiles do not know learned sinks; attention_stats does")
    require(q.shape[2] == k.shape[2], f"{q.shape[2]} queries and {k.shape[2]} keys: want as many of both")
    require(n_kv > 0 and n_heads % n_kv == 0, f"{n_heads} heads do not share {n_kv} kv heads evenly")
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    queries = q[block.rows, :, block.queries].to(dtype) * rule.scaled(q.shape[-1])
    keys = k[block.rows, :, block.keys].to(dtype)
    n, _, n_queries, width = queries.shape
    room = scratch or Scratch()
    shape = (n * n_kv, n_heads // n_kv * n_queries, keys.shape[2])
    product = torch.bmm(
        queries.reshape(*shape[:2], width), keys.flatten(0, 1).mT, out=room.take("logits", shape, queries)
    )
    logits = rule.capped(product).view(n, n_heads, n_queries, -1)
    _close(logits, rule, block, mask)
    rest = logits[..., 1:] if block.keys.start == 0 else logits
    off_peak = rest.amax(-1) if rest.shape[-1] else torch.full_like(logits[..., 0], _CLOSED)
    peak = torch.maximum(off_peak, logits[..., 0]) if block.keys.start == 0 else off_peak
    logits -= peak.unsqueeze(-1)
    weights = torch.exp(logits, out=room.take("weights", tuple(logits.shape), logits))
    empty = peak <= _CLOSED / 2
    if bool(empty.any()):
        weights.masked_fill_(empty.unsqueeze(-1), 0)
    z = weights.sum(-1)
    moment = torch.mul(weights, logits, out=logits).sum(-1)
    off_sink = torch.where(empty, 0, (off_peak - peak).exp())
    return AttentionTile(weights, torch.where(empty, 1, z), peak, moment, off_sink, block)


def _close(logits: Tensor, rule: AttentionRule, block: Block, mask: Tensor | None) -> None:
    """Give the logits that rule or mask forbid no weight, in place."""
    if rule.sliding_window is not None:
        at = torch.arange(block.keys.stop, device=logits.device)
        logits.masked_fill_(~rule.allowed(at[block.queries], at[block.keys]), _CLOSED)
    elif rule.causal:  # every query sees what lies before the block
        start = block.queries.start - block.keys.start
        within = logits[..., start:]
        closed = torch.ones(within.shape[-2:], dtype=torch.bool, device=logits.device).triu_(1)
        within.masked_fill_(closed, _CLOSED)
    if mask is not None:
        logits.masked_fill_(~mask[block.rows, :, block.queries, block.keys], _CLOSED)
