"""Triton attention statistics: one pass over keys per query block, with a running maximum (online softmax).

Sums of e^{s−m} and of (s−m)·e^{s−m} are rescaled when the maximum grows, so entropy = log Z − Σ(s−m)e^{s−m}/Z. Distance
and token-matched masses are further running sums. Sink mass is looked for in the first block of keys alone; windows, own
position and the one before in blocks that can hold a key that near, so most blocks pay for none of them. The centred norm
of the logits uses Chan's update of mean and squared deviation. Column mass is a second pass with log Z known.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attlas.kernels.attention_rule import AttentionRule
from attlas.kernels.dispatch import interpreting, on_device
from attlas.kernels.results import AttentionStats


@triton.jit
def _mass(e, chosen):
    return tl.sum(tl.where(chosen, e, 0.0), axis=1)


@triton.jit
def _row_kernel(
    q_ptr, k_ptr, token_ptr, out_ptr,
    H, K, T, S, E, scale, n_out,
    sqb, sqh, sqt, sqe, skb, skh, sks, ske,
    w0, w1, w2, w3, widest, reach,
    CAUSAL: tl.constexpr, LIMITED: tl.constexpr, TOKENS: tl.constexpr, WINDOWS: tl.constexpr,
    BQ: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    # One axis: a second one ends at 65,535. Causal programs with the most keys start first.
    n_blocks = tl.cdiv(T, BQ)
    bh = tl.program_id(0) // n_blocks
    first_row = (n_blocks - 1 - tl.program_id(0) % n_blocks) * BQ
    b, h = bh // H, bh % H
    kv = h // (H // K)
    rows = first_row + tl.arange(0, BQ)
    row_ok = rows < T
    e_at = tl.arange(0, BE)
    e_ok = e_at < E
    shift = 0
    if CAUSAL:
        shift = S - T
    position = rows + shift
    q_at = q_ptr + b.to(tl.int64) * sqb + h.to(tl.int64) * sqh + rows.to(tl.int64)[:, None] * sqt + e_at[None, :] * sqe
    q = tl.load(q_at, mask=row_ok[:, None] & e_ok[None, :], other=0.0)
    zero = tl.zeros((BQ,), dtype=tl.float32)
    peak = zero - float("inf")
    z, first_moment, n, mean, deviation = zero, zero, zero, zero, zero
    sink, own, before, distance = zero, zero, zero, zero
    m0, m1, m2, m3, induction, duplicate = zero, zero, zero, zero, zero, zero
    own_token = tl.zeros((BQ,), dtype=tl.int64)
    if TOKENS:
        own_token = tl.load(token_ptr + b.to(tl.int64) * S + position, mask=row_ok & (position < S), other=-1)
    stop = S
    if CAUSAL:
        stop = tl.minimum(S, first_row + BQ + shift)
    begin = 0
    if LIMITED:  # |i − j| < reach: blocks of keys out of reach are not looked at
        begin = tl.maximum(first_row + shift - reach + 1, 0) // BS * BS
        stop = tl.minimum(stop, first_row + BQ + shift + reach)
    for start in range(begin, stop, BS):
        keys = start + tl.arange(0, BS)
        key_ok = keys < S
        k_at = k_ptr + b.to(tl.int64) * skb + kv.to(tl.int64) * skh + keys.to(tl.int64)[None, :] * sks
        k = tl.load(k_at + e_at[:, None] * ske, mask=e_ok[:, None] & key_ok[None, :], other=0.0)
        s = tl.dot(q, k, input_precision="ieee") * scale
        ok = key_ok[None, :] & row_ok[:, None]
        if CAUSAL:
            ok = ok & (keys[None, :] <= position[:, None])
        if LIMITED:
            ok = ok & (tl.abs(position[:, None] - keys[None, :]) < reach)
        # centred squares: Chan's merge of (n, mean, deviation) with this block's
        n_new = tl.sum(ok.to(tl.float32), axis=1)
        block_mean = tl.sum(tl.where(ok, s, 0.0), axis=1) / tl.maximum(n_new, 1.0)
        away = tl.where(ok, s - block_mean[:, None], 0.0)
        both = tl.maximum(n + n_new, 1.0)
        delta = block_mean - mean
        deviation += tl.sum(away * away, axis=1) + delta * delta * n * n_new / both
        mean += delta * n_new / both
        n += n_new
        s = tl.where(ok, s, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(s, axis=1))
        safe = tl.where(new_peak == -float("inf"), 0.0, new_peak)
        gap = tl.where(peak == -float("inf"), 0.0, peak - safe)
        factor = tl.where(peak == -float("inf"), 0.0, tl.exp(gap))
        e = tl.exp(s - safe[:, None])
        # Σ(s − m')e^{s−m'} = factor·(Σ(s − m)e^{s−m} + (m − m')·Σe^{s−m})
        fresh = tl.sum(tl.where(ok, (s - safe[:, None]) * e, 0.0), axis=1)
        first_moment = factor * (first_moment + gap * z) + fresh
        z = z * factor + tl.sum(e, axis=1)
        peak = new_peak
        offset = position[:, None] - keys[None, :]
        distance = distance * factor + tl.sum(e * tl.abs(offset).to(tl.float32), axis=1)
        sink, own, before = sink * factor, own * factor, before * factor
        m0, m1, m2, m3 = m0 * factor, m1 * factor, m2 * factor, m3 * factor
        if start == 0:
            sink += _mass(e, (keys == 0)[None, :] & ok)
        if (start + BS + widest > first_row + shift) & (start < first_row + BQ + shift + widest):
            own += _mass(e, offset == 0)
            before += _mass(e, offset == 1)
            m0 += _mass(e, tl.abs(offset) < w0)
            if WINDOWS > 1:
                m1 += _mass(e, tl.abs(offset) < w1)
            if WINDOWS > 2:
                m2 += _mass(e, tl.abs(offset) < w2)
            if WINDOWS > 3:
                m3 += _mass(e, tl.abs(offset) < w3)
        if TOKENS:
            token = tl.load(token_ptr + b.to(tl.int64) * S + keys, mask=key_ok, other=-2)
            earlier = tl.load(token_ptr + b.to(tl.int64) * S + keys - 1, mask=key_ok & (keys > 0), other=-2)
            same = (token[None, :] == own_token[:, None]) & (offset != 0)
            after = (earlier[None, :] == own_token[:, None]) & (offset != -1)
            duplicate = duplicate * factor + _mass(e, same)
            induction = induction * factor + _mass(e, after)
    inverse = tl.where(z > 0, 1.0 / tl.where(z > 0, z, 1.0), tl.where(z == z, 0.0, z))
    log_sum = tl.log(tl.where(z > 0, z, 1.0))
    entropy = tl.where(z == z, tl.maximum(log_sum - first_moment * inverse, 0.0), z)
    at = out_ptr + bh.to(tl.int64) * n_out * T + rows
    tl.store(at, entropy, mask=row_ok)
    tl.store(at + T, inverse, mask=row_ok)  # the largest weight is e⁰/Z
    tl.store(at + 2 * T, sink * inverse, mask=row_ok)
    tl.store(at + 3 * T, own * inverse, mask=row_ok)
    tl.store(at + 4 * T, before * inverse, mask=row_ok)
    tl.store(at + 5 * T, distance * inverse, mask=row_ok)
    tl.store(at + 6 * T, n, mask=row_ok)
    tl.store(at + 7 * T, tl.sqrt(deviation), mask=row_ok)
    tl.store(at + 8 * T, tl.where(z == 0, -float("inf"), log_sum + peak), mask=row_ok)
    tl.store(at + 9 * T, m0 * inverse, mask=row_ok)
    if WINDOWS > 1:
        tl.store(at + 10 * T, m1 * inverse, mask=row_ok)
    if WINDOWS > 2:
        tl.store(at + 11 * T, m2 * inverse, mask=row_ok)
    if WINDOWS > 3:
        tl.store(at + 12 * T, m3 * inverse, mask=row_ok)
    if TOKENS:
        tl.store(at + 13 * T, induction * inverse, mask=row_ok)
        tl.store(at + 14 * T, duplicate * inverse, mask=row_ok)


@triton.jit
def _column_kernel(
    q_ptr, k_ptr, logz_ptr, out_ptr,
    H, K, T, S, E, scale,
    sqb, sqh, sqt, sqe, skb, skh, sks, ske, reach,
    CAUSAL: tl.constexpr, LIMITED: tl.constexpr, BQ: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(S, BS)
    bh = tl.program_id(0) // n_blocks
    first_key = tl.program_id(0) % n_blocks * BS
    b, h = bh // H, bh % H
    kv = h // (H // K)
    keys = first_key + tl.arange(0, BS)
    key_ok = keys < S
    e_at = tl.arange(0, BE)
    e_ok = e_at < E
    k_at = k_ptr + b.to(tl.int64) * skb + kv.to(tl.int64) * skh + keys.to(tl.int64)[None, :] * sks
    k = tl.load(k_at + e_at[:, None] * ske, mask=e_ok[:, None] & key_ok[None, :], other=0.0)
    mass = tl.zeros((BS,), dtype=tl.float32)
    shift, first = 0, 0
    if CAUSAL:
        shift = S - T
        first = tl.maximum(first_key - shift, 0) // BQ * BQ
    last = T
    if LIMITED:
        first = tl.maximum(first, tl.maximum(first_key - shift - reach + 1, 0) // BQ * BQ)
        last = tl.minimum(T, first_key + BS - shift + reach)
    for start in range(first, last, BQ):
        rows = start + tl.arange(0, BQ)
        row_ok = rows < T
        q_at = q_ptr + b.to(tl.int64) * sqb + h.to(tl.int64) * sqh + rows.to(tl.int64)[:, None] * sqt
        q = tl.load(q_at + e_at[None, :] * sqe, mask=row_ok[:, None] & e_ok[None, :], other=0.0)
        s = tl.dot(q, k, input_precision="ieee") * scale
        log_z = tl.load(logz_ptr + bh.to(tl.int64) * T + rows, mask=row_ok, other=0.0)
        ok = key_ok[None, :] & row_ok[:, None] & (log_z > -float("inf"))[:, None]
        if CAUSAL:
            ok = ok & (keys[None, :] <= (rows + shift)[:, None])
        if LIMITED:
            ok = ok & (tl.abs((rows + shift)[:, None] - keys[None, :]) < reach)
        mass += tl.sum(tl.where(ok, tl.exp(tl.where(ok, s - log_z[:, None], 0.0)), 0.0), axis=0)
    tl.store(out_ptr + bh.to(tl.int64) * S + keys, mass, mask=key_ok)


def launch_shape(dtype: torch.dtype, E: int) -> tuple[dict[str, int], dict[str, int]]:
    """(block sizes, warps and stages) for inputs of this type and head size; tiny when interpreted."""
    small = interpreting()
    # float32 products take no tensor cores in full precision, and their larger tiles spill registers
    BQ, BS = (16, 16) if small else (64, 32) if dtype == torch.float32 else (64, 64) if E > 128 else (128, 64)
    sizes = {"BQ": BQ, "BS": BS, "BE": max(16, triton.next_power_of_2(E))}
    return sizes, {"num_warps": 4 if small or E > 128 else 8, "num_stages": 2}


def attention_stats_triton(
    q: Tensor, k: Tensor, rule: AttentionRule, token_ids: Tensor | None, windows: tuple[int, ...], column: bool
) -> Any:
    """The torch path's result, for one to four windows, no mask and no top-k mass."""
    B, H, T, E = q.shape
    K, S = k.shape[1], k.shape[2]
    scale, limited, reach = rule.scaled(E), rule.sliding_window is not None, rule.sliding_window or 0
    if interpreting():
        q, k = q.float(), k.float()
    n_out = 15 if token_ids is not None else 13
    out = torch.empty(B, H, n_out, T, dtype=torch.float32, device=q.device)
    tokens = (
        token_ids.long().contiguous() if token_ids is not None else torch.zeros(1, dtype=torch.int64, device=q.device)
    )
    four = (*windows, *(windows[-1:] * (4 - len(windows))))
    sizes, options = launch_shape(q.dtype, E)
    BQ, BS = sizes["BQ"], sizes["BS"]
    with on_device(q):
        _row_kernel[(triton.cdiv(T, BQ) * B * H,)](
            q, k, tokens, out, H, K, T, S, E, scale, n_out, *q.stride(), *k.stride(), *four, max(2, *windows), reach,
            CAUSAL=rule.causal, LIMITED=limited, TOKENS=token_ids is not None, WINDOWS=len(windows), **sizes, **options,
        )  # fmt: skip
    stat = out.unbind(2)
    columns = None
    if column:
        columns = torch.empty(B, H, S, dtype=torch.float32, device=q.device)
        with on_device(q):
            _column_kernel[(triton.cdiv(S, BS) * B * H,)](
                q, k, stat[8].contiguous(), columns, H, K, T, S, E, scale, *q.stride(), *k.stride(), reach,
                CAUSAL=rule.causal, LIMITED=limited, **sizes, **options,
            )  # fmt: skip
    n_keys = stat[6].long()
    return AttentionStats(
        entropy=stat[0],
        max_weight=stat[1],
        sink_mass=stat[2],
        diagonal=stat[3],
        previous_token=stat[4],
        mean_distance=stat[5],
        n_keys=n_keys,
        spread=stat[7],
        log_z=torch.where(n_keys > 0, stat[8], -math.inf),
        window_masses=dict(zip(windows, stat[9:13], strict=False)),
        induction=stat[13] if token_ids is not None else None,
        duplicate=stat[14] if token_ids is not None else None,
        column_mass=columns,
    )
