"""Triton threshold encode: the product of sparse encode, once, with the maxima of pre-activation − threshold.

One program a row reads the blocks whose maximum exceeds 0: a first pass counts, a scan places, a second pass writes, from
the workspace. No atomics, so the order (row, then feature) and the result are the same each time; nothing is dropped.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attlas.kernels.block_product_triton import Tiling, block_product, tiling
from attlas.kernels.dispatch import interpreting, on_device
from attlas.kernels.results import check_capacity


@triton.jit
def _active_kernel(
    pre_ptr, max_ptr, limit_ptr, count_ptr, offset_ptr, value_ptr, index_ptr,
    n_blocks, C, P, low,
    WRITE: tl.constexpr, G: tl.constexpr, PB: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    base = tl.zeros((), tl.int64)
    if WRITE:
        base = tl.load(offset_ptr + row)
    n = 0
    for start in range(0, n_blocks, PB):
        block = start + tl.arange(0, PB)
        maximum = tl.load(max_ptr + row * n_blocks + block, mask=block < n_blocks, other=-1.0)
        firing = ~(maximum <= 0)  # NaN is active
        if tl.sum(firing.to(tl.int32), axis=0) > 0:
            inside = tl.reshape(firing[:, None] & (tl.arange(0, G)[None, :] >= 0), (PB * G,))
            columns = start * G + tl.arange(0, PB * G)
            inside = inside & (columns < C)
            value = tl.load(pre_ptr + row * P + columns, mask=inside, other=0.0)
            limit = tl.load(limit_ptr + columns, mask=inside, other=0.0)
            keep = inside & ~(value <= limit)
            if WRITE:
                at = base + n + tl.cumsum(keep.to(tl.int32), axis=0) - 1
                tl.store(value_ptr + at, value, mask=keep)
                tl.store(index_ptr + at, (columns + low).to(tl.int64), mask=keep)
            n += tl.sum(keep.to(tl.int32), axis=0)
    if not WRITE:
        tl.store(count_ptr + row, n)


def piece(block: int) -> int:
    """Blocks the kernel looks at together: 1,024 columns."""
    return max(1, (32 if interpreting() else 1024) // block)


def threshold_triton(
    x_ND: Tensor, W_enc: Tensor, b_enc: Tensor, limit_F: Tensor, capacity: int | None, tiles: Tiling | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(values [nnz], indices [nnz], counts int32 [N]) in row order; limit_F is float32."""
    N, F = x_ND.shape[0], W_enc.shape[1]
    b_enc, limit_F = b_enc.contiguous(), limit_F.contiguous()
    tiles = tiles or tiling(N, F, 1, 4)
    values, indices = [x_ND.new_zeros(0)], [torch.zeros(0, dtype=torch.int64, device=x_ND.device)]
    counts = torch.zeros(N, dtype=torch.int32, device=x_ND.device)
    total = 0
    for start in range(0, N, tiles.rows):
        rows = slice(start, min(N, start + tiles.rows))
        parts = []
        for low in range(0, F, tiles.columns):
            high = min(F, low + tiles.columns)
            part = _chunk(x_ND[rows], W_enc[:, low:high], b_enc[low:high], limit_F[low:high], tiles.block, low)
            total += part[0].numel()
            check_capacity(total, capacity, rows.stop)
            parts.append(part)
        value, feature, counts[rows] = _joined(parts)
        values.append(value.to(x_ND.dtype))
        indices.append(feature)
    return torch.cat(values), torch.cat(indices), counts


def _chunk(
    x_ND: Tensor, W_DC: Tensor, b_C: Tensor, limit_C: Tensor, block: int, low: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, features and counts of one chunk."""
    N, C = x_ND.shape[0], W_DC.shape[1]
    pre, maxima = block_product(x_ND, W_DC, b_C, limit_C, block, torch.float32)
    counts = torch.empty(N, dtype=torch.int32, device=x_ND.device)
    sizes = {"G": block, "PB": piece(block)}

    def launch(offsets: Tensor, values: Tensor, indices: Tensor, write: bool) -> None:
        with on_device(x_ND):
            _active_kernel[(N,)](
                pre, maxima, limit_C, counts, offsets, values, indices,
                maxima.shape[1], C, pre.shape[1], low, WRITE=write, **sizes,
            )  # fmt: skip

    nothing = torch.empty(1, dtype=torch.int64, device=x_ND.device)
    launch(nothing, pre, nothing, False)
    ends = counts.cumsum(0)
    total = int(ends[-1])
    values = torch.empty(total, dtype=torch.float32, device=x_ND.device)
    indices = torch.empty(total, dtype=torch.int64, device=x_ND.device)
    if total:
        launch(ends - counts, values, indices, True)
    return values, indices, counts


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Chunks of columns of the same rows, put together row by row."""
    if len(parts) == 1:
        return parts[0]
    values, indices, counts = (torch.cat(column) for column in zip(*parts, strict=True))
    n_rows = parts[0][2].numel()
    row = torch.arange(n_rows, device=counts.device).repeat(len(parts))
    order = torch.repeat_interleave(row, counts.long()).sort(stable=True).indices
    return values[order], indices[order], counts.view(len(parts), n_rows).sum(0, dtype=torch.int32)
