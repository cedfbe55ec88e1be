"""Triton attention statistics: one pass over keys per query block, with a running maximum (online softmax).

Logits are in units of log 2, less a pivot of their row (its logit with the key at its own place), so that their sum and sum of
squares give the spread without cancellation. With p = 2^{a}, a = s − m: entropy = ln 2 · (log₂ Z − Σ a·p / Z); Σ a·p and Z are
rescaled when the maximum m grows. Sink, own and previous position keep their logit and are weighed at the end.
Blocks of keys that no window can reach and that lie whole among the keys take a loop without tests of position; the few
others a second one. Column masses and those of the largest weights take another pass (attention_second_triton).
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attlas.kernels.attention_rule import AttentionRule
from attlas.kernels.attention_second_triton import (
    LARGEST_TOP,
    MOST_TOPS,
    Attention,
    column_masses_triton,
    finish,
    load_keys,
    padded,
    query_block,
    top_masses_triton,
)
from attlas.kernels.dispatch import interpreting, on_device
from attlas.kernels.results import AttentionStats

MOST_WINDOWS = 4


@triton.jit
def _absorb(s, peak, z, moment, n, s1, s2, OPEN: tl.constexpr, COUNT: tl.constexpr):
    # A tile into the running sums; also the tile's weights, their sum, and what earlier sums are rescaled by.
    new = tl.maximum(peak, tl.max(s, axis=1))
    gap = peak - new
    factor = tl.exp2(gap)
    away = s - new[:, None]
    p = tl.exp2(away)
    total = tl.sum(p, axis=1)
    if OPEN:
        moment = factor * (moment + gap * z) + tl.sum(away * p, axis=1)
        s1 += tl.sum(s, axis=1)
        s2 += tl.sum(s * s, axis=1)
    else:
        ok = ~(s == -float("inf"))
        moment = factor * (moment + gap * z) + tl.sum(tl.where(ok, away * p, 0.0), axis=1)
        s = tl.where(ok, s, 0.0)
        s1 += tl.sum(s, axis=1)
        s2 += tl.sum(s * s, axis=1)
        if COUNT:
            n += tl.sum(ok.to(tl.float32), axis=1)
    return new, z * factor + total, moment, n, s1, s2, p, total, factor


@triton.jit
def _mass(p, chosen):
    return tl.sum(tl.where(chosen, p, 0.0), axis=1)


@triton.jit
def _logit_of(s, chosen):
    return tl.max(tl.where(chosen, s, -float("inf")), axis=1)


@triton.jit
def _row_kernel(
    q_ptr, k_ptr, mask_ptr, token_ptr, out_ptr,
    H, K, T, S, E, factor, cap, n_out,
    sqb, sqh, sqt, sqe, skb, skh, sks, ske, smb, smh, smt, sms,
    w0, w1, w2, w3, widest, reach,
    CAUSAL: tl.constexpr, LIMITED: tl.constexpr, CAPPED: tl.constexpr, MASK: tl.constexpr, TOKENS: tl.constexpr,
    WINDOWS: tl.constexpr,
    BQ: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    bh, b, first_row, rows, row_ok, e_at, q, k_at, mask_at = query_block(
        q_ptr, k_ptr, mask_ptr, H, K, T, E, sqb, sqh, sqt, sqe, skb, skh, smb, smh, smt, BQ, BE
    )
    shift = S - T if CAUSAL else 0
    first = first_row + shift
    position = rows + shift
    token_at = token_ptr + b * S
    zero = tl.zeros((BQ,), dtype=tl.float32)

    own_key = tl.minimum(position, S - 1).to(tl.int64)
    near_k = tl.load(k_at + own_key[:, None] * sks + e_at[None, :] * ske, mask=(e_at < E)[None, :], other=0.0)
    pivot = tl.sum(q.to(tl.float32) * near_k.to(tl.float32), axis=1) * factor
    if CAPPED:
        pivot = tl.minimum(tl.maximum(pivot, -cap), cap)
    pivot = tl.where(tl.abs(pivot) < 1e30, pivot, 0.0)

    peak, z, moment, n, s1, s2, distance = zero - 1e30, zero, zero, zero, zero, zero, zero
    sink, own, before = zero - float("inf"), zero - float("inf"), zero - float("inf")
    m0, m1, m2, m3, induction, duplicate = zero, zero, zero, zero, zero, zero
    own_token = tl.zeros((BQ,), dtype=tl.int64)
    if TOKENS:
        own_token = tl.load(token_at + position, mask=row_ok & (position < S), other=-1)

    begin, stop = 0, S
    if CAUSAL:
        stop = tl.minimum(S, first + BQ)
    if LIMITED:  # |i − j| < reach: blocks of keys out of reach are not looked at
        begin = tl.maximum(first - reach + 1, 0) // BS * BS
        stop = tl.minimum(stop, first + BQ - 1 + reach)
    whole = tl.maximum(stop // BS * BS if CAUSAL else S // BS * BS, begin)  # blocks from here on are cut off by S
    whole = tl.minimum(whole, tl.cdiv(tl.maximum(stop, 0), BS) * BS)
    near = tl.minimum(tl.maximum(tl.maximum(first - widest + 1, 0) // BS * BS, begin), tl.maximum(whole, begin))
    near_end = tl.cdiv(stop, BS) * BS if CAUSAL else tl.minimum(tl.cdiv(first + BQ - 1 + widest, BS) * BS, whole)
    near_end = tl.maximum(near_end, near)
    n_before = (near - begin) // BS
    n_far = n_before + tl.maximum(whole - near_end, 0) // BS
    n_near = (near_end - near) // BS
    n_all = n_near
    if not CAUSAL:
        n_all += (tl.maximum(whole, near_end) < stop).to(tl.int32)  # the block that S cuts off

    for step in range(0, n_far):
        ahead = step >= n_before
        start = tl.where(ahead, near_end + (step - n_before) * BS, begin + step * BS)
        keys = start + tl.arange(0, BS)
        k = load_keys(k_at, keys, e_at, E, S, sks, ske, True, EVEN)
        s = tl.dot(q, k, input_precision="ieee") * factor
        s = finish(s, mask_at, keys, S, sms, cap, True, MASK, CAPPED) - pivot[:, None]
        if LIMITED:
            s = tl.where(tl.abs(position[:, None] - keys[None, :]) < reach, s, -float("inf"))
        peak, z, moment, n, s1, s2, p, total, rescale = _absorb(
            s, peak, z, moment, n, s1, s2, not LIMITED and MASK == 0, MASK > 0
        )
        along = tl.sum(p * tl.arange(0, BS).to(tl.float32)[None, :], axis=1)
        gone = total * (position - start).to(tl.float32) - along  # Σ p·(i − j): all on one side
        distance = distance * rescale + tl.where(ahead, -gone, gone)
        if start == 0:
            sink = _logit_of(s, (keys == 0)[None, :])
        if TOKENS:
            token = tl.load(token_at + keys)
            earlier = tl.load(token_at + keys - 1, mask=keys > 0, other=-2)
            duplicate = duplicate * rescale + _mass(p, token[None, :] == own_token[:, None])
            induction = induction * rescale + _mass(p, earlier[None, :] == own_token[:, None])

    for step in range(0, n_all):
        start = tl.where(step < n_near, near + step * BS, tl.maximum(whole, near_end))
        keys = start + tl.arange(0, BS)
        k = load_keys(k_at, keys, e_at, E, S, sks, ske, False, EVEN)
        s = tl.dot(q, k, input_precision="ieee") * factor
        s = finish(s, mask_at, keys, S, sms, cap, False, MASK, CAPPED) - pivot[:, None]
        offset = position[:, None] - keys[None, :]
        ok = (keys < S)[None, :]
        if CAUSAL:
            ok = ok & (offset >= 0)
        if LIMITED:
            ok = ok & (tl.abs(offset) < reach)
        s = tl.where(ok, s, -float("inf"))
        peak, z, moment, n, s1, s2, p, total, rescale = _absorb(s, peak, z, moment, n, s1, s2, False, MASK > 0)
        distance = distance * rescale + tl.sum(p * tl.abs(offset).to(tl.float32), axis=1)
        if start == 0:
            sink = _logit_of(s, (keys == 0)[None, :])
        own = tl.maximum(own, _logit_of(s, offset == 0))
        before = tl.maximum(before, _logit_of(s, offset == 1))
        m0 = m0 * rescale + _mass(p, tl.abs(offset) < w0)
        if WINDOWS > 1:
            m1 = m1 * rescale + _mass(p, tl.abs(offset) < w1)
        if WINDOWS > 2:
            m2 = m2 * rescale + _mass(p, tl.abs(offset) < w2)
        if WINDOWS > 3:
            m3 = m3 * rescale + _mass(p, tl.abs(offset) < w3)
        if TOKENS:
            token = tl.load(token_at + keys, mask=keys < S, other=-2)
            earlier = tl.load(token_at + keys - 1, mask=(keys < S) & (keys > 0), other=-2)
            same = (token[None, :] == own_token[:, None]) & (offset != 0)
            after = (earlier[None, :] == own_token[:, None]) & (offset != -1)
            duplicate = duplicate * rescale + _mass(p, same)
            induction = induction * rescale + _mass(p, after)

    inverse = tl.where(z > 0, 1.0 / tl.where(z > 0, z, 1.0), tl.where(z == z, 0.0, z))
    log_sum = tl.log2(tl.where(z > 0, z, 1.0))
    entropy = tl.where(z == z, tl.maximum(log_sum - moment * inverse, 0.0), z)
    if MASK == 0:  # the number of keys in closed form, as AttentionRule.n_keys
        low, high = position * 0, position * 0 + S
        if CAUSAL:
            high = tl.minimum(position + 1, S)
        if LIMITED:
            low = tl.maximum(position - reach + 1, 0)
            high = tl.minimum(high, position + reach)
        n = tl.maximum(high - low, 0).to(tl.float32)
    deviation = tl.maximum(s2 - s1 * s1 / tl.maximum(n, 1.0), 0.0)
    deviation = tl.where(s2 == s2, deviation, s2)
    at = out_ptr + bh.to(tl.int64) * n_out * T + rows
    tl.store(at, 0.6931471805599453 * entropy, mask=row_ok)
    tl.store(at + T, inverse, mask=row_ok)  # the largest weight is 2⁰/Z
    tl.store(at + 2 * T, tl.exp2(sink - peak) * inverse, mask=row_ok)
    tl.store(at + 3 * T, tl.exp2(own - peak) * inverse, mask=row_ok)
    tl.store(at + 4 * T, tl.exp2(before - peak) * inverse, mask=row_ok)
    tl.store(at + 5 * T, distance * inverse, mask=row_ok)
    tl.store(at + 6 * T, n, mask=row_ok)
    tl.store(at + 7 * T, 0.6931471805599453 * tl.sqrt(deviation), mask=row_ok)
    log_z = 0.6931471805599453 * (log_sum + peak + pivot)
    log_z = tl.where(z == z, log_z, z)
    tl.store(at + 8 * T, tl.where(z == 0, -float("inf"), log_z), mask=row_ok)
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


def row_shape(dtype: torch.dtype, E: int) -> tuple[dict[str, int], dict[str, int]]:
    """(block sizes, warps and stages), so that registers hold a tile with mask, tokens and windows."""
    small, wide = interpreting(), E > 128 or dtype == torch.float32
    BQ, BS = (16, 16) if small else (64, 32)
    warps = 8 if wide and not small else 4
    return {"BQ": BQ, "BS": BS, "BE": max(16, triton.next_power_of_2(E))}, {"num_warps": warps, "num_stages": 2}


def fits(E: int, windows: tuple[int, ...], tops: tuple[int, ...]) -> bool:
    """Whether the kernels have room for what is asked; else torch computes it."""
    if not 0 < len(windows) <= MOST_WINDOWS or len(tops) > MOST_TOPS or E > 256:
        return False
    return max(tops, default=0) <= LARGEST_TOP


def attention_stats_triton(
    q: Tensor,
    k: Tensor,
    rule: AttentionRule,
    mask: Tensor | None,
    token_ids: Tensor | None,
    windows: tuple[int, ...],
    tops: tuple[int, ...],
    column: bool,
) -> AttentionStats:
    """The torch path's result, for what `fits`."""
    B, H, T, E = q.shape
    if interpreting():
        q, k = q.float(), k.float()
    layer = Attention(q, k, rule, mask)
    tokens = torch.zeros(1, dtype=torch.int64, device=q.device) if token_ids is None else token_ids.long().contiguous()
    n_out = 13 if token_ids is None else 15
    out = torch.empty(B, H, n_out, T, dtype=torch.float32, device=q.device)
    sizes, options = row_shape(q.dtype, E)
    with on_device(q):
        _row_kernel[(triton.cdiv(T, sizes["BQ"]) * B * H,)](
            *layer.tensors, tokens, out, *layer.numbers, n_out, *layer.strides,
            *padded(windows), max(2, *windows), layer.reach,
            TOKENS=token_ids is not None, WINDOWS=len(windows), EVEN=sizes["BE"] == E, **layer.flags, **sizes, **options,
        )  # fmt: skip
    stat = out.unbind(2)
    large = tuple(n for n in tops if n > 1)
    masses = {1: stat[1]}
    if large:
        masses |= dict(zip(large, top_masses_triton(layer, stat[8], large).unbind(2), strict=True))
    return AttentionStats(
        entropy=stat[0],
        max_weight=stat[1],
        sink_mass=stat[2],
        diagonal=stat[3],
        previous_token=stat[4],
        mean_distance=stat[5],
        n_keys=stat[6].long(),
        spread=stat[7],
        log_z=stat[8],
        window_masses=dict(zip(windows, stat[9:13], strict=False)),
        top_k_masses={n: masses[n] for n in tops},
        induction=stat[13] if token_ids is not None else None,
        duplicate=stat[14] if token_ids is not None else None,
        column_mass=column_masses_triton(layer, stat[8]) if column else None,
    )
