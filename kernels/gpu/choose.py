"""Which features of a row fire, in slots: as many a row for every row, so that shapes are known without looking."""

from __future__ import annotations

import torch
from torch import Tensor

from attlas.kernels.gpu.ops import ops_for


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
    values, indices = ops_for(centred).choose(narrow, encoder, b_enc, k)
    return None if narrow.dtype == torch.bfloat16 else values, indices


def top_of_batch(values: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Of pre-activations [N, K], the `budget` largest that are above 0, others 0, ties to the lower row and slot; and the
    least of them, 0-dim, infinite where there is none."""
    flat = values.reshape(-1)
    order = flat.sort(descending=True, stable=True).indices[:budget]
    chosen = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, order, True).view_as(values)
    kept = torch.where(chosen & ~(values <= 0), values, 0)
    return kept, torch.where(kept > 0, kept, torch.inf).amin()
