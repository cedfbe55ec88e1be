"""Triton TopK encode: a matrix product whose epilogue keeps only what can still be among the k largest.

The first columns are done densely and give each row a threshold, its k-th largest so far. Then column chunks, each as wide
as all before it, run the product; the epilogue drops what does not exceed the threshold and appends the rest, packed as
one int64 (ordered value above, inverted index below), to a short list per row. A top-k over these unique keys merges lists
and raises the threshold, so the append order does not matter and ties go to the lower index. On data in no special order a
chunk adds about k entries a row; a list that overflows is noticed, and its rows are done again in dense tiles.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attlas.kernels.dispatch import interpreting
from attlas.kernels.topk_torch import select_torch

FIRST_COLUMNS = 4096
LOW_WORD = 0xFFFFFFFF


@triton.jit
def _append_kernel(
    x_ptr, w_ptr, b_ptr, threshold_ptr, list_ptr, count_ptr,
    N, D, low, high, capacity,
    stride_xn, stride_xd, stride_wd, stride_wf,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    n_m = tl.cdiv(N, BM)
    n_n = tl.cdiv(high - low, BN)
    per_group = GROUP * n_n  # row blocks in groups share columns of W in the second-level cache
    first_m = (pid // per_group) * GROUP
    size_m = tl.minimum(n_m - first_m, GROUP)
    pid_m = first_m + (pid % per_group) % size_m
    pid_n = (pid % per_group) // size_m
    rows = pid_m * BM + tl.arange(0, BM)
    columns = low + pid_n * BN + tl.arange(0, BN)
    row_ok, column_ok = rows < N, columns < high
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
    threshold = tl.load(threshold_ptr + rows, mask=row_ok, other=float("inf"))
    keep = ((acc > threshold[:, None]) | (acc != acc)) & row_ok[:, None] & column_ok[None, :]
    per_row = tl.sum(keep.to(tl.int32), axis=1)
    if tl.sum(per_row, axis=0) > 0:
        base = tl.atomic_add(count_ptr + rows, per_row, mask=row_ok & (per_row > 0))
        slot = base[:, None] + tl.cumsum(keep.to(tl.int32), axis=1) - 1
        bits = tl.where(acc != acc, float("nan"), acc + 0.0).to(tl.int32, bitcast=True)
        ordered = tl.where(acc != acc, 0x7FFFFFFF, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))
        inverted = (0x7FFFFFFF - columns).to(tl.int64)
        key = ordered.to(tl.int64) * 4294967296 + inverted[None, :]
        at = list_ptr + rows.to(tl.int64)[:, None] * capacity + slot
        tl.store(at, key, mask=keep & (slot < capacity))


def pack(values: Tensor, indices: Tensor) -> Tensor:
    """Float32 values and indices as int64 keys that sort by value, then by lower index; NaN above all."""
    bits = (values.float() + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ordered = torch.where(values.isnan(), 0x7FFFFFFF, ordered)
    return ordered.long() * (1 << 32) + (0x7FFFFFFF - indices)


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `pack`: float32 values and int64 indices."""
    ordered = (keys >> 32).to(torch.int32)
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.view(torch.float32), 0x7FFFFFFF - (keys & LOW_WORD)


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


def select_triton(
    x_ND: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, first: int = FIRST_COLUMNS
) -> tuple[Tensor, Tensor]:
    """The k largest pre-activations: values [N, k] in x's dtype, descending, and indices [N, k]. 1 ≤ k ≤ F, N ≥ 1."""
    (N, D), F = x_ND.shape, W_enc.shape[1]
    dtype = x_ND.dtype
    if interpreting() and dtype != torch.float32:  # the interpreter's 16-bit dot is wrong
        x_ND, W_enc, b_enc = x_ND.float(), W_enc.float(), b_enc.float()
    sizes = tile_sizes(x_ND.dtype)
    low = min(F, max(first, 2 * k))
    keys = _dense_keys(x_ND, W_enc[:, :low], b_enc[:low], k)
    capacity = 4 * k + 64
    overflow = torch.zeros(N, dtype=torch.bool, device=x_ND.device)
    while low < F:
        high = min(F, 2 * low)
        threshold = unpack(keys[:, -1])[0].contiguous()
        lists = torch.full((N, capacity), torch.iinfo(torch.int64).min, dtype=torch.int64, device=x_ND.device)
        counts = torch.zeros(N, dtype=torch.int32, device=x_ND.device)
        grid = (triton.cdiv(N, sizes["BM"]) * triton.cdiv(high - low, sizes["BN"]),)
        _append_kernel[grid](
            x_ND, W_enc, b_enc, threshold, lists, counts,
            N, D, low, high, capacity, *x_ND.stride(), *W_enc.stride(),
            PRECISION=precision(x_ND.dtype), **sizes, **launch_options(),
        )  # fmt: skip
        overflow |= counts > capacity
        keys = torch.cat([keys, lists], 1).topk(k, dim=-1).values
        low = high
    values, indices = unpack(keys)
    values = values.to(dtype)
    if bool(overflow.any()):
        rows = overflow.nonzero().squeeze(1)
        again_values, again_indices = select_torch(x_ND[rows], W_enc, b_enc, k)
        values[rows], indices[rows] = again_values.to(dtype), again_indices
    return values, indices


def _dense_keys(x_ND: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Tensor:
    """Keys of the k largest of the first columns, in row tiles of at most 2²⁶ elements."""
    rows = max(1, (1 << 26) // W_enc.shape[1])
    at = torch.arange(W_enc.shape[1], device=x_ND.device)
    parts = []
    for x in x_ND.split(rows):
        if x.dtype == torch.float32:
            pre = torch.addmm(b_enc, x, W_enc)
        else:  # 16-bit output would round the keys; the product itself still runs in 16 bits where the device can
            pre = _product_float32(x, W_enc) + b_enc.float()
        parts.append(pack(pre, at).topk(k, dim=-1).values)
    return torch.cat(parts)


def _product_float32(x: Tensor, W: Tensor) -> Tensor:
    """16-bit product with float32 output."""
    try:
        return torch.mm(x, W, out_dtype=torch.float32)
    except (RuntimeError, TypeError):
        return x.float() @ W.float()
