"""What attention statistics need another pass for, log Z known: mass a key receives, and masses of the largest weights.

The largest logits of a query are kept in a list; while a tile's maximum exceeds the least of the list, it takes its place.
Key 0 and then the nearest keys come first: they tend to be the largest, and later tiles then change nothing.
Also what every pass does with keys, caps and masks. Logits are in units of log 2.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attlas.kernels.attention_rule import AttentionRule
from attlas.kernels.dispatch import interpreting, on_device

LARGEST_TOP = 32
"""The most weights that a list has room for."""
MOST_TOPS = 4


@triton.jit
def load_keys(k_at, keys, e_at, E, S, skv, ske, WHOLE: tl.constexpr, EVEN: tl.constexpr):
    # Keys [BE, BS]; WHOLE: all of them are there, EVEN: the head size is BE.
    at = k_at + keys.to(tl.int64)[None, :] * skv + e_at[:, None] * ske
    if WHOLE and EVEN:
        k = tl.load(at)
    elif WHOLE:
        k = tl.load(at, mask=(e_at < E)[:, None], other=0.0)
    else:
        k = tl.load(at, mask=(e_at < E)[:, None] & (keys < S)[None, :], other=0.0)
    return k


@triton.jit
def finish(s, mask_at, keys, S, sms, cap, WHOLE: tl.constexpr, MASK: tl.constexpr, CAPPED: tl.constexpr):
    # The cap c·tanh(s / c), and the mask: bool (1) or additive (2).
    if CAPPED:
        s = cap * (1.0 - 2.0 / (tl.exp2(s * (2.8853900817779268 / cap)) + 1.0))
    if MASK:
        at = mask_at + keys.to(tl.int64)[None, :] * sms
        if WHOLE:
            mask = tl.load(at)
        else:
            mask = tl.load(at, mask=(keys < S)[None, :], other=0)
        if MASK == 1:
            s = tl.where(mask != 0, s, -float("inf"))
        else:
            added = mask.to(tl.float32)
            s = tl.where(added > -1e30, s + added * 1.4426950408889634, -float("inf"))  # as attention_stats.CLOSED
    return s


@triton.jit
def query_block(
    q_ptr, k_ptr, mask_ptr, H, K, T, E, sqb, sqh, sqt, sqe, skb, skh, smb, smh, smt, BQ: tl.constexpr, BE: tl.constexpr
):  # fmt: skip
    # A program's queries of one head, and where that head's keys and mask begin.
    # One axis: a second one ends at 65,535. Causal programs with the most keys start first.
    n_blocks = tl.cdiv(T, BQ)
    bh = tl.program_id(0) // n_blocks
    first_row = (n_blocks - 1 - tl.program_id(0) % n_blocks) * BQ
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    rows = first_row + tl.arange(0, BQ)
    row_ok = rows < T
    e_at = tl.arange(0, BE)
    q_at = q_ptr + b * sqb + h * sqh + rows.to(tl.int64)[:, None] * sqt + e_at[None, :] * sqe
    q = tl.load(q_at, mask=row_ok[:, None] & (e_at < E)[None, :], other=0.0)
    k_at = k_ptr + b * skb + h // (H // K) * skh
    mask_at = mask_ptr + b * smb + h * smh + tl.minimum(rows, T - 1).to(tl.int64)[:, None] * smt
    return bh, b, first_row, rows, row_ok, e_at, q, k_at, mask_at


@triton.jit
def _keep_largest(s, best, BS: tl.constexpr, NP: tl.constexpr):
    # best [BQ, NP]: slots of each row's largest logits so far, in any order; equal logits each take a slot
    column, slot = tl.arange(0, BS)[None, :], tl.arange(0, NP)[None, :]
    least, peak = tl.min(best, axis=1), tl.max(s, axis=1)
    while tl.max((peak > least).to(tl.int32), axis=0) > 0:
        at = tl.min(tl.where(s == peak[:, None], column, BS), axis=1)
        drop = tl.min(tl.where(best == least[:, None], slot, NP), axis=1)
        best = tl.where((slot == drop[:, None]) & (peak > least)[:, None], peak[:, None], best)
        s = tl.where(column == at[:, None], -float("inf"), s)
        least, peak = tl.min(best, axis=1), tl.max(s, axis=1)
    return best


@triton.jit
def _column_kernel(
    q_ptr, k_ptr, mask_ptr, logz_ptr, out_ptr,
    H, K, T, S, E, factor, cap,
    sqb, sqh, sqt, sqe, skb, skh, sks, ske, smb, smh, smt, sms, reach,
    CAUSAL: tl.constexpr, LIMITED: tl.constexpr, CAPPED: tl.constexpr, MASK: tl.constexpr,
    BQ: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(S, BS)
    bh = tl.program_id(0) // n_blocks
    first_key = tl.program_id(0) % n_blocks * BS
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    keys = first_key + tl.arange(0, BS)
    key_ok = keys < S
    e_at = tl.arange(0, BE)
    k = load_keys(k_ptr + b * skb + h // (H // K) * skh, keys, e_at, E, S, sks, ske, False, False)
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
        q_at = q_ptr + b * sqb + h * sqh + rows.to(tl.int64)[:, None] * sqt
        q = tl.load(q_at + e_at[None, :] * sqe, mask=row_ok[:, None] & (e_at < E)[None, :], other=0.0)
        mask_at = mask_ptr + b * smb + h * smh + tl.minimum(rows, T - 1).to(tl.int64)[:, None] * smt
        s = finish(tl.dot(q, k, input_precision="ieee") * factor, mask_at, keys, S, sms, cap, False, MASK, CAPPED)
        log_z = tl.load(logz_ptr + bh.to(tl.int64) * T + rows, mask=row_ok, other=-float("inf")) * 1.4426950408889634
        ok = key_ok[None, :] & ~(log_z == -float("inf"))[:, None]
        if CAUSAL:
            ok = ok & (keys[None, :] <= (rows + shift)[:, None])
        if LIMITED:
            ok = ok & (tl.abs((rows + shift)[:, None] - keys[None, :]) < reach)
        mass += tl.sum(tl.where(ok, tl.exp2(s - log_z[:, None]), 0.0), axis=0)
    tl.store(out_ptr + bh.to(tl.int64) * S + keys, mass, mask=key_ok)


@triton.jit
def _top_kernel(
    q_ptr, k_ptr, mask_ptr, logz_ptr, out_ptr,
    H, K, T, S, E, factor, cap,
    sqb, sqh, sqt, sqe, skb, skh, sks, ske, smb, smh, smt, sms, reach, t0, t1, t2, t3, n_top,
    CAUSAL: tl.constexpr, LIMITED: tl.constexpr, CAPPED: tl.constexpr, MASK: tl.constexpr, TOPS: tl.constexpr,
    NP: tl.constexpr, BQ: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    bh, _b, first_row, rows, row_ok, e_at, q, k_at, mask_at = query_block(
        q_ptr, k_ptr, mask_ptr, H, K, T, E, sqb, sqh, sqt, sqe, skb, skh, smb, smh, smt, BQ, BE
    )
    shift, begin, stop = 0, 0, S
    if CAUSAL:
        shift = S - T
        stop = tl.minimum(S, first_row + BQ + shift)
    position = rows + shift
    if LIMITED:
        begin = tl.maximum(first_row + shift - reach + 1, 0) // BS * BS
        stop = tl.minimum(stop, first_row + shift + BQ - 1 + reach)
    slot = tl.arange(0, NP)[None, :]
    best = tl.zeros((BQ, NP), dtype=tl.float32) + tl.where(slot < n_top, -float("inf"), float("inf"))
    n_tiles = tl.cdiv(tl.maximum(stop - begin, 0), BS)
    for step in range(0, n_tiles):
        start = begin + ((n_tiles - step) % n_tiles) * BS
        keys = start + tl.arange(0, BS)
        k = load_keys(k_at, keys, e_at, E, S, sks, ske, False, False)
        s = finish(tl.dot(q, k, input_precision="ieee") * factor, mask_at, keys, S, sms, cap, False, MASK, CAPPED)
        offset = position[:, None] - keys[None, :]
        ok = (keys < S)[None, :]
        if CAUSAL:
            ok = ok & (offset >= 0)
        if LIMITED:
            ok = ok & (tl.abs(offset) < reach)
        best = _keep_largest(tl.where(ok, s, -float("inf")), best, BS, NP)
    log_z = tl.load(logz_ptr + bh.to(tl.int64) * T + rows, mask=row_ok, other=0.0) * 1.4426950408889634
    best = tl.where(slot < n_top, best, -float("inf"))
    zero = tl.zeros((BQ,), dtype=tl.float32)
    a0, a1, a2, a3 = zero, zero, zero, zero
    for place in range(0, n_top):  # from the largest down
        largest = tl.max(best, axis=1)
        chosen = tl.min(tl.where(best == largest[:, None], slot, NP), axis=1)
        best = tl.where(slot == chosen[:, None], -float("inf"), best)
        weight = tl.where(log_z == -float("inf"), 0.0, tl.exp2(largest - log_z))  # a query without keys has none
        a0 += tl.where(place < t0, weight, 0.0)
        a1 += tl.where(place < t1, weight, 0.0)
        a2 += tl.where(place < t2, weight, 0.0)
        a3 += tl.where(place < t3, weight, 0.0)
    at = out_ptr + bh.to(tl.int64) * TOPS * T + rows
    tl.store(at, a0, mask=row_ok)
    if TOPS > 1:
        tl.store(at + T, a1, mask=row_ok)
    if TOPS > 2:
        tl.store(at + 2 * T, a2, mask=row_ok)
    if TOPS > 3:
        tl.store(at + 3 * T, a3, mask=row_ok)


@dataclass(frozen=True)
class Attention:
    """Queries, keys, rule and mask of a layer, as kernels are launched with them."""

    q: Tensor
    k: Tensor
    rule: AttentionRule
    mask: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and the mask, bool as bytes; q in its place where there is none."""
        if self.mask is None:
            return self.q, self.k, self.q
        bytes_ = self.mask.dtype == torch.bool
        return self.q, self.k, self.mask.view(torch.uint8) if bytes_ else self.mask

    @property
    def numbers(self) -> tuple[float, ...]:
        """H, K, T, S, E, the factor that makes q·k logits in units of log 2, and the cap in such units."""
        (_, H, T, E), (_, K, S, _) = self.q.shape, self.k.shape
        return H, K, T, S, E, self.rule.scaled(E) / math.log(2), (self.rule.softcap or 0.0) / math.log(2)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of q, k and the mask over [B, H, T, S]: a broadcast axis has stride 0, so nothing is copied."""
        if self.mask is None:
            return (*self.q.stride(), *self.k.stride(), 0, 0, 0, 0)
        spread = self.mask.expand(*self.q.shape[:3], self.k.shape[2])
        return (*self.q.stride(), *self.k.stride(), *spread.stride())

    @property
    def flags(self) -> dict[str, Any]:
        """Constants of a launch."""
        kind = 0 if self.mask is None else 1 if self.mask.dtype == torch.bool else 2
        limited = self.rule.sliding_window is not None
        return {"CAUSAL": self.rule.causal, "LIMITED": limited, "CAPPED": self.rule.softcap is not None, "MASK": kind}

    @property
    def reach(self) -> int:
        """Of the sliding window; 0 without one."""
        return self.rule.sliding_window or 0


def launch_shape(dtype: torch.dtype, E: int) -> tuple[dict[str, Any], dict[str, int]]:
    """(block sizes, warps and stages) of a second pass for inputs of this type and head size; tiny when interpreted."""
    small = interpreting()
    # float32 products take no tensor cores in full precision, and their larger tiles spill registers
    BQ, BS = (16, 16) if small else (64, 32) if dtype == torch.float32 else (64, 64) if E > 128 else (128, 64)
    sizes = {"BQ": BQ, "BS": BS, "BE": max(16, triton.next_power_of_2(E))}
    return sizes, {"num_warps": 4 if small or E > 128 else 8, "num_stages": 2}


def column_masses_triton(layer: Attention, log_z: Tensor) -> Tensor:
    """Σ over queries of the mass each key receives: [B, H, S]. log_z [B, H, T], −inf for a query without keys."""
    (B, H, _, E), S = layer.q.shape, layer.k.shape[2]
    out = torch.empty(B, H, S, dtype=torch.float32, device=layer.q.device)
    sizes, options = launch_shape(layer.q.dtype, E)
    with on_device(layer.q):
        _column_kernel[(triton.cdiv(S, sizes["BS"]) * B * H,)](
            *layer.tensors, log_z.contiguous(), out, *layer.numbers, *layer.strides, layer.reach,
            **layer.flags, **sizes, **options,
        )  # fmt: skip
    return out


def top_masses_triton(layer: Attention, log_z: Tensor, tops: tuple[int, ...]) -> Tensor:
    """Masses of the n largest weights, for one to four n ≤ 32: [B, H, len(tops), T]."""
    B, H, T, E = layer.q.shape
    out = torch.empty(B, H, len(tops), T, dtype=torch.float32, device=layer.q.device)
    sizes, options = launch_shape(layer.q.dtype, E)
    with on_device(layer.q):
        _top_kernel[(triton.cdiv(T, sizes["BQ"]) * B * H,)](
            *layer.tensors, log_z.contiguous(), out, *layer.numbers, *layer.strides, layer.reach,
            *padded(tops), max(tops), TOPS=len(tops), NP=max(2, triton.next_power_of_2(max(tops))),
            **layer.flags, **sizes, **options,
        )  # fmt: skip
    return out


def padded(values: tuple[int, ...]) -> tuple[int, ...]:
    """Four of them: the last again and again."""
    return (*values, *(values[-1:] * (4 - len(values))))
