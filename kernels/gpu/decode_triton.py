"""Triton: the front of a step. Centring; reconstruction, residual, loss and gradients of activations, a program a row; where
each feature's pairs lie among sorted ones.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from attlas.kernels.dispatch import interpreting


@triton.jit
def _begin_kernel(
    x_ptr, b_ptr, centred_ptr, narrow_ptr, control_ptr, total, D, c0, c1, c2, c3, c4, c5,
    NARROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = i < total
    centred = tl.load(x_ptr + i, mask=ok, other=0.0) - tl.load(b_ptr + i % D, mask=ok, other=0.0)
    tl.store(centred_ptr + i, centred, mask=ok)
    if NARROW:
        tl.store(narrow_ptr + i, centred.to(tl.bfloat16), mask=ok)
    if tl.program_id(0) == 0:
        tl.store(control_ptr, c0)
        tl.store(control_ptr + 1, c1)
        tl.store(control_ptr + 2, c2)
        tl.store(control_ptr + 3, c3)
        tl.store(control_ptr + 4, c4)
        tl.store(control_ptr + 5, c5)


def begin(x: Tensor, b_dec: Tensor, centred: Tensor, narrow: Tensor, controls: Tensor, values: Sequence[float]) -> None:
    """As plain.begin."""
    block = 256 if interpreting() else 1024
    x = x.contiguous()
    _begin_kernel[(triton.cdiv(x.numel(), block),)](
        x, b_dec, centred, narrow, controls, x.numel(), x.shape[1], *(float(value) for value in values),
        NARROW=narrow is not centred, BLOCK=block,
    )  # fmt: skip


@triton.jit
def _of_group(
    value_ptr, index_ptr, w_ptr, edge_ptr, row, d, K, F, D,
    group: tl.constexpr, GROUPS: tl.constexpr, KB: tl.constexpr,
):  # fmt: skip
    # What the row's features of one group add to the columns d of its reconstruction.
    low = 0
    if group > 0:
        low = tl.load(edge_ptr + group - 1)
    high = F
    if group < GROUPS - 1:
        high = tl.load(edge_ptr + group)
    acc = tl.zeros(d.shape, tl.float32)
    for first in range(0, K, KB):
        at = row * K + first + tl.arange(0, KB)
        ok = first + tl.arange(0, KB) < K
        feature = tl.load(index_ptr + at, mask=ok, other=0)
        value = tl.load(value_ptr + at, mask=ok, other=0.0)
        ok = ok & (feature >= low) & (feature < high) & (value != 0)
        w_at = w_ptr + feature.to(tl.int64)[:, None] * D + d[None, :]
        w = tl.load(w_at, mask=ok[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        acc += tl.sum(w * tl.where(ok, value, 0.0)[:, None], axis=0)
    return acc


@triton.jit
def _decode_dot_kernel(
    value_ptr, index_ptr, x_ptr, w_ptr, edge_ptr, grad_ptr, d_ptr, key_ptr, loss_ptr, encoder_ptr, b_ptr,
    N, K, F, D, scale,
    EVALUATE: tl.constexpr, ONCE: tl.constexpr, GROUPS: tl.constexpr, KB: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, KB)
    # values, from float32 rows where a narrower product chose; keys
    for first in range(0, K, KB):
        ok = first + j < K
        at = row * K + first + j
        feature = tl.load(index_ptr + at, mask=ok, other=0).to(tl.int64)
        if EVALUATE:
            value = tl.load(b_ptr + feature, mask=ok, other=0.0)
            for start in range(0, D, BD):
                d = start + tl.arange(0, BD)
                x = tl.load(x_ptr + row * D + d, mask=d < D, other=0.0)
                w_at = encoder_ptr + feature[:, None] * D + d[None, :]
                w = tl.load(w_at, mask=ok[:, None] & (d < D)[None, :], other=0.0)
                value += tl.sum(w * x[None, :], axis=1)
        else:
            value = tl.load(value_ptr + at, mask=ok, other=0.0)
        value = tl.where(value <= 0, 0.0, value)
        tl.store(value_ptr + at, value, mask=ok)
        tl.store(key_ptr + at, tl.where(value <= 0, F, feature).to(tl.int32), mask=ok)
    tl.debug_barrier()
    if ONCE:  # one group, and its slots in one tile: each decoder row is read once
        ok = j < K
        feature = tl.load(index_ptr + row * K + j, mask=ok, other=0).to(tl.int64)
        value = tl.load(value_ptr + row * K + j, mask=ok, other=0.0)
        loss = tl.zeros((BD,), tl.float32)
        d_value = tl.zeros((KB,), tl.float32)
        for start in range(0, D, BD):
            d = start + tl.arange(0, BD)
            w_at = w_ptr + feature[:, None] * D + d[None, :]
            w = tl.load(w_at, mask=ok[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
            x = tl.load(x_ptr + row * D + d, mask=d < D, other=0.0)
            error = tl.sum(w * value[:, None], axis=0) - x
            loss += error * error
            g = error * scale
            tl.store(grad_ptr + row * D + d, g, mask=d < D)
            d_value += tl.sum(w * g[None, :], axis=1)
        tl.store(loss_ptr + row, tl.sum(loss, axis=0))
        tl.store(d_ptr + row * K + j, tl.where(value <= 0, 0.0, d_value), mask=ok)
    else:
        for start in range(0, D, BD):
            d = start + tl.arange(0, BD)
            x = tl.load(x_ptr + row * D + d, mask=d < D, other=0.0)
            error, suffix = -x, tl.zeros((BD,), tl.float32)
            for group in tl.static_range(GROUPS):
                error += _of_group(value_ptr, index_ptr, w_ptr, edge_ptr, row, d, K, F, D, group, GROUPS, KB)
                suffix += error
                loss = tl.sum(error * error, axis=0)
                if start > 0:
                    loss += tl.load(loss_ptr + group * N + row)
                tl.debug_barrier()
                tl.store(loss_ptr + group * N + row, loss)
            error = -x
            for group in tl.static_range(GROUPS):  # its errors once more: less to keep
                tl.store(grad_ptr + (row * GROUPS + group) * D + d, suffix * scale, mask=d < D)
                error += _of_group(value_ptr, index_ptr, w_ptr, edge_ptr, row, d, K, F, D, group, GROUPS, KB)
                suffix -= error
        tl.debug_barrier()
        for first in range(0, K, KB):
            ok = first + j < K
            feature = tl.load(index_ptr + row * K + first + j, mask=ok, other=0)
            value = tl.load(value_ptr + row * K + first + j, mask=ok, other=0.0)
            fires = ok & ~(value <= 0)
            own = tl.zeros((KB,), tl.int64)
            for i in tl.static_range(GROUPS - 1):
                own += (feature >= tl.load(edge_ptr + i)).to(tl.int64)
            d_value = tl.zeros((KB,), tl.float32)
            for start in range(0, D, BD):
                d = start + tl.arange(0, BD)
                both = fires[:, None] & (d < D)[None, :]
                w = tl.load(w_ptr + feature.to(tl.int64)[:, None] * D + d[None, :], mask=both, other=0.0)
                g_at = grad_ptr + (row * GROUPS + own)[:, None] * D + d[None, :]
                d_value += tl.sum(w.to(tl.float32) * tl.load(g_at, mask=both, other=0.0).to(tl.float32), axis=1)
            tl.store(d_ptr + row * K + first + j, d_value, mask=ok)


def decode_dot(
    values: Tensor,
    index: Tensor,
    centred: Tensor,
    W_dec: Tensor,
    edges: Tensor | None,
    grads: Tensor,
    d_pre: Tensor,
    keys: Tensor,
    losses: Tensor,
    encoder: tuple[Tensor, Tensor] | None,
) -> None:
    """As plain.decode_dot."""
    (N, K), (F, D), G = values.shape, W_dec.shape, losses.shape[0]
    KB = min(max(16, triton.next_power_of_2(K)), 32)
    rows, bias = (centred, centred) if encoder is None else encoder
    _decode_dot_kernel[(N,)](
        values, index, centred, W_dec, index if edges is None else edges, grads, d_pre, keys, losses, rows, bias,
        N, K, F, D, 2.0 / (N * G),
        EVALUATE=encoder is not None, ONCE=G == 1 and K <= KB, GROUPS=G, KB=KB,
        BD=min(16 if interpreting() else 256, max(16, triton.next_power_of_2(D))),
    )  # fmt: skip


@triton.jit
def _segments_kernel(
    key_ptr, order_ptr, d_ptr, offset_ptr, sum_ptr, fired_ptr, P, F, ROUNDS: tl.constexpr,
    BF: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0) * BF + tl.arange(0, BF)
    # the first place whose key is at least f, and at least f + 1
    low = tl.zeros((BF,), tl.int32)
    high = low + P
    low_next, high_next = low, high
    for _ in range(ROUNDS):
        middle = (low + high) // 2
        less = tl.load(key_ptr + middle, mask=middle < P, other=2147483647) < f
        low = tl.where(less & (low < high), middle + 1, low)
        high = tl.where(less, high, middle)
        middle = (low_next + high_next) // 2
        less = tl.load(key_ptr + middle, mask=middle < P, other=2147483647) < f + 1
        low_next = tl.where(less & (low_next < high_next), middle + 1, low_next)
        high_next = tl.where(less, high_next, middle)
    tl.store(offset_ptr + f, low, mask=f <= F)
    n = tl.where(f < F, low_next - low, 0)
    acc = tl.zeros((BF,), tl.float32)
    for first in range(0, tl.max(n, axis=0), BP):
        i = first + tl.arange(0, BP)
        ok = i[None, :] < n[:, None]
        pair = tl.load(order_ptr + low[:, None] + i[None, :], mask=ok, other=0)
        acc += tl.sum(tl.load(d_ptr + pair, mask=ok, other=0.0), axis=1)
    tl.store(sum_ptr + f, acc, mask=f < F)
    tl.store(fired_ptr + f, n.to(tl.int64), mask=f < F)


def segments(keys: Tensor, order: Tensor, d_pre: Tensor, offsets: Tensor, sums: Tensor, fired: Tensor) -> None:
    """As plain.segments."""
    P, F = keys.numel(), fired.numel()
    BF, BP = (64, 4) if interpreting() else (8, 128)
    _segments_kernel[(triton.cdiv(F + 1, BF),)](
        keys, order, d_pre, offsets, sums, fired, P, F, ROUNDS=P.bit_length() + 1, BF=BF, BP=BP
    )  # fmt: skip
