"""Attention statistics straight from queries and keys, with no T×T matrix (entropy: Zhai et al. 2023, arXiv 2303.06296).

Queries are taken a block at a time; a block meets all keys its layer's rule lets it see, its logits live in one tile of
bounded size, and each statistic is a number per query. Memory is O(T) whatever the length. Logits and sums are float32
(float64 for float64 input). A query with no key to attend to has entropy, masses, maximum and distance 0 and n_keys 0.
Shapes: B batch, H heads, K kv heads, T queries, S keys, e head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attlas.kernels.attention_rule import AttentionRule
from attlas.kernels.dispatch import or_torch, require, require_like, use_triton

# Logits in one tile, over batch rows, heads and queries (never fewer than one query): what a core's cache holds, or an
# accelerator's many at once.
TILE_ELEMENTS = 1 << 16
DEVICE_TILES = 64

Ints = int | Sequence[int]


@dataclass(frozen=True)
class AttentionStats:
    """Per query, [B, H, T] each, float32. Masses are sums of attention weights, within 0 … 1."""

    entropy: Tensor
    """−Σ a·log a, nats."""
    max_weight: Tensor
    sink_mass: Tensor
    """On key 0."""
    diagonal: Tensor
    """On the query's own position."""
    previous_token: Tensor
    """On the position before."""
    mean_distance: Tensor
    """Σ a·|i − j|, positions."""
    n_keys: Tensor
    """How many keys the query may attend to, int64."""
    spread: Tensor
    """‖u − mean(u)‖ over the attendable logits u: the s of the entropy's lower bound."""
    log_z: Tensor
    """log Σ exp(logit)."""
    window_masses: dict[int, Tensor] = field(default_factory=dict)
    """w → mass on keys with |i − j| < w (causal: the last w positions, the query's own among them)."""
    top_k_masses: dict[int, Tensor] = field(default_factory=dict)
    """n → mass of the n largest weights."""
    induction: Tensor | None = None
    """Mass on positions j + 1 where token j is the query's token, j not the query; with `token_ids` alone."""
    duplicate: Tensor | None = None
    """Mass on other positions that hold the query's token; with `token_ids` alone."""
    column_mass: Tensor | None = None
    """[B, H, S]: Σ over queries of the mass each key receives; with `column=True` alone."""

    @property
    def window_mass(self) -> Tensor:
        """Mass within the first window asked for."""
        return next(iter(self.window_masses.values()))

    @property
    def top_k_mass(self) -> Tensor | None:
        """Mass of the first top-k asked for, or None."""
        return next(iter(self.top_k_masses.values()), None)

    @property
    def normalized_entropy(self) -> Tensor:
        """entropy / log(n_keys); NaN for queries with fewer than two keys, which a mean should leave out."""
        return torch.where(self.n_keys > 1, self.entropy / self.n_keys.to(self.entropy.dtype).log(), math.nan)

    @property
    def lower_bound(self) -> Tensor:
        """Theorem 3.1 of the paper per query, with s = spread: nats, never above the entropy (but for rounding)."""
        n = self.n_keys.to(self.spread.dtype).clamp(min=2)
        beta = torch.exp(-self.spread * (n / (n - 1)).sqrt())
        rest = (n - 1) * beta
        bound = torch.log1p(rest) + self.spread * (n * (n - 1)).sqrt() * beta / (1 + rest)
        return torch.where(self.n_keys > 1, bound, 0)

    def per_query(self) -> dict[str, Tensor]:
        """Every per-query statistic by name, each [B, H, T]."""
        found = {name: getattr(self, name) for name in _PLAIN}
        found["normalized_entropy"], found["lower_bound"] = self.normalized_entropy, self.lower_bound
        found |= {f"window_mass_{w}": mass for w, mass in self.window_masses.items()}
        found |= {f"top_{n}_mass": mass for n, mass in self.top_k_masses.items()}
        found |= {n: t for n in ("induction", "duplicate") if (t := getattr(self, n)) is not None}
        return found

    def reduce(self, queries: Tensor | None = None) -> dict[str, Tensor]:
        """Mean per head, [H], over batch and queries (bool [T] or [B, T] picks some). Queries with no key are left out,
        as are those with one from the normalised entropy; a head with nothing left has NaN."""
        valid = self.n_keys > 0
        if queries is not None:
            valid = valid & (queries[None, None] if queries.dim() == 1 else queries[:, None])
        return {
            name: torch.where(valid, value.to(self.entropy.dtype), math.nan).transpose(0, 1).flatten(1).nanmean(-1)
            for name, value in self.per_query().items()
        }


_PLAIN = (
    *("entropy", "max_weight", "sink_mass", "diagonal", "previous_token", "mean_distance"),
    *("n_keys", "spread", "log_z"),
)
_FIELDS = (*(name for name in _PLAIN if name != "n_keys"), "induction", "duplicate")


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
        rule: of the layer: causality, sliding window, scale.
        mask: what the input adds (padding), broadcastable to [B, H, T, S]; bool (True = may attend) or additive (−inf =
            may not).
        token_ids: [B, S] (or [S]) int; gives `induction` and `duplicate`.
        window: one width or several, of `window_masses`.
        top_k: one n or several, or None.
        column: also sum over queries, per key.

    Raises:
        KernelError: shapes, dtypes or devices that do not fit.
    """
    windows, tops = _ints(window), _ints(top_k)
    _check(q, k, rule.causal, token_ids, windows, tops)
    if token_ids is not None:
        token_ids = token_ids.expand(q.shape[0], k.shape[2])
    with torch.no_grad():
        if use_triton(q) and mask is None and not tops and 0 < len(windows) <= 4 and q.shape[-1] <= 256 and q.numel():
            from attlas.kernels.attention_stats_triton import attention_stats_triton

            return or_torch(
                lambda: attention_stats_triton(q, k, rule, token_ids, windows, column),
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


def _blocks(n_heads: int, T: int, S: int, rule: AttentionRule, room: int) -> Iterator[tuple[int, int]]:
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
    names = [*_PLAIN, *(("induction", "duplicate") if token_ids is not None else ())]
    names += [f"w{w}" for w in windows] + [f"t{n}" for n in tops]
    out = {name: q.new_zeros(B, H, T, dtype=dtype) for name in names}
    columns = q.new_zeros(B, H, S, dtype=dtype) if column else None
    full_mask = None if mask is None else mask.expand(B, H, T, S)
    room = TILE_ELEMENTS * (1 if q.device.type == "cpu" else DEVICE_TILES)
    together = max(1, room // max(1, H * T * S))  # short sequences, several at a time
    shift = rule.first_position(T, S)
    for b in range(0, B, together):
        rows = slice(b, min(B, b + together))
        n = rows.stop - rows.start
        keys = k[rows].to(dtype).mT  # [n, K, e, S]
        for start, end in _blocks(n * H, T, S, rule, room):
            low, high = rule.span(start + shift, end - 1 + shift, S)
            queries = (q[rows, :, start:end].to(dtype) * rule.scaled(e)).reshape(n, K, H // K * (end - start), e)
            logits = (queries @ keys[..., low:high]).view(n, H, end - start, high - low)
            part = None if full_mask is None else full_mask[rows, :, start:end, low:high]
            tile = _Tile(logits, rule, start + shift, low, part)
            found = tile.measure(windows, tops)
            if token_ids is not None:
                found |= tile.token_masses(token_ids[rows])
            for name, value in found.items():
                out[name][rows, :, start:end] = value
            if columns is not None:
                columns[rows, :, low:high] += tile.column_mass()
    n_keys = out.pop("n_keys").long()
    return AttentionStats(
        **{name: out[name] for name in names if name in _FIELDS},
        n_keys=n_keys,
        window_masses={w: out[f"w{w}"] for w in windows},
        top_k_masses={n: out[f"t{n}"] for n in tops},
        column_mass=columns,
    )


class _Tile:
    """Logits [n, H, R, S] of R queries from position `first`, and S keys from `low`; overwritten on the way.

    Passes over the tile are what this costs, so sums are taken of unnormalised weights and divided after.
    """

    def __init__(self, logits: Tensor, rule: AttentionRule, first: int, low: int, mask: Tensor | None) -> None:
        n, H, R, S = logits.shape
        self.rule, self.first, self.low = rule, first, low
        self.position = torch.arange(first, first + R, device=logits.device)
        self.keys = torch.arange(low, low + S, device=logits.device)
        self.closed: Tensor | None = None
        if mask is not None:
            open_ = mask if mask.dtype == torch.bool else mask > -math.inf
            if mask.dtype != torch.bool:
                logits += torch.where(open_, mask, 0)
            self.closed = ~open_
            self.n_keys = (open_ & rule.allowed(self.position, self.keys)).sum(-1).to(logits.dtype)
        else:
            self.n_keys = rule.n_keys(self.position, low + S).to(logits.dtype).expand(n, H, R)
        self.empty = self.n_keys == 0
        count = self.n_keys.clamp(min=1).unsqueeze(-1)
        self._close(logits)
        mean = logits.sum(-1, keepdim=True) / count
        logits -= mean
        self._close(logits)
        self.spread = torch.linalg.vector_norm(logits, dim=-1)
        # the mean is 0 now, so the zeros of closed keys never stand above the largest logit
        peak = logits.amax(-1, keepdim=True) if S else mean
        logits -= peak
        self.weights = self._close(logits.exp())  # up to the factor `inverse`
        z = self.weights.sum(-1)
        self.inverse = torch.where(self.empty, 0, 1 / z)
        self.log_z = torch.where(self.empty, -math.inf, z.log() + (peak + mean).squeeze(-1))
        moment = torch.mul(self.weights, logits, out=logits).sum(-1)
        self.entropy = torch.where(self.empty, 0, z.log() - moment * self.inverse).clamp(min=0)
        self.spare = logits

    def _close(self, tile: Tensor) -> Tensor:
        """Set what may not be attended to 0, in place."""
        ahead, reach = self.first - self.low, self.rule.sliding_window
        if self.rule.causal:
            tile.tril_(ahead)
        elif reach is not None:
            tile.tril_(ahead + reach - 1)
        if reach is not None:
            tile.triu_(ahead - reach + 1)
        return tile if self.closed is None else tile.masked_fill_(self.closed, 0)

    def _mass(self, factor: Tensor, span: slice = slice(None)) -> Tensor:
        """Σ over keys (of a span) of weight · factor, [n, H, R]."""
        weights = self.weights[..., span]
        return torch.mul(weights, factor, out=self.spare[..., span]).sum(-1) * self.inverse

    def _at(self, keys: Tensor) -> Tensor:
        """Weight on one key a query."""
        S = self.weights.shape[-1]
        at = keys - self.low
        if S == 0:
            return torch.zeros_like(self.entropy)
        index = at.clamp(0, S - 1).expand_as(self.entropy).unsqueeze(-1)
        return self.weights.gather(-1, index).squeeze(-1) * self.inverse * ((at >= 0) & (at < S))

    def measure(self, windows: tuple[int, ...], tops: tuple[int, ...]) -> dict[str, Tensor]:
        """Every statistic that needs no tokens, [n, H, R] each."""
        dtype = self.weights.dtype
        distance = (self.position.unsqueeze(-1) - self.keys).abs()
        found = {
            "n_keys": self.n_keys,
            "log_z": self.log_z,
            "entropy": self.entropy,
            "max_weight": self.inverse,  # the largest weight is e⁰ / Z
            "sink_mass": self._at(torch.zeros_like(self.position)),
            "diagonal": self._at(self.position),
            "previous_token": self._at(self.position - 1),
            "mean_distance": self._mass(distance.to(dtype)),
            "spread": self.spread,
        }
        last = self.first + len(self.position) - 1
        for w in windows:
            near = slice(max(0, self.first - w + 1 - self.low), max(0, last + w - self.low))
            found[f"w{w}"] = self._mass((distance[:, near] < w).to(dtype), near)
        if tops:
            S = self.weights.shape[-1]
            largest = self.weights.topk(min(max(tops), S), dim=-1).values.cumsum(-1) * self.inverse.unsqueeze(-1)
            for t in tops:
                found[f"t{t}"] = largest[..., min(t, S) - 1] if S else torch.zeros_like(self.entropy)
        return found

    def token_masses(self, tokens: Tensor) -> dict[str, Tensor]:
        """Induction and duplicate-token mass. Queries beyond the keys have no token and get 0."""
        n_tokens, dtype = tokens.shape[1], self.weights.dtype
        own = tokens[:, self.position.clamp(max=n_tokens - 1)].unsqueeze(-1)  # [n, R, 1]
        inside = (self.position < n_tokens).unsqueeze(-1)
        found = {}
        for name, keys in (("duplicate", self.keys), ("induction", self.keys - 1)):
            there = tokens[:, keys.clamp(min=0)].unsqueeze(1)  # [n, 1, S]
            chosen = (own == there) & inside & (keys >= 0) & (keys != self.position.unsqueeze(-1))
            found[name] = self._mass(chosen.to(dtype).unsqueeze(1))
        return found

    def column_mass(self) -> Tensor:
        """Σ over queries of the mass on each key, [n, H, S]."""
        return (self.inverse.unsqueeze(-2) @ self.weights).squeeze(-2)
