"""Matrix product into a bounded workspace, with the maximum of every few columns beside it: the front half of sparse encode.

A tile of pre-activations x·W + b is stored in the workspace's type and the maxima of its blocks of columns with it, so that
what chooses afterwards (topk_encode_triton, threshold_encode_triton) reads one block in many. NaN is the largest.
`tiling` says how many rows and columns go through the workspace at a time; the product runs chunk by chunk, and a chunk
mostly stays in the second-level cache.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from attlas.kernels.dispatch import interpreting, on_device

WORKSPACE_BYTES = 120_000_000
ROWS = 1024
"""Rows that a chunk should have at least: with fewer the product would wait for its weights."""


@triton.jit
def _nan_max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _block_product_kernel(
    x_ptr, w_ptr, b_ptr, limit_ptr, pre_ptr, max_ptr,
    N, D, C, P,
    stride_xn, stride_xd, stride_wd, stride_wf,
    LIMIT: tl.constexpr, NARROW: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    n_m = tl.cdiv(N, BM)
    n_n = tl.cdiv(P, BN)
    per_group = GROUP * n_n  # row blocks in groups share columns of W in the second-level cache
    first_m = (pid // per_group) * GROUP
    size_m = tl.minimum(n_m - first_m, GROUP)
    pid_m = first_m + (pid % per_group) % size_m
    pid_n = (pid % per_group) // size_m
    rows = pid_m * BM + tl.arange(0, BM)
    columns = pid_n * BN + tl.arange(0, BN)
    row_ok, column_ok = rows < N, columns < C
    d = tl.arange(0, BK)
    x_at = x_ptr + rows.to(tl.int64)[:, None] * stride_xn + d[None, :] * stride_xd
    w_at = w_ptr + d.to(tl.int64)[:, None] * stride_wd + columns.to(tl.int64)[None, :] * stride_wf
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, D, BK):
        d_ok = d < D - start
        x = tl.load(x_at, mask=row_ok[:, None] & d_ok[None, :], other=0.0)
        w = tl.load(w_at, mask=d_ok[:, None] & column_ok[None, :], other=0.0)
        if NARROW:
            x, w = x.to(tl.bfloat16), w.to(tl.bfloat16)
        if UPCAST:  # the interpreter's 16-bit dot is wrong; the products of 16-bit numbers are exact in float32
            x, w = x.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
        x_at += BK * stride_xd
        w_at += BK * stride_wd
    acc += tl.load(b_ptr + columns, mask=column_ok, other=-float("inf")).to(tl.float32)[None, :]
    at = pre_ptr + rows.to(tl.int64)[:, None] * P + columns[None, :]
    tl.store(at, acc.to(pre_ptr.dtype.element_ty), mask=row_ok[:, None] & (columns < P)[None, :])
    if LIMIT:
        acc -= tl.load(limit_ptr + columns, mask=column_ok, other=0.0).to(tl.float32)[None, :]
    maxima = tl.reduce(tl.reshape(acc, (BM, BN // G, G)), 2, _nan_max)
    block = pid_n * (BN // G) + tl.arange(0, BN // G)
    at = max_ptr + rows.to(tl.int64)[:, None] * (P // G) + block[None, :]
    tl.store(at, maxima.to(max_ptr.dtype.element_ty), mask=row_ok[:, None] & (block < P // G)[None, :])


@dataclass(frozen=True)
class Tiling:
    """How much goes through the workspace at a time."""

    rows: int
    columns: int
    block: int
    """Columns that share a maximum."""


def tiling(N: int, F: int, k: int, width: int, extra: int = 0) -> Tiling:
    """Chunks for which tile, maxima and `extra` bytes a row stay below WORKSPACE_BYTES.

    Args:
        N, F: rows and columns in all.
        k: entries chosen a row: many of them take narrower blocks, or most blocks would hold one.
        width: bytes of a number in the workspace.
        extra: further bytes a row.
    """
    largest = int((WORKSPACE_BYTES / ROWS - extra) / (width * (1 + 1 / 16))) // 256 * 256
    n_chunks = triton.cdiv(F, max(4096, largest))
    columns = triton.cdiv(triton.cdiv(F, n_chunks), 256) * 256
    block = 8 if interpreting() else 64 if columns >= 128 * k else 16
    rows = int(WORKSPACE_BYTES / (extra + columns * width * (1 + 1 / block)))
    rows = rows if rows < 128 else rows // 128 * 128
    return Tiling(min(N, rows), min(F, columns), block)


def precision(dtype: torch.dtype) -> str:
    """tf32 for float32 inputs only where torch's own products use it, by its new switch or by its old one."""
    if dtype != torch.float32:
        return "ieee"
    matmul = torch.backends.cuda.matmul
    try:
        return "tf32" if matmul.allow_tf32 else "ieee"
    except RuntimeError:  # set by the new switch: torch then refuses to read the old one
        return "tf32" if matmul.fp32_precision == "tf32" else "ieee"


def tile_sizes(dtype: torch.dtype) -> dict[str, int]:
    """Block shape of the product: 128×256 for 16-bit inputs, less for float32's larger tiles; tiny when interpreted."""
    if interpreting():
        return {"BM": 16, "BN": 32, "BK": 16, "GROUP": 2}
    if dtype == torch.float32:
        return {"BM": 128, "BN": 128, "BK": 32, "GROUP": 8}
    return {"BM": 128, "BN": 256, "BK": 64, "GROUP": 8}


def launch_options() -> dict[str, int]:
    """Warps and pipeline stages of the product."""
    return {"num_warps": 4 if interpreting() else 8, "num_stages": 3}


def block_product(
    x_ND: Tensor, W_DC: Tensor, b_C: Tensor, limit_C: Tensor | None, block: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """One chunk: pre-activations [N, P] and maxima [N, P / block] in `dtype`, P = C rounded up to whole blocks.

    What lies beyond C is −inf (NaN where the row of x is not finite). With a limit the maxima are those of
    pre-activation − limit. `dtype` bfloat16 also rounds x and W to bfloat16 before the product.
    """
    (N, D), C = x_ND.shape, W_DC.shape[1]
    P = triton.cdiv(C, block) * block
    pre = torch.empty(N, P, dtype=dtype, device=x_ND.device)
    maxima = torch.empty(N, P // block, dtype=dtype, device=x_ND.device)
    narrow = dtype == torch.bfloat16 and x_ND.dtype != torch.bfloat16
    sizes = tile_sizes(x_ND.dtype)
    grid = (triton.cdiv(N, sizes["BM"]) * triton.cdiv(P, sizes["BN"]),)
    with on_device(x_ND):
        _block_product_kernel[grid](
            x_ND, W_DC, b_C, b_C if limit_C is None else limit_C, pre, maxima,
            N, D, C, P, *x_ND.stride(), *W_DC.stride(),
            LIMIT=limit_C is not None, NARROW=narrow, UPCAST=interpreting(), G=block,
            PRECISION="ieee" if narrow else precision(x_ND.dtype), **sizes, **launch_options(),
        )  # fmt: skip
    return pre, maxima
