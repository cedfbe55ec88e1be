"""Triton: the update of a matrix, a program a feature; of all vectors; sums over columns; and the factor that clips.

A feature's gradient is summed from its pairs in the registers that then hold its row and both moments, so that no gradient
matrix is written or read. Sums run in a fixed order, so two runs agree bit for bit.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from attlas.kernels.dispatch import interpreting
from attlas.kernels.gpu.controls import CLIP, INV_SQRT_C2, L0, MSE, NESTED, OTHER, STEP, STEP_SIZE, TOTAL
from attlas.kernels.gpu.gradient import Gradient
from attlas.kernels.gpu.weights import Matrix, Vectors

TILE = 16384
"""Elements of a tile of source rows."""
_STEP_SIZE, _INV_SQRT_C2, _CLIP, _STEP = (tl.constexpr(place) for place in (STEP_SIZE, INV_SQRT_C2, CLIP, STEP))
_TOTAL, _MSE, _NESTED, _OTHER, _L0 = (tl.constexpr(place) for place in (TOTAL, MSE, NESTED, OTHER, L0))


@triton.jit
def _row_update_kernel(
    p_ptr, m_ptr, v_ptr, shadow_ptr, dense_ptr,
    order_ptr, offset_ptr, weight_ptr, source_ptr, edge_ptr, slot_ptr, extra_ptr, pull_ptr, control_ptr, norm_ptr,
    D, b1, b2, eps,
    PAIRS: tl.constexpr, DENSE: tl.constexpr, EXTRA: tl.constexpr, PULL: tl.constexpr, UNIT: tl.constexpr,
    CLIP: tl.constexpr, SHADOW: tl.constexpr, NORM: tl.constexpr, MOVE: tl.constexpr,
    SLOTS: tl.constexpr, GROUPS: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    ok = d < D
    at = f * D + d
    p = tl.load(p_ptr + at, mask=ok, other=0.0)
    g = tl.zeros((BD,), tl.float32)
    if PAIRS:
        start = tl.load(offset_ptr + f)
        end = tl.load(offset_ptr + f + 1)
        group = tl.zeros((), tl.int64)
        for edge in tl.static_range(GROUPS - 1):
            group += (f >= tl.load(edge_ptr + edge)).to(tl.int64)
        for first in range(start, end, BP):
            i = first + tl.arange(0, BP)
            i_ok = i < end
            pair = tl.load(order_ptr + i, mask=i_ok, other=0)
            weight = tl.load(weight_ptr + pair, mask=i_ok, other=0.0)
            row = pair // SLOTS * GROUPS + group
            source_at = source_ptr + row[:, None] * D + d[None, :]
            source = tl.load(source_at, mask=i_ok[:, None] & ok[None, :], other=0.0).to(tl.float32)
            g += tl.sum(weight[:, None] * source, axis=0)
    if DENSE:
        g += tl.load(dense_ptr + at, mask=ok, other=0.0).to(tl.float32)
    if EXTRA:
        slot = tl.load(slot_ptr + f) + tl.zeros((BD,), tl.int64)  # a block: the mask below is one
        g += tl.load(extra_ptr + slot * D + d, mask=ok & (slot >= 0), other=0.0)
    if PULL:
        g += tl.load(pull_ptr + f) * p
    if UNIT:  # what would only stretch the row
        g -= tl.sum(g * p, axis=0) * p
    if MOVE:
        if CLIP:
            g *= tl.load(control_ptr + _CLIP)
        m = tl.load(m_ptr + at, mask=ok, other=0.0)
        v = tl.load(v_ptr + at, mask=ok, other=0.0)
        m += (1 - b1) * (g - m)
        v = b2 * v + (1 - b2) * g * g
        denominator = tl.sqrt(v) * tl.load(control_ptr + _INV_SQRT_C2) + eps
        p -= tl.load(control_ptr + _STEP_SIZE) * m / denominator
        if UNIT:
            p /= tl.maximum(tl.sqrt(tl.sum(p * p, axis=0)), 1.1754944e-38)
        if NORM:
            tl.store(norm_ptr + f, tl.sqrt(tl.sum(p * p, axis=0)))
        tl.store(p_ptr + at, p, mask=ok)
        tl.store(m_ptr + at, m, mask=ok)
        tl.store(v_ptr + at, v, mask=ok)
        if SHADOW:
            tl.store(shadow_ptr + at, p.to(tl.bfloat16), mask=ok)
    else:
        tl.store(norm_ptr + f, tl.sum(g * g, axis=0))


def _launch_rows(
    matrix: Matrix,
    gradient: Gradient,
    controls: Tensor,
    norms: Tensor | None,
    betas: tuple[float, float],
    eps: float,
    *,
    unit_norm: bool,
    clip: bool,
    move: bool,
) -> None:
    master, pairs, extra = matrix.master, gradient.pairs, gradient.extra
    F, D = master.shape
    BD = max(16, triton.next_power_of_2(D))
    groups = pairs.edges.numel() if pairs is not None and pairs.edges is not None else 1
    _row_update_kernel[(F,)](
        master, matrix.exp_avg, matrix.exp_avg_sq, matrix.shadow,
        master if gradient.dense is None else gradient.dense,
        master if pairs is None else pairs.order, master if pairs is None else pairs.offsets,
        master if pairs is None else pairs.weights, master if pairs is None else pairs.source,
        master if pairs is None or pairs.edges is None else pairs.edges,
        master if extra is None else extra[0], master if extra is None else extra[1],
        master if gradient.pull is None else gradient.pull, controls, master if norms is None else norms,
        D, betas[0], betas[1], eps,
        PAIRS=pairs is not None, DENSE=gradient.dense is not None, EXTRA=extra is not None,
        PULL=gradient.pull is not None, UNIT=unit_norm, CLIP=clip, SHADOW=matrix.shadow is not master,
        NORM=norms is not None, MOVE=move, SLOTS=1 if pairs is None else pairs.slots, GROUPS=groups,
        BP=4 if interpreting() else max(2, min(32, TILE // BD)), BD=BD, num_warps=row_warps(BD),
    )  # fmt: skip


def row_warps(BD: int) -> int:
    """Warps of a program that holds rows of BD numbers."""
    return 4 if interpreting() or BD <= 512 else 8 if BD <= 4096 else 16


def update(
    matrix: Matrix,
    gradient: Gradient,
    controls: Tensor,
    betas: tuple[float, float],
    eps: float,
    *,
    unit_norm: bool,
    clip: bool,
    norms: Tensor | None = None,
) -> None:
    """As plain.update."""
    _launch_rows(matrix, gradient, controls, norms, betas, eps, unit_norm=unit_norm, clip=clip, move=True)


def squares(matrix: Matrix, gradient: Gradient, out: Tensor, *, unit_norm: bool) -> None:
    """As plain.squares."""
    _launch_rows(matrix, gradient, out, out, (0.0, 0.0), 0.0, unit_norm=unit_norm, clip=False, move=False)


@triton.jit
def _columns_kernel(
    grad_ptr, d_ptr, encoder_ptr, out_ptr, N, F, D, stride_gn, S: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    split = tl.program_id(1)
    d_ok = d < D
    acc = tl.zeros((BD,), tl.float32)
    for first in range(split * BR, N, S * BR):
        n = first + tl.arange(0, BR)
        at = grad_ptr + n.to(tl.int64)[:, None] * stride_gn + d[None, :]
        acc += tl.sum(tl.load(at, mask=(n < N)[:, None] & d_ok[None, :], other=0.0).to(tl.float32), axis=0)
    for first in range(split * BR, F, S * BR):
        f = first + tl.arange(0, BR)
        weight = tl.load(d_ptr + f, mask=f < F, other=0.0)
        at = encoder_ptr + f.to(tl.int64)[:, None] * D + d[None, :]
        rows = tl.load(at, mask=(f < F)[:, None] & d_ok[None, :], other=0.0)
        acc -= tl.sum(weight[:, None] * rows, axis=0)
    tl.store(out_ptr + split * D + d, acc, mask=d_ok)


def columns(grads: Tensor, d_pre: Tensor, encoder: Tensor, partial: Tensor) -> None:
    """As plain.columns."""
    (N, D), F, S = grads.shape, encoder.shape[0], partial.shape[0]
    BD = 32 if D > 16 else 16
    BR = 8 if interpreting() else 64
    _columns_kernel[(triton.cdiv(D, BD), S)](
        grads, d_pre, encoder, partial, N, F, D, grads.stride(0), S=S, BR=BR, BD=BD
    )  # fmt: skip


@triton.jit
def _clip_kernel(
    square_ptr, grad_ptr, partial_ptr, control_ptr, n_squares, n_grads, D, largest, S: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    i = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, n_squares, BLOCK):
        acc += tl.load(square_ptr + first + i, mask=first + i < n_squares, other=0.0)
    for first in range(0, n_grads, BLOCK):
        g = tl.load(grad_ptr + first + i, mask=first + i < n_grads, other=0.0)
        acc += g * g
    for first in range(0, D, BLOCK):
        g = tl.zeros((BLOCK,), tl.float32)
        for split in range(0, S):
            g += tl.load(partial_ptr + split * D + first + i, mask=first + i < D, other=0.0)
        acc += g * g
    factor = largest / (tl.sqrt(tl.sum(acc, axis=0)) + 1e-6)
    tl.store(control_ptr + _CLIP, tl.minimum(factor, 1.0, propagate_nan=tl.PropagateNan.ALL))


def clip_factor(squared: Tensor, grad: Tensor, partial: Tensor, largest: float, controls: Tensor) -> None:
    """As plain.clip_factor."""
    S, D = partial.shape
    block = 64 if interpreting() else 2048
    _clip_kernel[(1,)](
        squared, grad, partial, controls, squared.numel(), grad.numel() - D, D, float(largest), S=S, BLOCK=block
    )  # fmt: skip


@triton.jit
def _vectors_kernel(
    p_ptr, m_ptr, v_ptr, g_ptr, partial_ptr, control_ptr,
    loss_ptr, fired_ptr, penalty_ptr, aux_ptr, report_ptr, bad_ptr,
    total, VF, F, N, GN, D, b1, b2, eps, second_rate, loss_scale, inv_n, inv_gn,
    CLIP: tl.constexpr, SECOND: tl.constexpr, PENALTY: tl.constexpr, AUX: tl.constexpr,
    S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.arange(0, BLOCK)
    if tl.program_id(0) > 0:
        i = (tl.program_id(0) - 1) * BLOCK + block
        ok = i < total
        late = ok & (i >= VF)
        g = tl.load(g_ptr + i, mask=i < VF, other=0.0)
        for split in range(0, S):
            g += tl.load(partial_ptr + split * D + i - VF, mask=late, other=0.0)
        tl.store(g_ptr + i, g, mask=late)
        if CLIP:
            g *= tl.load(control_ptr + _CLIP)
        p = tl.load(p_ptr + i, mask=ok, other=0.0)
        m = tl.load(m_ptr + i, mask=ok, other=0.0)
        v = tl.load(v_ptr + i, mask=ok, other=0.0)
        m += (1 - b1) * (g - m)
        v = b2 * v + (1 - b2) * g * g
        move = tl.load(control_ptr + _STEP_SIZE) * m / (tl.sqrt(v) * tl.load(control_ptr + _INV_SQRT_C2) + eps)
        if SECOND:
            second = (i >= F) & (i < 2 * F)
            p -= tl.where(second, second_rate, 1.0) * move
            p = tl.where(second & (p < 0), 0.0, p)
        else:
            p -= move
        tl.store(p_ptr + i, p, mask=ok)
        tl.store(m_ptr + i, m, mask=ok)
        tl.store(v_ptr + i, v, mask=ok)
    else:
        whole = tl.zeros((BLOCK,), tl.float32)
        last = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, GN, BLOCK):
            i = first + block
            loss = tl.load(loss_ptr + i, mask=i < GN, other=0.0)
            whole += loss
            last += tl.where(i >= GN - N, loss, 0.0)
        fired = tl.zeros((BLOCK,), tl.int64)
        other = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, F, BLOCK):
            i = first + block
            fired += tl.load(fired_ptr + i, mask=i < F, other=0)
            if PENALTY:
                other += tl.load(penalty_ptr + i, mask=i < F, other=0.0)
        errors = tl.sum(whole, axis=0)
        more = tl.sum(other, axis=0)
        if AUX:
            more += tl.load(aux_ptr)
        loss = errors * loss_scale + more
        tl.store(report_ptr + _TOTAL, loss)
        tl.store(report_ptr + _MSE, tl.sum(last, axis=0) * inv_n)
        tl.store(report_ptr + _NESTED, errors * inv_gn)
        tl.store(report_ptr + _OTHER, more)
        tl.store(report_ptr + _L0, tl.sum(fired, axis=0).to(tl.float32) * inv_n)
        before = tl.load(bad_ptr)
        finite = tl.abs(loss) < float("inf")
        now = tl.load(control_ptr + _STEP).to(tl.int32)
        tl.store(bad_ptr, tl.where((before == 0) & ~finite, now, before))


def update_vectors(
    vectors: Vectors,
    partial: Tensor,
    controls: Tensor,
    betas: tuple[float, float],
    eps: float,
    *,
    clip: bool,
    second_rate: float,
    losses: Tensor,
    nested: bool,
    fired: Tensor,
    penalties: Tensor | None,
    aux: Tensor | None,
    report: Tensor,
    bad: Tensor,
) -> None:
    """As plain.update_vectors; the first program reports, the others move."""
    flat, (G, N), (S, D) = vectors.flat, losses.shape, partial.shape
    total, block = flat.numel(), 64 if interpreting() else 1024
    _vectors_kernel[(1 + triton.cdiv(total, block),)](
        flat, vectors.exp_avg, vectors.exp_avg_sq, vectors.grad, partial, controls,
        losses, fired, losses if penalties is None else penalties, losses if aux is None else aux, report, bad,
        total, total - D, fired.numel(), N, G * N, D, betas[0], betas[1], eps, float(second_rate),
        1.0 / (G * N if nested else N), 1.0 / N, 1.0 / (G * N),
        CLIP=clip, SECOND=second_rate != 0, PENALTY=penalties is not None, AUX=aux is not None, S=S, BLOCK=block,
    )  # fmt: skip
