"""Attention statistics straight from queries and keys, with no T×T matrix (entropy: Zhai et al. 2023, arXiv 2303.06296).

Queries are taken a block at a time; a block meets all keys it may attend to, its logits live in one tile of bounded size,
and each statistic is a number per query. Memory is O(T) whatever the length. Logits and sums are float32 (float64 for
float64 input). A query with no key to attend to has entropy, masses, maximum and distance 0 and n_keys 0.
Shapes: B batch, H heads, K kv heads, T queries, S keys, e head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attlas.kernels.dispatch import or_torch, require, require_like, use_triton

# Logits in one tile, over all heads of one batch row and a block of queries (never fewer than one query).
TILE_ELEMENTS = 1 << 20

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


def attention_stats(
    q: Tensor,
    k: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    mask: Tensor | None = None,
    token_ids: Tensor | None = None,
    window: Ints = 8,
    top_k: Ints | None = None,
    column: bool = False,
) -> AttentionStats:
    """Statistics of softmax(scale·q·kᵀ + mask) for every query.

    Args:
        q: [B, H, T, e], after any rotary embedding.
        k: [B, K, S, e], K a divisor of H (query head h reads kv head h // (H / K)). T ≤ S when causal; the T queries
            are then the last T positions.
        causal: query i attends to keys j ≤ i alone.
        scale: default 1/√e.
        mask: broadcastable to [B, H, T, S]; bool (True = may attend) or additive (−inf = may not).
        token_ids: [B, S] (or [S]) int; gives `induction` and `duplicate`.
        window: one width or several.
        top_k: one n or several, or None.
        column: also sum over queries, per key.

    Raises:
        KernelError: shapes, dtypes or devices that do not fit.
    """
    windows, tops = _ints(window), _ints(top_k)
    _check(q, k, causal, token_ids, windows, tops)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if token_ids is not None:
        token_ids = token_ids.expand(q.shape[0], k.shape[2])
    with torch.no_grad():
        if use_triton(q) and mask is None and not tops and 0 < len(windows) <= 4 and q.shape[-1] <= 256 and q.numel():
            from attlas.kernels.attention_stats_triton import attention_stats_triton

            return or_torch(
                lambda: attention_stats_triton(q, k, causal, scale, token_ids, windows, column),
                lambda: _stats_torch(q, k, causal, scale, mask, token_ids, windows, tops, column),
            )
        return _stats_torch(q, k, causal, scale, mask, token_ids, windows, tops, column)


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


def _blocks(n_heads: int, T: int, S: int, causal: bool) -> Iterator[tuple[int, int, int]]:
    """(first query, end of queries, end of keys) of each block; early causal blocks see few keys and take more queries."""
    start = 0
    while start < T:
        offset = S - T
        rows = max(1, TILE_ELEMENTS // max(1, n_heads * S))
        if causal:  # rows · (start + offset + rows) · heads ≤ tile
            room = TILE_ELEMENTS / max(1, n_heads)
            seen = start + offset
            rows = max(1, int((math.sqrt(seen * seen + 4 * room) - seen) / 2))
        end = min(T, start + rows)
        yield start, end, min(S, end + offset) if causal else S
        start = end


def _stats_torch(
    q: Tensor,
    k: Tensor,
    causal: bool,
    scale: float,
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
    out = {name: q.new_zeros(B, H, T, dtype=dtype) for name in names}
    out |= {f"w{w}": q.new_zeros(B, H, T, dtype=dtype) for w in windows}
    out |= {f"t{n}": q.new_zeros(B, H, T, dtype=dtype) for n in tops}
    columns = q.new_zeros(B, H, S, dtype=dtype) if column else None
    full_mask = None if mask is None else mask.expand(B, H, T, S)
    for b in range(B):
        keys = k[b].to(dtype)  # [K, S, e]
        for start, end, stop in _blocks(H, T, S, causal):
            queries = (q[b, :, start:end].to(dtype) * scale).reshape(K, H // K * (end - start), e)
            logits = torch.bmm(queries, keys[:, :stop].mT).view(H, end - start, stop)
            allowed = _restrict(
                logits, causal, start + S - T, None if full_mask is None else full_mask[b, :, start:end, :stop]
            )
            position = torch.arange(start + S - T if causal else start, end + S - T if causal else end, device=q.device)
            found, weights = _block_stats(logits, allowed, position, windows, tops)
            if token_ids is not None:
                found |= _token_stats(weights, token_ids[b, :stop], token_ids[b], position)
            for name, value in found.items():
                out[name][b, :, start:end] = value
            if columns is not None:
                columns[b, :, :stop] += weights.sum(1)
    n_keys = out.pop("n_keys").long()
    return AttentionStats(
        **{name: out[name] for name in names if name != "n_keys"},
        n_keys=n_keys,
        window_masses={w: out[f"w{w}"] for w in windows},
        top_k_masses={n: out[f"t{n}"] for n in tops},
        column_mass=columns,
    )


def _restrict(logits: Tensor, causal: bool, first: int, mask: Tensor | None) -> Tensor | None:
    """Set logits that may not be attended to −inf, in place; return which may (None: all)."""
    allowed = None
    if causal and logits.shape[1] > 0:
        rows, columns = logits.shape[1:]
        allowed = torch.ones(rows, columns, dtype=torch.bool, device=logits.device).tril(first)
    if mask is not None:
        open_ = mask if mask.dtype == torch.bool else mask > -math.inf
        if mask.dtype != torch.bool:
            logits += torch.where(open_, mask, 0)
        allowed = open_ if allowed is None else allowed & open_
    if allowed is not None:
        logits.masked_fill_(~allowed, -math.inf)
    return allowed


def _block_stats(
    logits: Tensor, allowed: Tensor | None, position: Tensor, windows: tuple[int, ...], tops: tuple[int, ...]
) -> tuple[dict[str, Tensor], Tensor]:
    """Statistics of one tile of logits [H, R, S]; also the weights, for sums that need other inputs."""
    H, R, S = logits.shape
    n = logits.new_full((H, R), S) if allowed is None else allowed.sum(-1).to(logits.dtype).expand(H, R)
    if S == 0:
        zero = logits.new_zeros(H, R)
        found = dict.fromkeys((*_PLAIN, *(f"w{w}" for w in windows), *(f"t{t}" for t in tops)), zero)
        return found | {"log_z": zero - math.inf}, logits
    empty = n == 0
    peak = logits.amax(-1, keepdim=True).masked_fill(empty.unsqueeze(-1), 0)
    shifted = logits - peak
    finite = shifted if allowed is None else shifted.masked_fill(~allowed, 0)
    weights = shifted.exp()
    z = weights.sum(-1, keepdim=True)
    weights = weights / z.masked_fill(empty.unsqueeze(-1), 1)
    mean = finite.sum(-1, keepdim=True) / n.clamp(min=1).unsqueeze(-1)
    centred = finite - mean if allowed is None else (finite - mean).masked_fill(~allowed, 0)
    distance = (position.unsqueeze(-1) - torch.arange(S, device=logits.device)).abs()
    own, before = position.clamp(max=S - 1).expand(H, R), (position - 1).clamp(0, S - 1).expand(H, R)
    found = {
        "n_keys": n,
        "log_z": (z.log() + peak).squeeze(-1),
        "entropy": (z.squeeze(-1).log().masked_fill(empty, 0) - (weights * finite).sum(-1)).clamp(min=0),
        "max_weight": weights.amax(-1),
        "sink_mass": weights[..., 0],
        "diagonal": weights.gather(-1, own.unsqueeze(-1)).squeeze(-1) * (position < S),
        "previous_token": weights.gather(-1, before.unsqueeze(-1)).squeeze(-1) * ((position > 0) & (position - 1 < S)),
        "mean_distance": (weights * distance).sum(-1),
        "spread": torch.linalg.vector_norm(centred, dim=-1),
    }
    for w in windows:
        found[f"w{w}"] = (weights * (distance < w)).sum(-1)
    if tops:
        largest = weights.topk(min(max(tops), S), dim=-1).values.cumsum(-1)
        for t in tops:
            found[f"t{t}"] = largest[..., min(t, S) - 1]
    return found, weights


def _token_stats(weights: Tensor, key_tokens: Tensor, tokens: Tensor, position: Tensor) -> dict[str, Tensor]:
    """Induction and duplicate-token mass of a tile. Queries beyond the keys have no token and get 0."""
    S = key_tokens.shape[0]
    inside = position < tokens.shape[0]
    own = tokens[position.clamp(max=tokens.shape[0] - 1)]
    at = torch.arange(S, device=weights.device)
    same = (own.unsqueeze(-1) == key_tokens) & (at != position.unsqueeze(-1)) & inside.unsqueeze(-1)
    after = torch.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    return {"duplicate": (weights * same).sum(-1), "induction": (weights * after).sum(-1)}
