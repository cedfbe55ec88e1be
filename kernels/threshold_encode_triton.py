"""Triton threshold encode: one product counts active entries per row and column block, a scan places them, a second product
writes them. No atomics, so the order (row, then feature) and the result are the same each time; nothing is dropped."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attlas.kernels.dispatch import interpreting
from attlas.kernels.results import check_capacity
from attlas.kernels.topk_encode_triton import launch_options, precision, tile_sizes


@triton.jit
def _threshold_kernel(
    x_ptr, w_ptr, b_ptr, limit_ptr, count_ptr, value_ptr, index_ptr,
    N, D, F, n_n,
    stride_xn, stride_xd, stride_wd, stride_wf,
    WRITE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pid_m, pid_n = tl.program_id(0), tl.program_id(1)
    rows = pid_m * BM + tl.arange(0, BM)
    columns = pid_n * BN + tl.arange(0, BN)
    row_ok, column_ok = rows < N, columns < F
    d = tl.arange(0, BK)
    x_at = x_ptr + rows.to(tl.int64)[:, None] * stride_xn + d[None, :] * stride_xd
    w_at = w_ptr + d.to(tl.int64)[:, None] * stride_wd + columns.to(tl.int64)[None, :] * stride_wf
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, D, BK):
        d_ok = d < D - start
        x = tl.load(x_at, mask=row_ok[:, None] & d_ok[None, :], other=0.0)
        w = tl.load(w_at, mask=d_ok[:, None] & column_ok[None, :], other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
        x_at += BK * stride_xd
        w_at += BK * stride_wd
    acc += tl.load(b_ptr + columns, mask=column_ok, other=0.0).to(tl.float32)[None, :]
    limit = tl.load(limit_ptr + columns, mask=column_ok, other=float("inf")).to(tl.float32)
    keep = ((acc > limit[None, :]) | (acc != acc)) & row_ok[:, None] & column_ok[None, :]
    at = count_ptr + rows.to(tl.int64) * n_n + pid_n
    if WRITE:
        base = tl.load(at, mask=row_ok, other=0)
        slot = base[:, None] + tl.cumsum(keep.to(tl.int32), axis=1) - 1
        tl.store(value_ptr + slot, acc, mask=keep)
        tl.store(index_ptr + slot, columns.to(tl.int64)[None, :] + tl.zeros((BM, BN), tl.int64), mask=keep)
    else:
        tl.store(at, tl.sum(keep.to(tl.int32), axis=1).to(tl.int64), mask=row_ok)


def threshold_triton(
    x_ND: Tensor, W_enc: Tensor, b_enc: Tensor, limit_F: Tensor, capacity: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(values [nnz], indices [nnz], counts [N]) in row order."""
    (N, D), F, dtype = x_ND.shape, W_enc.shape[1], x_ND.dtype
    if interpreting():
        x_ND, W_enc, b_enc, limit_F = x_ND.float(), W_enc.float(), b_enc.float(), limit_F.float()
    sizes = {name: size for name, size in tile_sizes(x_ND.dtype).items() if name != "GROUP"}
    n_n = triton.cdiv(F, sizes["BN"])
    grid = (triton.cdiv(N, sizes["BM"]), n_n)
    counts = torch.zeros(N, n_n, dtype=torch.int64, device=x_ND.device)
    limit_F = limit_F.contiguous()

    def launch(table: Tensor, values: Tensor, indices: Tensor, write: bool) -> None:
        _threshold_kernel[grid](
            x_ND, W_enc, b_enc, limit_F, table, values, indices, N, D, F, n_n, *x_ND.stride(), *W_enc.stride(),
            WRITE=write, PRECISION=precision(x_ND.dtype), **sizes, **launch_options(),
        )  # fmt: skip

    unused = x_ND.new_zeros(1, dtype=torch.float32)
    launch(counts, unused, counts, False)
    flat = counts.view(-1)
    ends = flat.cumsum(0)
    total = int(ends[-1])
    check_capacity(total, capacity, N)
    values = torch.empty(total, dtype=torch.float32, device=x_ND.device)
    indices = torch.empty(total, dtype=torch.int64, device=x_ND.device)
    launch((ends - flat).contiguous(), values, indices, True)
    return values.to(dtype), indices, counts.sum(1)
