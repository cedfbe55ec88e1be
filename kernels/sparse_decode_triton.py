"""Triton sparse decode (gather and sum), its gradient for the values, and the segment sum of weight gradients.

One program a row (or feature) and block of columns; sums run in a fixed order in float32, so results are deterministic.
An index that is no feature makes its output NaN and reads nothing, as a check on the host would wait for the device.
The segment sum reads 16 rows at a time: a feature that is active on every token would else wait for each row in turn.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attlas.kernels.dispatch import on_device


@triton.jit
def _decode_kernel(v_ptr, i_ptr, w_ptr, out_ptr, k, D, F, stride_wf, stride_wd, BD: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    ok = d < D
    acc = tl.zeros((BD,), dtype=tl.float32)
    for j in range(0, k):
        value = tl.load(v_ptr + row * k + j).to(tl.float32)
        feature = tl.load(i_ptr + row * k + j) + tl.zeros((BD,), dtype=tl.int64)  # a block: the mask below is one
        known = (feature >= 0) & (feature < F)
        w = tl.load(w_ptr + feature * stride_wf + d * stride_wd, mask=ok & known, other=0.0).to(tl.float32)
        acc += tl.where(known, value, float("nan")) * w
    tl.store(out_ptr + row * D + d, acc, mask=ok)


@triton.jit
def _gather_dot_kernel(g_ptr, i_ptr, w_ptr, out_ptr, k, D, F, stride_wf, stride_wd, BK: tl.constexpr, BD: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BK + tl.arange(0, BK)
    j_ok = j < k
    feature = tl.load(i_ptr + row * k + j, mask=j_ok, other=0)
    known = (feature >= 0) & (feature < F)
    acc = tl.where(known, 0.0, float("nan"))
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        d_ok = d < D
        g = tl.load(g_ptr + row * D + d, mask=d_ok, other=0.0).to(tl.float32)
        at = w_ptr + feature[:, None] * stride_wf + d[None, :] * stride_wd
        w = tl.load(at, mask=(j_ok & known)[:, None] & d_ok[None, :], other=0.0).to(tl.float32)
        acc += tl.sum(w * g[None, :], axis=1)
    tl.store(out_ptr + row * k + j, acc, mask=j_ok)


@triton.jit
def _segment_kernel(
    s_ptr, row_ptr, weight_ptr, offset_ptr, out_ptr, D, n_d, BP: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    feature = (tl.program_id(0) // n_d).to(tl.int64)
    d = tl.program_id(0) % n_d * BD + tl.arange(0, BD)
    ok = d < D
    start = tl.load(offset_ptr + feature)
    end = tl.load(offset_ptr + feature + 1)
    acc = tl.zeros((BD,), dtype=tl.float32)
    for first in range(start, end, BP):
        p = first + tl.arange(0, BP)
        p_ok = p < end
        row = tl.load(row_ptr + p, mask=p_ok, other=0)
        weight = tl.load(weight_ptr + p, mask=p_ok, other=0.0).to(tl.float32)
        at = s_ptr + row[:, None] * D + d[None, :]
        source = tl.load(at, mask=p_ok[:, None] & ok[None, :], other=0.0).to(tl.float32)
        acc += tl.sum(weight[:, None] * source, axis=0)
    tl.store(out_ptr + feature * D + d, acc, mask=ok)


def _block(D: int) -> int:
    return min(1024, triton.next_power_of_2(max(16, D)))


def decode_rows_triton(values_NK: Tensor, indices_NK: Tensor, W_FD: Tensor) -> Tensor:
    """Σ_k values·W[indices]: [N, D] in W's dtype."""
    (N, k), (F, D) = values_NK.shape, W_FD.shape
    BD = _block(D)
    out = torch.empty(N, D, dtype=W_FD.dtype, device=W_FD.device)
    grid = (N, triton.cdiv(D, BD))
    with on_device(W_FD):
        _decode_kernel[grid](values_NK.contiguous(), indices_NK.contiguous(), W_FD, out, k, D, F, *W_FD.stride(), BD=BD)
    return out


def gather_dot_triton(grad_ND: Tensor, indices_NK: Tensor, W_FD: Tensor) -> Tensor:
    """grad_n · W[indices_nk]: [N, k] in W's dtype."""
    (N, k), (F, D) = indices_NK.shape, W_FD.shape
    out = torch.empty(N, k, dtype=W_FD.dtype, device=W_FD.device)
    grid = (N, triton.cdiv(k, 16))
    sizes = {"BK": 16, "BD": min(256, _block(D))}
    with on_device(W_FD):
        _gather_dot_kernel[grid](
            grad_ND.contiguous(), indices_NK.contiguous(), W_FD, out, k, D, F, *W_FD.stride(), **sizes
        )
    return out


def segment_sum_triton(source_ND: Tensor, rows: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """For each segment, Σ weight·source[row]: [F, D] in the source's dtype."""
    D, F = source_ND.shape[1], offsets.numel() - 1
    out = torch.empty(F, D, dtype=source_ND.dtype, device=source_ND.device)
    BD = min(256, _block(D))
    n_d = triton.cdiv(D, BD)  # blocks of one feature stand side by side: they read the same rows and weights
    with on_device(source_ND):
        _segment_kernel[(F * n_d,)](
            source_ND.contiguous(), rows.contiguous(), weights.contiguous(), offsets, out, D, n_d, BP=16, BD=BD
        )
    return out
