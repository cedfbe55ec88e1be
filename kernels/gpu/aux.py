"""AuxK (arXiv 2406.04093, §A.2) as dense products over the dead columns, for a bound on their number.

α·mean ‖e − ê‖², e held constant, ê the decode of the k_aux largest dead features. Dead features are listed on the device;
places of the list beyond the last of them name feature 0, and are masked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attlas.kernels.gpu.controls import AUX
from attlas.kernels.gpu.ops import ops_for
from attlas.kernels.gpu.precision import product
from attlas.kernels.gpu.weights import Matrix


def list_dead(dead: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """(features int64 [columns], slot of each feature int32 [F] or −1, how many are dead int64 0-dim)."""
    place = dead.cumsum(0)
    n_dead = place[-1]
    inside = dead & (place <= columns)
    slot = torch.where(inside, place - 1, -1)
    features = torch.arange(dead.numel(), device=dead.device)
    at = torch.zeros(columns + 1, dtype=torch.int64, device=dead.device)
    at.scatter_(0, torch.where(inside, slot, columns), features)  # the last place takes all that are not dead
    return at[:columns], slot.int(), n_dead


def aux_gradients(
    centred: Tensor,
    narrow: Tensor,
    grad: Tensor,
    grad_scale: float,
    encoder: Matrix,
    W_dec: Matrix,
    b_enc: Tensor,
    dead: Tensor,
    columns: int,
    k_aux: int,
    full: int,
    controls: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, and gradients at the dead features.

    Args:
        centred, narrow: x − b_dec [N, D], as it is and rounded.
        grad: [N, D], gradient of x̂; times grad_scale it is the error e.
        columns: at least as many as are dead.
        full: how many dead features have the whole weight.

    Returns:
        loss (0-dim), features [C], slot [F], and gradients there: of encoder [C, D], W_dec [C, D] and b_enc [C].
    """
    ops, wide, N = ops_for(centred), centred.dtype, len(centred)
    at, slot, n_dead = list_dead(dead, columns)
    rows_enc, rows_dec = encoder.shadow.index_select(0, at), W_dec.shadow.index_select(0, at)
    pre = product(narrow, rows_enc.t(), narrow.dtype)
    f = torch.empty_like(pre)
    ops.keep_largest(pre, b_enc.index_select(0, at), n_dead, min(k_aux, columns), f)
    e_hat = product(f, rows_dec, narrow.dtype)
    g, losses = torch.empty_like(narrow), centred.new_empty(1, N)
    alpha = weight(controls, n_dead, full)
    ops.residual(e_hat, grad, grad_scale, alpha, g, losses)
    d_pre = product(g, rows_dec.t(), narrow.dtype).masked_fill_(f <= 0, 0)
    d_enc, d_dec = product(d_pre.t(), narrow, wide), product(f.t(), g, wide)
    return losses.sum() / N, at, slot, d_enc, d_dec, d_pre.sum(0, dtype=wide)


def weight(controls: Tensor, n_dead: Tensor, full: int) -> Tensor:
    """α, which falls with few dead features: the coefficient times min(1, n_dead / full); 0-dim."""
    return controls[AUX] * torch.clamp(n_dead.to(controls.dtype) / full, max=1.0)
