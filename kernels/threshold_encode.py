"""Encode by threshold into compressed sparse rows: JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435) and BatchTopK at
inference (Bussmann et al. 2024, arXiv 2412.06410). A feature is active where its pre-activation exceeds the threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attlas.kernels.dispatch import no_autocast, or_torch, require, require_encoder, use_triton
from attlas.kernels.results import SparseCodes, check_capacity
from attlas.kernels.topk_encode import SelectDtype, topk_encode
from attlas.kernels.topk_torch import TILE_COLUMNS, TILE_ROWS


def threshold_encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    threshold: float | Tensor,
    *,
    b_dec: Tensor | None = None,
    capacity: int | None = None,
) -> SparseCodes:
    """Every pre-activation (x − b_dec)·W_enc + b_enc above its threshold, in sparse rows. Inference only, no autograd.

    Args:
        x: [..., D]; leading axes are flattened to N rows.
        W_enc, b_enc, b_dec: [D, F], [F], [D].
        threshold: a number, or [F], one a feature; compared in float32, or in x's type if that is wider. NaN
            pre-activations and NaN thresholds count as active, so they cannot go unseen.
        capacity: most active entries in all; more raise an error, nothing is ever dropped. None means no bound.

    Raises:
        KernelError: more than `capacity` entries, or shapes, dtypes or devices that do not fit.

    Example:
        >>> from attlas.kernels import threshold_encode
        >>> codes = threshold_encode(torch.randn(5, 8), torch.randn(8, 16), torch.zeros(16), 0.5)
        >>> codes.to_dense().shape, bool((codes.values > 0.5).all())  # [N, F]
        (torch.Size([5, 16]), True)
    """
    require_encoder(x, W_enc, b_enc, b_dec)
    F = W_enc.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    limit = torch.as_tensor(threshold, dtype=wide, device=x.device)
    require(
        limit.dim() == 0 or tuple(limit.shape) == (F,), f"threshold has shape {tuple(limit.shape)}, want () or ({F},)"
    )
    limit = limit.expand(F)
    with torch.no_grad(), no_autocast(x):
        x_ND = x.reshape(-1, x.shape[-1])
        x_ND = x_ND if b_dec is None else x_ND - b_dec
        if use_triton(x_ND) and len(x_ND):
            from attlas.kernels.threshold_encode_triton import threshold_triton

            values, indices, counts = or_torch(
                lambda: threshold_triton(x_ND, W_enc, b_enc, limit, capacity),
                lambda: _threshold_torch(x_ND, W_enc, b_enc, limit, capacity),
            )
        else:
            values, indices, counts = _threshold_torch(x_ND, W_enc, b_enc, limit, capacity)
    offsets = torch.cat([counts.new_zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return SparseCodes(values, indices, offsets, F)


def _threshold_torch(
    x_ND: Tensor, W_enc: Tensor, b_enc: Tensor, limit_F: Tensor, capacity: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles of rows and columns; entries of a row tile are put back in order of row when it took several column tiles."""
    N, F = x_ND.shape[0], W_enc.shape[1]
    columns = min(max(F, 1), TILE_COLUMNS)
    rows = min(max(N, 1), TILE_ROWS)
    values, indices = [x_ND.new_zeros(0)], [torch.zeros(0, dtype=torch.int64, device=x_ND.device)]
    counts = torch.zeros(N, dtype=torch.int64, device=x_ND.device)
    total = 0
    for start in range(0, N, rows):
        x = x_ND[start : start + rows]
        parts = []
        for low in range(0, F, columns):
            high = min(F, low + columns)
            pre = torch.addmm(b_enc[low:high], x, W_enc[:, low:high])
            where = (~(pre <= limit_F[low:high])).nonzero()
            parts.append((where[:, 0], where[:, 1] + low, pre[where[:, 0], where[:, 1]]))
        row, feature, value = (torch.cat(column) for column in zip(*parts, strict=True)) if parts else (counts,) * 3
        total += row.numel()
        check_capacity(total, capacity, start + x.shape[0])
        if len(parts) > 1:
            row, order = row.sort(dim=0, stable=True)
            feature, value = feature[order], value[order]
        counts[start : start + rows] = torch.bincount(row, minlength=x.shape[0])
        values.append(value.to(x_ND.dtype))
        indices.append(feature)
    return torch.cat(values), torch.cat(indices), counts


def batch_topk_encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    *,
    b_dec: Tensor | None = None,
    k_row: int | None = None,
    select_dtype: SelectDtype = "float32",
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchTopK (arXiv 2412.06410): the N·k largest positive pre-activations of the whole batch.

    First the top `k_row` of each row (default 4·k, at most 512 and F), then the N·k largest among these. Exact: where a
    row would need more than k_row, the call is repeated with twice as many. Ties go to the lower row, then feature.
    `select_dtype` is that of `topk_encode`; it chooses within rows, and the batch chooses by the values.

    Returns:
        values [N, k_row] with unchosen slots set to 0, indices [N, k_row], and the threshold: the least chosen value
        (0-dim; 0 when nothing is positive). Autograd as in `topk_encode`.

    Example:
        >>> from attlas.kernels import batch_topk_encode
        >>> x, W_enc = torch.randn(5, 8), torch.randn(8, 16)  # [B, d_in], [d_in, F]
        >>> values, indices, threshold = batch_topk_encode(x, W_enc, torch.zeros(16), 3)
        >>> values.shape[0], int((values > 0).sum())  # k a row on average
        (5, 15)
    """
    F = W_enc.shape[1]
    require(0 <= k <= F, f"k = {k} is not within 0 and the {F} features")
    k_row = min(F, max(k, k_row if k_row is not None else min(4 * k, 512)))
    while True:
        rows = x.reshape(-1, x.shape[-1])
        values, indices = topk_encode(rows, W_enc, b_enc, k_row, b_dec=b_dec, select_dtype=select_dtype)
        N = values.shape[0]
        flat = values.detach().reshape(-1)
        ranked, order = flat.sort(dim=0, descending=True, stable=True)
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[order[: N * k]] = True
        chosen = (chosen & ~(flat <= 0)).view(N, k_row)
        if k_row == F or N * k_row == 0 or not bool(chosen[:, -1].any()):
            break
        k_row = min(F, 2 * k_row)
    threshold = torch.cat([ranked.new_zeros(1), ranked]).index_select(0, chosen.sum().view(1)).squeeze(0)
    return torch.where(chosen, values, 0), indices, threshold
