"""Triton TopK encode: a product that leaves block maxima, chunk by chunk, and a selection that reads a few blocks a row.

With a workspace in float32 the choice is that of float32 accumulation. With one in bfloat16, inputs are rounded to it, the
choice is made on its grid, and the chosen pre-activations are computed again from the inputs as they are, in float32; a
product of 16-bit numbers at its full speed then serves float32 weights. Nothing waits for the device.

The selection takes the k largest of a chunk's row from its block maxima (block_product_triton) and what earlier chunks left.
One program a row. The k-th largest block maximum τ is found bit by bit on the ordered bits of the numbers. The k best
blocks, by maximum and then by lower index, hold the k best columns; they are read a piece at a time, and columns that reach
τ and exceed the k-th of earlier chunks join a list in order of column. A list that has no room for a piece is first cut to
its k best, the same way, so nothing overflows whatever the data. Ties go to the lower column, NaN is the largest.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attlas.kernels.block_product_triton import Tiling, block_product, tiling
from attlas.kernels.dispatch import interpreting, on_device


@triton.jit
def _ordered(values, SHIFT: tl.constexpr):
    # int32 that sorts as the float does, NaN above all and −0 as 0; SHIFT 16 for numbers on the bfloat16 grid
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(values != values, 0x7FFFFFFF, bits) >> SHIFT


@triton.jit
def _unordered(ordered, SHIFT: tl.constexpr):
    bits = tl.where(ordered < 0, ordered ^ (0x7FFFFFFF >> SHIFT), ordered) << SHIFT
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _kth(ordered, ok, k, SHIFT: tl.constexpr):
    # The largest t with at least k entries ≥ t; the type's least where there are fewer than k.
    t = tl.where(tl.sum((ok & (ordered >= 0)).to(tl.int32), axis=0) >= k, 0, -2147483648 >> SHIFT)
    higher = t + (1 << (30 - SHIFT))
    t = tl.where(tl.sum((ok & (ordered >= higher)).to(tl.int32), axis=0) >= k, higher, t)
    for pair in range(0, (30 - SHIFT) // 2):  # two bits at a time: three counts in one sum, 21 bits each
        step = 1 << (28 - SHIFT - 2 * pair)
        counts = (ordered >= t + step).to(tl.int64) + ((ordered >= t + 2 * step).to(tl.int64) << 21)
        counts += (ordered >= t + 3 * step).to(tl.int64) << 42
        counts = tl.sum(tl.where(ok, counts, 0), axis=0)
        enough = ((counts & 0x1FFFFF) >= k).to(tl.int32) + ((counts >> 21 & 0x1FFFFF) >= k) + ((counts >> 42) >= k)
        t += step * enough
    return t


@triton.jit
def _best(ordered, ok, k, SHIFT: tl.constexpr):
    # Which entries are the k best, equal ones by place; and the least of them.
    t = _kth(ordered, ok, k, SHIFT)
    above = ok & (ordered > t)
    equal = ok & (ordered == t)
    room = k - tl.sum(above.to(tl.int32), axis=0)
    return above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room)), t


@triton.jit
def _cut(value_at, column_at, n, k, SHIFT: tl.constexpr, CAP: tl.constexpr):
    # The list's k best to its front, in the order they stood in.
    place = tl.arange(0, CAP)
    ok = place < n
    value = tl.load(value_at + place, mask=ok, other=0)
    column = tl.load(column_at + place, mask=ok, other=0)
    keep, least = _best(value, ok, k, SHIFT)
    to = tl.cumsum(keep.to(tl.int32), axis=0) - 1
    tl.debug_barrier()
    tl.store(value_at + to, value, mask=keep)
    tl.store(column_at + to, column, mask=keep)
    tl.debug_barrier()
    return least


@triton.jit
def _select_kernel(
    max_ptr, pre_ptr, best_ptr, index_ptr, id_ptr, value_ptr, column_ptr,
    n_blocks, C, P, k, low,
    FIRST: tl.constexpr, SHIFT: tl.constexpr, G: tl.constexpr,
    MB: tl.constexpr, PB: tl.constexpr, KP: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    best_at, index_at = best_ptr + row * k, index_ptr + row * k
    id_at, value_at, column_at = id_ptr + row * k, value_ptr + row * CAP, column_ptr + row * CAP
    slots = tl.arange(0, KP)
    floor = -2147483648 >> SHIFT
    n = 0
    if not FIRST:  # the best of earlier chunks stand first: theirs are the lower columns
        earlier = _ordered(tl.load(best_at + slots, mask=slots < k, other=float("inf")), SHIFT)
        tl.store(value_at + slots, earlier, mask=slots < k)
        tl.store(column_at + slots, tl.load(index_at + slots, mask=slots < k, other=0), mask=slots < k)
        floor = tl.min(tl.where(slots < k, earlier, 0x7FFFFFFF >> SHIFT), axis=0)
        n = k
    j = tl.arange(0, MB)
    j_ok = j < n_blocks
    maxima = tl.load(max_ptr + row * n_blocks + j, mask=j_ok, other=0.0).to(tl.float32)
    maxima = _ordered(maxima, SHIFT)
    chosen, least = _best(maxima, j_ok, k, SHIFT)
    if not FIRST:
        chosen = chosen & (maxima > floor)
    n_chosen = tl.sum(chosen.to(tl.int32), axis=0)
    tl.store(id_at + tl.cumsum(chosen.to(tl.int32), axis=0) - 1, j, mask=chosen)
    tl.debug_barrier()
    for start in range(0, n_chosen, PB):
        q = start + tl.arange(0, PB)
        block = tl.load(id_at + q, mask=q < n_chosen, other=0)
        columns = tl.reshape(block[:, None] * G + tl.arange(0, G)[None, :], (PB * G,))
        within = tl.reshape((q < n_chosen)[:, None] & (tl.arange(0, G)[None, :] >= 0), (PB * G,)) & (columns < C)
        value = _ordered(tl.load(pre_ptr + row * P + columns, mask=within, other=0.0).to(tl.float32), SHIFT)
        keep = within & (value >= least)
        if not FIRST:
            keep = keep & (value > floor)
        more = tl.sum(keep.to(tl.int32), axis=0)
        if n + more > CAP:
            least = tl.maximum(least, _cut(value_at, column_at, n, k, SHIFT, CAP))
            n = tl.minimum(n, k)
        to = n + tl.cumsum(keep.to(tl.int32), axis=0) - 1
        tl.store(value_at + to, value, mask=keep)
        tl.store(column_at + to, columns + low, mask=keep)
        n += more
        tl.debug_barrier()
    if n > k:
        _cut(value_at, column_at, n, k, SHIFT, CAP)
    value = tl.load(value_at + slots, mask=slots < k, other=0)
    tl.store(best_at + slots, _unordered(value, SHIFT), mask=slots < k)
    tl.store(index_at + slots, tl.load(column_at + slots, mask=slots < k, other=0), mask=slots < k)


def select_sizes(n_blocks: int, k: int, block: int) -> dict[str, int]:
    """Sizes of the kernel's tiles: a piece of 512 columns, and a list that has room for k and a piece."""
    piece = 32 if interpreting() else 512
    return {
        "MB": max(16, triton.next_power_of_2(n_blocks)),
        "PB": max(1, piece // block),
        "KP": max(16, triton.next_power_of_2(k)),
        "CAP": triton.next_power_of_2(k + piece),
    }


def select_bytes(k: int) -> int:
    """Workspace bytes a row: block numbers, and the list's values and columns."""
    return 4 * k + 8 * select_sizes(1, k, 1)["CAP"]


def select_warps(sizes: dict[str, int]) -> int:
    """Warps of the kernel: more where a row has many blocks or a long list."""
    return 4 if interpreting() or max(sizes["MB"], sizes["CAP"]) <= 2048 else 8


class BlockSelect:
    """The k best of a row so far: `best` float32 [N, k] and `index` int32 [N, k], in order of column."""

    def __init__(self, N: int, k: int, device: torch.device) -> None:
        self.k = k
        self.best = torch.empty(N, k, dtype=torch.float32, device=device)
        self.index = torch.empty(N, k, dtype=torch.int32, device=device)

    def add(self, rows: slice, pre: Tensor, maxima: Tensor, low: int, C: int, block: int) -> None:
        """Take in columns low … low + C − 1 of some rows. Chunks come in order; the first has at least k columns."""
        (n, P), k = pre.shape, self.k
        sizes = select_sizes(maxima.shape[1], k, block)
        ids = torch.empty(n, k, dtype=torch.int32, device=pre.device)
        lists = torch.empty(2, n, sizes["CAP"], dtype=torch.int32, device=pre.device)
        with on_device(pre):
            _select_kernel[(n,)](
                maxima, pre, self.best[rows], self.index[rows], ids, lists[0], lists[1],
                maxima.shape[1], C, P, k, low,
                FIRST=low == 0, SHIFT=16 if pre.dtype == torch.bfloat16 else 0, G=block,
                **sizes, num_warps=select_warps(sizes),
            )  # fmt: skip


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


def best_of_rows(
    x_ND: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, grid: torch.dtype, tiles: Tiling | None = None
) -> BlockSelect:
    """The k best of every row on a grid, in order of column; `best` holds them as compared. 1 ≤ k ≤ F, N ≥ 1.

    With the bfloat16 grid x and W_enc may be in bfloat16 already.
    """
    N, F = x_ND.shape[0], W_enc.shape[1]
    b_enc = b_enc.contiguous()
    tiles = tiles or tiling(N, F, k, 2 if grid == torch.bfloat16 else 4, select_bytes(k))
    found = BlockSelect(N, k, x_ND.device)
    for start in range(0, N, tiles.rows):
        rows = slice(start, min(N, start + tiles.rows))
        for low in range(0, F, tiles.columns):
            high = min(F, low + tiles.columns)
            pre, maxima = block_product(x_ND[rows], W_enc[:, low:high], b_enc[low:high], None, tiles.block, grid)
            found.add(rows, pre, maxima, low, high - low, tiles.block)
            del pre, maxima  # before the next chunk's are made
    return found


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
    dtype = x_ND.dtype
    x, W = shadow if shadow is not None and grid == torch.bfloat16 else (x_ND, W_enc)
    found = best_of_rows(x, W, b_enc, k, grid, tiles)
    values = found.best
    if grid == torch.bfloat16 and dtype != torch.bfloat16:
        values = evaluate_triton(x_ND, W_enc, b_enc.contiguous(), found.index)
    # in order of column so far: a stable order leaves ties to the lower index
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values.to(dtype), found.index.gather(1, order).long()
