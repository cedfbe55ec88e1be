"""Which features of a row fire, in slots: as many a row for every row, so that shapes are known without looking."""

from __future__ import annotations

import torch
from torch import Tensor

from attlas.kernels.dispatch import or_torch, use_triton
from attlas.kernels.topk_encode import LARGEST_K
from attlas.kernels.topk_torch import select_torch


def top_of_rows(
    centred: Tensor, narrow: Tensor, encoder: Tensor, b_enc: Tensor, k: int
) -> tuple[Tensor | None, Tensor]:
    """The k largest pre-activations of each row, ties to the lower feature.

    Args:
        centred: [N, D]; narrow: the same, in bfloat16 to choose on its grid.
        encoder: [F, D], in narrow's type; b_enc: [F].

    Returns:
        values [N, k], or None where they must be computed from float32 rows; and indices int32 [N, k], ascending.
    """
    N, F = len(centred), encoder.shape[0]
    if k == F:
        return None, torch.arange(F, dtype=torch.int32, device=centred.device).repeat(N, 1)
    if use_triton(centred) and k <= LARGEST_K:
        from attlas.kernels.topk_encode_triton import best_of_rows

        def kernel() -> tuple[Tensor | None, Tensor]:
            found = best_of_rows(narrow, encoder.t(), b_enc, k, narrow.dtype)
            return None if narrow.dtype == torch.bfloat16 else found.best, found.index

        return or_torch(kernel, lambda: _in_torch(narrow, encoder, b_enc, k))
    return _in_torch(narrow, encoder, b_enc, k)


def _in_torch(narrow: Tensor, encoder: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor | None, Tensor]:
    coarse = narrow.dtype == torch.bfloat16
    if coarse:
        pre = (narrow.float() @ encoder.t().float() + b_enc).to(torch.bfloat16).float()
        indices = pre.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
        return None, indices.int()
    values, indices = select_torch(narrow, encoder.t(), b_enc, k)
    indices, order = indices.sort(dim=1)
    return values.gather(1, order), indices.int()


def top_of_batch(values: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Of pre-activations [N, K], the `budget` largest that are above 0, others 0, ties to the lower row and slot; and the
    least of them, 0-dim, infinite where there is none."""
    flat = values.reshape(-1)
    order = flat.sort(descending=True, stable=True).indices[:budget]
    chosen = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, order, True).view_as(values)
    kept = torch.where(chosen & ~(values <= 0), values, 0)
    return kept, torch.where(kept > 0, kept, torch.inf).amin()
