"""Adam for a matrix with a feature a row, tile by tile of rows, dense or lazy (Kingma & Ba 2015, arXiv 1412.6980).

A row's gradient is made when its tile is updated, so gradient, row and moments are in cache together; the gradient of the
whole matrix never exists on the CPU.

Lazy Adam here is exact: weights and moments are those of dense Adam, up to rounding. Without a gradient, dense Adam still
moves a row by its fading momentum: j steps after the last gradient by lr·(β1^j·m / c1) / (√(β2^j·v / c2) + ε), which
falls by β1/√β2 a step and is below the dtype's resolution after `horizon` steps (153 in float32 at the usual betas). So a
row is touched at steps with a gradient and until the horizon; then it rests, and its moments decay by β^Δ at its next
gradient. Features that are dead or rare cost nothing. To rest sooner would not be Adam: the next encode reads every row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

from attlas.kernels.sparse_decode import GATHER_ELEMENTS, FeatureOrder

FOREVER = 1 << 62  # a horizon that momentum which does not fade has; steps can be added within int64


@dataclass(frozen=True)
class RowGradient:
    """The gradient of a matrix [F, D]: for each feature, Σ over its pairs of weight·source[row]; and more at some rows."""

    order: FeatureOrder
    source_ND: Tensor
    weights_NK: Tensor
    extra: tuple[Tensor, Tensor] | None = None
    """(rows [E] ascending, gradient [E, D]), added."""

    @property
    def active_F(self) -> Tensor:
        """bool [F]: features with a pair, or with more."""
        active = self.order.counts > 0
        if self.extra is not None:
            active[self.extra[0]] = True
        return active

    def tiles(self, height: int, features: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """(places, gradient there), from the first row to the last; or among `features` alone, ascending, with all the
        active ones."""
        at, more = (None, None) if self.extra is None else self.extra
        if at is not None and features is not None:
            at = torch.searchsorted(features, at)
        for places, grad in self.order.weighted_sums(self.source_ND, self.weights_NK, height, features):
            if at is not None and more is not None:
                low, high = torch.searchsorted(at, at.new_tensor([places.start, places.stop])).tolist()
                grad.index_add_(0, at[low:high] - places.start, more[low:high])
            yield places, grad


class RowAdam:
    """Moments and updates of one matrix.

    Args:
        matrix: [F, D], updated in place.
        betas, eps: of Adam; no weight decay.
        unit_norm: rows have norm 1: the gradient loses its radial part, and after a move a row is back at norm 1.
        lazy: leave rows that dense Adam would not move; see the head of this file.
    """

    def __init__(
        self, matrix: Tensor, betas: tuple[float, float], eps: float, *, unit_norm: bool = False, lazy: bool = False
    ) -> None:
        self.matrix, self.betas, self.eps, self.unit_norm, self.lazy = matrix, betas, eps, unit_norm, lazy
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(matrix), torch.zeros_like(matrix)
        self.horizon = horizon(betas, matrix.dtype)
        F = matrix.shape[0]
        self._moments_of = torch.zeros(F, dtype=torch.int64, device=matrix.device)
        self._moving_until = torch.zeros(F, dtype=torch.int64, device=matrix.device)

    def update(self, gradient: RowGradient, n_steps: int, lr: float) -> int:
        """Step number n_steps + 1. Returns how many rows were touched."""
        F, D = self.matrix.shape
        height = F if self.matrix.is_cuda else max(1, GATHER_ELEMENTS // D)
        features = self.due(gradient.active_F, n_steps)
        for places, grad in gradient.tiles(height, features):
            self.move(places, features, grad, n_steps, lr)
        return F if features is None else features.numel()

    def move(self, places: slice, features: Tensor | None, grad: Tensor, n_steps: int, lr: float) -> None:
        """Update the rows at these places, or at these places of `features`, which `due` gave."""
        if features is None:
            self._move(self.matrix[places], grad, self.exp_avg[places], self.exp_avg_sq[places], n_steps, lr)
        else:
            self._move_some(features[places], grad, n_steps, lr)

    def settle(self, n_steps: int) -> None:
        """Bring the moments of resting rows to this step, so that they can be saved or read."""
        if self.lazy:
            rest = (self._moments_of < n_steps).nonzero().squeeze(1)
            self._decay(rest, n_steps)
            self._moments_of.fill_(n_steps)

    def resume(self, n_steps: int) -> None:
        """The moments were set from outside, as of this step. Which rows rest is found anew, a horizon later."""
        self._moments_of.fill_(n_steps)
        self._moving_until.fill_(n_steps + self.horizon)

    def due(self, active: Tensor, n_steps: int) -> Tensor | None:
        """The rows [M] to update at this step, their moments brought up to date, where bool [F] `active` have a gradient;
        None if that is all of them, as it always is without `lazy`."""
        if not self.lazy:
            return None
        self._moving_until[active] = n_steps + 1 + self.horizon
        self._decay((active & (self._moments_of < n_steps)).nonzero().squeeze(1), n_steps)
        moving = self._moving_until > n_steps
        self._moments_of[moving] = n_steps + 1
        return None if bool(moving.all()) else moving.nonzero().squeeze(1)

    def _decay(self, rows: Tensor, n_steps: int) -> None:
        age = (n_steps - self._moments_of[rows]).to(self.matrix.dtype).unsqueeze(1)
        self.exp_avg[rows] *= self.betas[0] ** age
        self.exp_avg_sq[rows] *= self.betas[1] ** age

    def _move_some(self, at: Tensor, grad: Tensor, n_steps: int, lr: float) -> None:
        """The rows `at` [R], through copies."""
        parts = [tensor.index_select(0, at) for tensor in (self.matrix, self.exp_avg, self.exp_avg_sq)]
        self._move(parts[0], grad, parts[1], parts[2], n_steps, lr)
        for tensor, part in zip((self.matrix, self.exp_avg, self.exp_avg_sq), parts, strict=True):
            tensor.index_copy_(0, at, part)

    def _move(self, matrix: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, n_steps: int, lr: float) -> None:
        if self.unit_norm:
            remove_radial_(grad, matrix)
        fused_adam([matrix], [grad], [exp_avg], [exp_avg_sq], n_steps, lr, self.betas, self.eps)
        if self.unit_norm:
            normalise_rows_(matrix)


def horizon(betas: tuple[float, float], dtype: torch.dtype) -> int:
    """Steps after which momentum alone moves nothing: (β1/√β2)^steps is below the dtype's resolution."""
    fade = betas[0] / math.sqrt(betas[1]) if betas[1] > 0 else math.inf
    if fade >= 1:
        return FOREVER
    return math.ceil(math.log(torch.finfo(dtype).eps) / math.log(fade)) if fade > 0 else 0


def fused_adam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    n_steps: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """torch's fused Adam, step number n_steps + 1: one pass over parameter, gradient and both moments."""
    steps = [torch.full((), float(n_steps), device=p.device) for p in params]
    adam(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        fused=True,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=0.0,
        eps=eps,
        maximize=False,
    )


def remove_radial_(grad: Tensor, matrix: Tensor) -> None:
    """Take from each row of the gradient its part along the row of the matrix, of norm 1: g − (g·w)w, in place."""
    grad.addcmul_(torch.linalg.vecdot(grad, matrix).unsqueeze(-1), matrix, value=-1)


def normalise_rows_(matrix: Tensor) -> Tensor:
    """Rows to norm 1, in place; rows of zeros stay."""
    return matrix.div_(
        torch.linalg.vector_norm(matrix, dim=-1, keepdim=True).clamp_(min=torch.finfo(matrix.dtype).tiny)
    )
