"""Triton TopK encode: a product that leaves block maxima, chunk by chunk, and a selection that reads a few blocks a row.

With a workspace in float32 the choice is that of float32 accumulation. With one in bfloat16, inputs are rounded to it, the
choice is made on its grid, and the chosen pre-activations are computed again from the inputs as they are, in float32; a
product of 16-bit numbers at its full speed then serves float32 weights. Nothing waits for the device.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attlas.kernels.block_product_triton import Tiling, block_product, tiling
from attlas.kernels.block_select_triton import BlockSelect, select_bytes
from attlas.kernels.dispatch import on_device


@triton.jit
def _evaluate_kernel(
    x_ptr, w_ptr, b_ptr, i_ptr, out_ptr, k, D,
    stride_xn, stride_xd, stride_wd, stride_wf,
    BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BK + tl.arange(0, BK)
    j_ok = j < k
    feature = tl.load(i_ptr + row * k + j, mask=j_ok, other=0).to(tl.int64)
    acc = tl.load(b_ptr + feature, mask=j_ok, other=0.0).to(tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        d_ok = d < D
        x = tl.load(x_ptr + row * stride_xn + d * stride_xd, mask=d_ok, other=0.0).to(tl.float32)
        at = w_ptr + feature[:, None] * stride_wf + d.to(tl.int64)[None, :] * stride_wd
        w = tl.load(at, mask=j_ok[:, None] & d_ok[None, :], other=0.0).to(tl.float32)
        acc += tl.sum(w * x[None, :], axis=1)
    tl.store(out_ptr + row * k + j, acc, mask=j_ok)


def evaluate_triton(x_ND: Tensor, W_enc: Tensor, b_enc: Tensor, index_NK: Tensor) -> Tensor:
    """Pre-activations of the features named, in float32: [N, k]. Fast where W_enc is the transpose of a stored [F, D]."""
    (N, k), D = index_NK.shape, x_ND.shape[1]
    out = torch.empty(N, k, dtype=torch.float32, device=x_ND.device)
    grid = (N, triton.cdiv(k, 16))
    with on_device(x_ND):
        _evaluate_kernel[grid](
            x_ND, W_enc, b_enc, index_NK, out, k, D, *x_ND.stride(), *W_enc.stride(),
            BK=16, BD=min(256, max(16, triton.next_power_of_2(D))),
        )  # fmt: skip
    return out


def select_triton(
    x_ND: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    grid: torch.dtype = torch.float32,
    *,
    shadow: tuple[Tensor, Tensor] | None = None,
    tiles: Tiling | None = None,
) -> tuple[Tensor, Tensor]:
    """The k largest pre-activations: values [N, k] in x's dtype, descending, and indices int64 [N, k]. 1 ≤ k ≤ F, N ≥ 1.

    Args:
        grid: float32 or bfloat16, what pre-activations are compared in.
        shadow: x and W_enc in bfloat16, where the caller keeps them; with the bfloat16 grid alone.
        tiles: in place of those that fill the workspace (tests).
    """
    N, F, dtype = x_ND.shape[0], W_enc.shape[1], x_ND.dtype
    b_enc = b_enc.contiguous()
    width = 2 if grid == torch.bfloat16 else 4
    tiles = tiles or tiling(N, F, k, width, select_bytes(k))
    x, W = shadow if shadow is not None and grid == torch.bfloat16 else (x_ND, W_enc)
    found = BlockSelect(N, k, x.device)
    for start in range(0, N, tiles.rows):
        rows = slice(start, min(N, start + tiles.rows))
        for low in range(0, F, tiles.columns):
            high = min(F, low + tiles.columns)
            pre, maxima = block_product(x[rows], W[:, low:high], b_enc[low:high], None, tiles.block, grid)
            found.add(rows, pre, maxima, low, high - low, tiles.block)
            del pre, maxima  # before the next chunk's are made
    values = found.best
    if grid == torch.bfloat16 and dtype != torch.bfloat16:
        values = evaluate_triton(x_ND, W_enc, b_enc, found.index)
    # in order of column so far: a stable order leaves ties to the lower index
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values.to(dtype), found.index.gather(1, order).long()
