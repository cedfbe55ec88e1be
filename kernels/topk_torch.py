"""The k largest pre-activations in torch, ties by the lower index, tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

from attlas.kernels.dispatch import require

# The most rows and columns of a tile of pre-activations, and the columns one matrix product computes: a panel that narrow
# is still in cache when its block maxima are taken.
TILE_ROWS = 1 << 9


TILE_COLUMNS = 1 << 13


PANEL_COLUMNS = 1 << 10


# Columns a block in the first stage of the selection.
BLOCK = 64


# The most entries `topk_rows` looks at together: rows with a tie at the k-th place take some int64 of that size.
ROWS_ELEMENTS = 1 << 22


def select_torch(
    x_ND: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, grid: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Tiles of rows and columns; the top k of a column tile merge with those of the tiles before it.

    With the bfloat16 grid, inputs and pre-activations are rounded to it for the choice, and the chosen computed again.
    """
    coarse = grid == torch.bfloat16
    N, F = x_ND.shape[0], W_enc.shape[1]
    columns = max(min(F, TILE_COLUMNS), min(F, 2 * k))
    rows = min(N, TILE_ROWS)
    values = x_ND.new_empty(N, k)
    indices = torch.empty(N, k, dtype=torch.int64, device=x_ND.device)
    buffer = x_ND.new_empty(rows, columns, dtype=torch.promote_types(x_ND.dtype, torch.float32) if coarse else None)
    for start in range(0, N, rows):
        x = x_ND[start : start + rows]
        best: tuple[Tensor, Tensor] | None = None
        for low in range(0, F, columns):
            high = min(F, low + columns)
            tile = buffer.view(-1)[: x.shape[0] * (high - low)].view(x.shape[0], high - low)
            wanted = min(k, high - low)
            if coarse:
                rounded = _on_grid(x)
                bias = b_enc[low:high].to(rounded.dtype)
                tile.copy_(_on_grid(torch.addmm(bias, rounded, _on_grid(W_enc[:, low:high]))))
                maxima = None
            else:
                maxima = pre_activations(x, W_enc[:, low:high], b_enc[low:high], tile, blocks=_in_blocks(tile, wanted))
            top_values, top_indices = topk_stable(tile, wanted, maxima)
            top_indices += low
            if best is not None:
                # Earlier tiles stand first and have lower indices, so a stable order keeps the tie rule.
                both = torch.cat([best[0], top_values], 1)
                top_values, position = topk_stable(both, min(k, both.shape[1]))
                top_indices = torch.cat([best[1], top_indices], 1).gather(1, position)
            best = (top_values, top_indices)
        assert best is not None
        if coarse and x_ND.dtype != torch.bfloat16:
            best = _evaluated(x, W_enc, b_enc, best[1])
        values[start : start + rows], indices[start : start + rows] = best
    return values, indices


def _on_grid(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16).to(torch.promote_types(tensor.dtype, torch.float32))


def _evaluated(x_ND: Tensor, W_enc: Tensor, b_enc: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Pre-activations of the features named, from the inputs as they are; descending, equal ones by index."""
    indices = indices.sort(-1).values
    dtype = torch.promote_types(x_ND.dtype, torch.float32)
    (N, D), k = x_ND.shape, indices.shape[1]
    values = torch.empty(N, k, dtype=dtype, device=x_ND.device)
    rows = max(1, ROWS_ELEMENTS // max(1, k * D))
    for start in range(0, N, rows):
        tile = slice(start, start + rows)
        chosen = W_enc.t().index_select(0, indices[tile].reshape(-1)).view(-1, k, D).to(dtype)
        values[tile] = torch.bmm(chosen, x_ND[tile].to(dtype).unsqueeze(-1)).squeeze(-1) + b_enc[indices[tile]].to(
            dtype
        )
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return values.to(x_ND.dtype), indices.gather(1, order)


def pre_activations(x_ND: Tensor, W_enc: Tensor, b_enc: Tensor, out: Tensor, *, blocks: bool) -> Tensor | None:
    """x·W_enc + b_enc into `out` [N, F], panel by panel; with `blocks`, the maxima of each `BLOCK` columns."""
    N, F = out.shape
    maxima = out.new_empty(N, F // BLOCK) if blocks else None
    for low in range(0, F, PANEL_COLUMNS):
        high = min(F, low + PANEL_COLUMNS)
        panel = out[:, low:high]
        torch.addmm(b_enc[low:high], x_ND, W_enc[:, low:high], out=panel)
        if maxima is not None:
            torch.amax(panel.unflatten(1, (-1, BLOCK)), -1, out=maxima[:, low // BLOCK : high // BLOCK])
    return maxima


def _in_blocks(pre: Tensor, k: int) -> bool:
    """Whether the top k of these rows are worth finding in two stages."""
    return pre.device.type == "cpu" and pre.shape[1] % BLOCK == 0 and pre.shape[1] // BLOCK >= 3 * (k + 1)


def topk_rows(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` along the last axis of a tensor that is there already, with the tie rule of `topk_encode`.

    Args:
        pre: [..., F].
        k: entries kept a row, 0 ≤ k ≤ F.

    Returns:
        values [..., k], descending, and indices [..., k] int64. Autograd reaches pre through the values.

    Example:
        >>> from attlas.kernels import topk_rows
        >>> values, indices = topk_rows(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 2)
        >>> values.tolist(), indices.tolist()  # of equal values the lower index
        ([[3.0, 3.0]], [[1, 2]])
    """
    F = pre.shape[-1]
    require(0 <= k <= F, f"k = {k} is not within 0 and the {F} entries of a row")
    indices = torch.zeros(*pre.shape[:-1], k, dtype=torch.int64, device=pre.device)
    if indices.numel():
        flat = pre.detach().reshape(-1, F)
        rows = max(1, min(TILE_ROWS, ROWS_ELEMENTS // F))
        indices = torch.cat([topk_stable(part, k)[1] for part in flat.split(rows)]).view(indices.shape)
    return pre.gather(-1, indices), indices


def topk_stable(pre: Tensor, k: int, maxima: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`torch.topk` along the last axis of a matrix, with ties to the lower index; in two stages given block maxima.

    The k + 1 blocks of columns with the largest maxima hold the k + 1 largest entries, so the second stage looks at those
    alone. Only a tie between places k and k + 1 makes a choice arbitrary; such rows are chosen again in full.
    """
    N, F = pre.shape
    wanted, n_blocks = min(k + 1, F), F // BLOCK
    if maxima is not None:
        block = maxima.topk(wanted, dim=-1, sorted=False).indices
        flat = (block + torch.arange(0, N * n_blocks, n_blocks).unsqueeze(1)).view(-1)
        candidates = pre.view(N * n_blocks, BLOCK).index_select(0, flat).view(N, wanted * BLOCK)
        values, position = candidates.topk(wanted, dim=-1)
        indices = block.gather(1, position // BLOCK) * BLOCK + position % BLOCK
    else:
        values, indices = pre.topk(wanted, dim=-1)
    crowded = values[:, k] == values[:, k - 1] if wanted > k else None
    values, indices = values[:, :k], indices[:, :k]
    if crowded is not None and bool(crowded.any()):
        rows = crowded.nonzero().squeeze(1)
        values, indices = values.clone(), indices.clone()
        values[rows], indices[rows] = _lowest_of_ties(pre[rows], values[rows, -1:], k)
    by_index, order = indices.sort(-1)
    values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return values, by_index.gather(1, order)


def _lowest_of_ties(pre: Tensor, kth: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All entries above the k-th value, then the first of those equal to it. NaN counts as above."""
    above, equal = ~(pre <= kth), pre == kth
    room = k - above.sum(-1, keepdim=True)
    indices = (above | (equal & (equal.cumsum(-1) <= room))).nonzero()[:, 1].view(-1, k)
    return pre.gather(1, indices), indices
