"""Attention statistics straight from queries and keys, with no T×T matrix (entropy: Zhai et al. 2023, arXiv 2303.06296).

Queries are taken a block at a time; a block is multiplied with all keys its layer's rule lets it see, its logits are in a tile
of bounded size, and each statistic is a number per query. Memory is O(T) whatever the length. Logits and sums are float32
(float64 for float64 input). A query with no key to attend to has entropy, masses, maximum and distance 0 and n_keys 0.
Shapes: B batch, H heads, K kv heads, T queries, S keys, e head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from attlas.kernels.attention_rule import AttentionRule
from attlas.kernels.cpu.crew import share
from attlas.kernels.dispatch import or_torch, require, require_like, use_triton
from attlas.kernels.results import AttentionStats

# Logits in one tile, over batch rows, heads and queries (never fewer than one query); more on an accelerator.
TILE_ELEMENTS = 1 << 18
DEVICE_TILES = 16
CLOSED = -1e30
"""An additive mask down to this closes its key."""

Ints = int | Sequence[int]


_FIELDS = ("sink_mass", "diagonal", "previous_token", "mean_distance", "induction", "duplicate")


def attention_stats(
    q: Tensor,
    k: Tensor,
    rule: AttentionRule,
    *,
    mask: Tensor | None = None,
    token_ids: Tensor | None = None,
    window: Ints = 8,
    top_k: Ints | None = None,
    column: bool = False,
) -> AttentionStats:
    """Statistics of softmax(scale·q·kᵀ + mask) for every query, over the keys that rule and mask allow.

    Args:
        q: [B, H, T, e], after any rotary embedding.
        k: [B, K, S, e], K a divisor of H (query head h reads kv head h // (H / K)). T ≤ S when causal; the T queries
            are then the last T positions.
        rule: of the layer: causality, sliding window, scale, cap, learned sinks (these on the torch path).
        mask: what the input adds (padding), broadcastable to [B, H, T, S]; bool (True = may attend) or additive (−inf =
            may not, and so is anything down to −1e30: models write the least number of float32 or bfloat16 for it).
        token_ids: [B, S] (or [S]) int; gives `induction` and `duplicate`.
        window: one width or several, of `window_masses`.
        top_k: one n or several, or None.
        column: also sum over queries, per key.

    Raises:
        KernelError: shapes, dtypes or devices that do not fit.

    Example:
        >>> from attlas.kernels import AttentionRule, attention_stats
        >>> q, k = torch.randn(2, 6, 10, 32), torch.randn(2, 6, 10, 32)  # [B, heads, T, d_head]
        >>> stats = attention_stats(q, k, AttentionRule(causal=True), window=4)
        >>> stats.entropy.shape  # nats, [B, heads, queries]
        torch.Size([2, 6, 10])
        >>> bool((stats.window_mass <= 1 + 1e-5).all())
        True
    """
    windows, tops = _ints(window), _ints(top_k)
    _check(q, k, rule.causal, token_ids, windows, tops)
    if token_ids is not None:
        token_ids = token_ids.expand(q.shape[0], k.shape[2])
    with torch.no_grad():
        if use_triton(q) and q.numel() and rule.sinks is None:
            from attlas.kernels.attention_stats_triton import attention_stats_triton, fits

            if fits(q.shape[-1], windows, tops):
                return or_torch(
                    lambda: attention_stats_triton(q, k, rule, mask, token_ids, windows, tops, column),
                    lambda: _stats_torch(q, k, rule, mask, token_ids, windows, tops, column),
                )
        return _stats_torch(q, k, rule, mask, token_ids, windows, tops, column)


def _ints(value: Ints | None) -> tuple[int, ...]:
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)


def _check(
    q: Tensor, k: Tensor, causal: bool, token_ids: Tensor | None, windows: tuple[int, ...], tops: tuple[int, ...]
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}"
    require(q.dim() == 4 and k.dim() == 4, f"{shapes}: want [B, H, T, e] and [B, K, S, e]")
    require_like(q, k=k)
    require(q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3], f"{shapes}: batch or head width differ")
    require(k.shape[1] > 0 and q.shape[1] % k.shape[1] == 0, f"{shapes}: kv heads must divide the heads")
    require(not causal or q.shape[2] <= k.shape[2], f"{shapes}: causal attention needs as many keys as queries")
    require(all(w > 0 for w in windows) and all(n > 0 for n in tops), "window and top_k must be positive")
    if token_ids is not None:
        require(token_ids.shape[-1] == k.shape[2], f"token_ids {tuple(token_ids.shape)} do not cover {k.shape[2]} keys")
        require(token_ids.device == q.device, f"token_ids are on {token_ids.device}, q on {q.device}")


def query_blocks(n_heads: int, T: int, S: int, rule: AttentionRule, room: int) -> Iterator[tuple[int, int]]:
    """(first query, end of queries) of each block; blocks that see few keys take more queries."""
    start, shift = 0, rule.first_position(T, S)
    room = max(1, room // max(1, n_heads))
    while start < T:
        low, high = rule.span(start + shift, start + shift, S)
        seen = max(0, high - low - 1)
        # each further query sees one key more where there is a rule, rows · (seen + rows) ≤ room; else all see the same
        limited = rule.causal or rule.sliding_window is not None
        rows = int((math.sqrt(seen * seen + 4 * room) - seen) / 2) if limited else room // max(1, S)
        end = min(T, start + max(1, rows))
        yield start, end
        start = end


def _stats_torch(
    q: Tensor,
    k: Tensor,
    rule: AttentionRule,
    mask: Tensor | None,
    token_ids: Tensor | None,
    windows: tuple[int, ...],
    tops: tuple[int, ...],
    column: bool,
) -> AttentionStats:
    B, H, T, e = q.shape
    K, S = k.shape[1], k.shape[2]
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    require(rule.sinks is None or rule.sinks.shape == (H,), f"sinks must be one a head, [{H}]")
    masses = ["sink_mass", "diagonal", "previous_token", "mean_distance"]
    masses += ["induction", "duplicate"] if token_ids is not None else []
    masses += [f"w{w}" for w in windows] + [f"t{n}" for n in tops]
    raw = {name: q.new_zeros(B, H, T, dtype=dtype) for name in (*_RAW, *masses)}
    raw |= {} if rule.sinks is None else {"mean": q.new_zeros(B, H, T, dtype=dtype)}
    columns = q.new_zeros(B, H, S, dtype=dtype) if column else None
    full_mask = None if mask is None else mask.expand(B, H, T, S)
    tokens = None if token_ids is None else token_ids.to(torch.int32)
    room = TILE_ELEMENTS * (1 if q.device.type == "cpu" else DEVICE_TILES)
    together = min(B, max(1, room // max(1, H * T * S)))  # short sequences, several at a time

    def work(blocks: Iterable[tuple[int, int]], batches: Iterable[int]) -> None:
        for start, end in blocks:
            block = _Block(rule, start, end, T, S, windows, dtype, q.device)
            for b in batches:
                rows = slice(b, min(B, b + together))
                n = rows.stop - b
                queries = (q[rows, :, start:end].to(dtype) * rule.scaled(e)).reshape(n, K, H // K * (end - start), e)
                logits = rule.capped(queries @ k[rows, :, block.keys].to(dtype).mT).view(n, H, end - start, -1)
                part = None if full_mask is None else full_mask[rows, :, start:end, block.keys]
                tile = _Tile(logits, block, part)
                found = tile.raw | tile.masses(windows, tops)
                if tokens is not None:
                    found |= tile.token_masses(tokens[rows])
                for name, value in found.items():
                    raw[name][rows, :, start:end] = value
                if columns is not None:
                    columns[rows, :, block.keys] += tile.column_mass()

    blocks, batches = list(query_blocks(together * H, T, S, rule, room)), range(0, B, together)
    if q.device.type != "cpu":
        work(blocks, batches)
    elif columns is None:
        share(blocks, lambda block: work([block], batches), float(B) * H * T * S * e)
    else:  # blocks add to the same columns
        share(batches, lambda b: work(blocks, [b]), float(B) * H * T * S * e)
    empty = raw["n_keys"] == 0
    inverse = torch.where(empty, 0, 1 / raw["z"])
    scaled = {name: raw[name] * inverse for name in masses}
    log_z = raw["z"].log()
    found = AttentionStats(
        entropy=torch.where(empty, 0, log_z - raw["moment"] * inverse).clamp(min=0),
        max_weight=inverse,  # the largest weight is e⁰ / Z
        n_keys=raw["n_keys"].long(),
        spread=raw["spread"],
        log_z=torch.where(empty, -math.inf, log_z + raw["peak"]),
        **{name: scaled[name] for name in masses if name in _FIELDS},
        window_masses={w: scaled[f"w{w}"] for w in windows},
        top_k_masses={n: scaled[f"t{n}"] for n in tops},
        column_mass=columns,
    )
    return found if rule.sinks is None else found.beside(rule.sinks, rule.on_keys(found.log_z), raw["mean"])


_RAW = ("n_keys", "peak", "spread", "z", "moment")


class _Block:
    """Where a block of queries and the keys it may see lie: what all sequences share."""

    def __init__(
        self,
        rule: AttentionRule,
        start: int,
        end: int,
        T: int,
        S: int,
        windows: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.rule, self.n_keys = rule, S
        self.first = start + rule.first_position(T, S)
        last = self.first + end - start - 1
        low, high = rule.span(self.first, last, S)
        self.keys, self.ahead = slice(low, high), self.first - low
        self.position = torch.arange(self.first, last + 1, device=device)
        self.key = torch.arange(low, high, device=device)
        self.distance = (self.position.unsqueeze(-1) - self.key).abs().to(dtype)
        self.near = []
        for w in windows:
            span = slice(max(0, self.first - w + 1 - low), max(0, last + w - low))
            self.near.append((span, (self.distance[:, span] < w).to(dtype)))

    def close(self, tile: Tensor) -> Tensor:
        """Set what the rule does not allow to 0, in place."""
        reach = self.rule.sliding_window
        if self.rule.causal:
            tile.tril_(self.ahead)
        elif reach is not None:
            tile.tril_(self.ahead + reach - 1)
        return tile if reach is None else tile.triu_(self.ahead - reach + 1)


class _Tile:
    """Logits [n, H, R, S] of a block; overwritten on the way.

    Passes over the tile are what this costs. Sums are taken of weights up to their Z, and divided when all are there.
    """

    def __init__(self, logits: Tensor, block: _Block, mask: Tensor | None) -> None:
        n, H, R, S = logits.shape
        self.block = block
        self.closed: Tensor | None = None
        if mask is not None:
            open_ = mask if mask.dtype == torch.bool else mask > CLOSED
            if mask.dtype != torch.bool:
                logits += torch.where(open_, mask, 0)
            self.closed = ~open_
            n_keys = (open_ & block.rule.allowed(block.position, block.key)).sum(-1).to(logits.dtype)
        else:
            n_keys = block.rule.n_keys(block.position, block.n_keys).to(logits.dtype).expand(n, H, R)
        self._close(logits)
        mean = logits.sum(-1, keepdim=True) / n_keys.clamp(min=1).unsqueeze(-1)
        logits -= mean
        self._close(logits)
        spread = torch.linalg.vector_norm(logits, dim=-1)
        # the mean is 0 now, so the zeros of closed keys never stand above the largest logit
        peak = logits.amax(-1, keepdim=True) if S else mean
        logits -= peak
        self.weights = self._close(logits.exp())
        self.z = self.weights.sum(-1)
        moment = torch.mul(self.weights, logits, out=logits).sum(-1)
        self.spare = logits
        self.raw = {
            "n_keys": n_keys,
            "peak": (peak + mean).squeeze(-1),
            "spread": spread,
            "z": self.z,
            "moment": moment,
        }
        if block.rule.sinks is not None:
            self.raw["mean"] = mean.squeeze(-1)

    def _close(self, tile: Tensor) -> Tensor:
        tile = self.block.close(tile)
        return tile if self.closed is None else tile.masked_fill_(self.closed, 0)

    def _mass(self, factor: Tensor, span: slice = slice(None)) -> Tensor:
        """Σ over keys (of a span) of weight · factor, [n, H, R]."""
        return torch.mul(self.weights[..., span], factor, out=self.spare[..., span]).sum(-1)

    def _behind(self, steps: int) -> Tensor:
        """Weight on the key so many positions before each query, [n, H, R]; 0 where there is none."""
        found = torch.zeros_like(self.z)
        offset = self.block.ahead - steps  # key column of the first query
        R, S = self.weights.shape[-2:]
        first, end = max(0, -offset), min(R, S - offset)
        if first < end:
            found[..., first:end] = self.weights.diagonal(offset, -2, -1)
        return found

    def masses(self, windows: tuple[int, ...], tops: tuple[int, ...]) -> dict[str, Tensor]:
        """Sums that need no tokens, [n, H, R] each, up to Z."""
        sink = self.block.keys.start == 0 and self.weights.shape[-1] > 0
        found = {
            "sink_mass": self.weights[..., 0] if sink else torch.zeros_like(self.z),
            "diagonal": self._behind(0),
            "previous_token": self._behind(1),
            "mean_distance": self._mass(self.block.distance),
        }
        for w, (span, near) in zip(windows, self.block.near, strict=True):
            found[f"w{w}"] = self._mass(near, span)
        if tops:
            S = self.weights.shape[-1]
            largest = self.weights.topk(min(max(tops), S), dim=-1).values.cumsum(-1)
            for t in tops:
                found[f"t{t}"] = largest[..., min(t, S) - 1] if S else torch.zeros_like(self.z)
        return found

    def token_masses(self, tokens: Tensor) -> dict[str, Tensor]:
        """Induction and duplicate-token mass, up to Z. Queries beyond the keys have no token and get 0."""
        n_tokens, block, found = tokens.shape[1], self.block, {}
        own = tokens[:, block.position.clamp(max=n_tokens - 1)].unsqueeze(-1)  # [n, R, 1]
        for step, name in enumerate(("duplicate", "induction")):
            there = tokens[:, (block.key - step).clamp(min=0)].unsqueeze(1)  # [n, 1, S]
            chosen = own == there
            chosen.diagonal(block.ahead + step, -2, -1).fill_(False)  # that copy is the query itself
            if step and block.keys.start == 0:
                chosen[..., :1] = False  # nothing stands before the first token
            if block.first + len(block.position) > n_tokens:
                chosen[:, max(0, n_tokens - block.first) :] = False
            found[name] = self._mass(chosen.to(self.weights.dtype).unsqueeze(1))
        return found

    def column_mass(self) -> Tensor:
        """Σ over queries of the mass on each key, [n, H, S]."""
        share = self.block.rule.on_keys(self.z.log() + self.raw["peak"])
        inverse = torch.where(self.raw["n_keys"] == 0, 0, share / self.z)
        return (inverse.unsqueeze(-2) @ self.weights).squeeze(-2)
