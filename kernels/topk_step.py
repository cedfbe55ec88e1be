"""One training step of a TopK SAE, fused: forward, loss, AuxK, backward, Adam, unit-norm rows (arXiv 2406.04093).

L = mean_n ‖x − x̂‖² + α·mean_n ‖e − ê‖², with e = x − x̂ held constant and ê the decode of the k_aux largest dead features.
Nothing of size N×F is made. A tile of rows gathers its k decoder rows once, and takes from them the reconstruction, the
residual and the gradient of the activations. Weight gradients are sums over pairs sorted by feature, so two runs agree
bit for bit. The encoder is stored by feature, [F, D], like the decoder, so both gradients come in the stored layout.

Lazy Adam (`lazy=True`): a step touches only rows of W_enc and W_dec whose feature was active. Moments of the others decay
when next touched, by β^Δ, so at each touch they equal those of dense Adam under the same gradients; the weights themselves
move only at steps with a gradient. (Dense Adam also moves idle rows by their fading momentum: this is the one difference.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

from attlas.kernels.dispatch import require, require_like, use_triton
from attlas.kernels.sparse_decode import GATHER_ELEMENTS, FeatureOrder, decode_rows, gather_dot
from attlas.kernels.topk_encode import select


@dataclass(frozen=True)
class TopKStepResult:
    """What a step saw, before its update."""

    loss: Tensor
    """mean_n ‖x − x̂‖², 0-dim; without the auxiliary term."""
    aux_loss: Tensor
    """α·mean_n ‖e − ê‖², 0-dim."""
    values: Tensor
    """[N, k]."""
    indices: Tensor
    """[N, k]."""
    fired: Tensor
    """[F] int64: rows in which each feature was above 0."""


@dataclass(frozen=True)
class StepOptions:
    """Optimiser and loss of `TopKStep`."""

    k: int
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    unit_norm: bool = True
    """Rescale decoder rows to norm 1 after the update, and take the radial part out of their gradient before it."""
    k_aux: int = 0
    aux_weight: float = 1 / 32
    lazy: bool = False


class TopKStep:
    """Parameters, Adam state and the fused step.

    Args:
        W_enc: [D, F]; b_enc: [F]; W_dec: [F, D]; b_dec: [D]; copied. float32 (float64 for checks).
        options: see StepOptions.

    Attributes:
        W_enc ([D, F], a view), b_enc, W_dec, b_dec: the current parameters; n_steps.
    """

    def __init__(self, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, options: StepOptions) -> None:
        D, F = W_enc.shape
        require(tuple(W_dec.shape) == (F, D), f"W_dec has shape {tuple(W_dec.shape)}, want ({F}, {D})")
        require(tuple(b_enc.shape) == (F,) and tuple(b_dec.shape) == (D,), "b_enc must be [F], b_dec [D]")
        require(0 < options.k <= F, f"k = {options.k} is not within 1 and the {F} features")
        require_like(W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec)
        self.options = options
        self.lr = options.lr
        self.n_steps = 0
        self.encoder = W_enc.detach().t().clone(memory_format=torch.contiguous_format)
        self.b_enc, self.b_dec = b_enc.detach().clone(), b_dec.detach().clone()
        self.W_dec = W_dec.detach().clone(memory_format=torch.contiguous_format)
        params = [self.encoder, self.W_dec, self.b_enc, self.b_dec]
        self._params = params
        self._exp_avg = [torch.zeros_like(p) for p in params]
        self._exp_avg_sq = [torch.zeros_like(p) for p in params]
        self._touched = torch.zeros(F, dtype=torch.int64, device=W_enc.device)  # step of a row's last update

    @property
    def W_enc(self) -> Tensor:
        """[D, F], a view of the stored encoder."""
        return self.encoder.t()

    def step(self, x: Tensor, dead: Tensor | None = None) -> TopKStepResult:
        """Update on x [N, D]; `dead` is a bool [F] of features for AuxK. N = 0 changes nothing."""
        require(x.dim() == 2 and x.shape[1] == self.b_dec.shape[0], f"x has shape {tuple(x.shape)}")
        require_like(self.encoder, x=x)
        N, k, F = x.shape[0], self.options.k, self.encoder.shape[0]
        if N == 0:
            zero = x.new_zeros(())
            empty = torch.zeros(0, k, dtype=torch.int64, device=x.device)
            return TopKStepResult(
                zero, zero, x.new_zeros(0, k), empty, torch.zeros(F, dtype=torch.int64, device=x.device)
            )
        centred = x - self.b_dec
        values, indices = select(centred, self.W_enc, self.b_enc, k)
        values = values.relu_()
        grad_x_hat, d_values = residual_gradients(values, indices, self.W_dec, centred)
        loss = grad_x_hat.square().sum() * (N / 4)  # grad = 2 (x̂ − x) / N
        order = FeatureOrder(indices, F)
        d_W_dec = order.weighted_sum(grad_x_hat, values)
        d_encoder = order.weighted_sum(centred, d_values)
        d_b_enc = order.sum(d_values)
        d_b_dec = grad_x_hat.sum(0)
        active = order.counts > 0
        aux_loss = x.new_zeros(())
        if dead is not None and self.options.k_aux > 0 and bool(dead.any()):
            aux_loss = self._add_aux(centred, grad_x_hat * (-N / 2), dead, d_encoder, d_W_dec, d_b_enc)
            active = active | dead
        d_b_dec -= d_b_enc @ self.encoder
        self._adam([d_encoder, d_W_dec, d_b_enc, d_b_dec], active)
        fired = torch.bincount(indices[values > 0], minlength=F)
        return TopKStepResult(loss, aux_loss, values, indices, fired)

    def _add_aux(
        self, centred: Tensor, residual: Tensor, dead: Tensor, d_encoder: Tensor, d_W_dec: Tensor, d_b_enc: Tensor
    ) -> Tensor:
        """AuxK (arXiv 2406.04093, §A.2): add the gradients of α·mean ‖e − ê‖² for dead features; return the term."""
        alpha, N = self.options.aux_weight, centred.shape[0]
        at = dead.nonzero().squeeze(1)
        encoder, W_dec = self.encoder[at], self.W_dec[at]
        values, indices = select(centred, encoder.t(), self.b_enc[at], min(self.options.k_aux, at.numel()))
        values = values.relu_()
        grad, d_values = residual_gradients(values, indices, W_dec, residual)
        order = FeatureOrder(indices, at.numel())
        d_W_dec[at] += alpha * order.weighted_sum(grad, values)
        d_encoder[at] += alpha * order.weighted_sum(centred, d_values)
        d_b_enc[at] += alpha * order.sum(d_values)
        return alpha * grad.square().sum() * (N / 4)

    def _adam(self, grads: list[Tensor], active: Tensor) -> None:
        """Adam on all parameters; rows alone where lazy. Then decoder rows back to norm 1."""
        self.n_steps += 1
        if not self.options.lazy:
            self._dense_adam(grads)
            return
        if self.options.unit_norm:
            remove_radial_(grads[1], self.W_dec)
        rows = active.nonzero().squeeze(1)
        self._fused(range(3, 4), grads)
        age = (self.n_steps - 1 - self._touched[rows]).to(self.encoder.dtype)
        beta1, beta2 = self.options.betas
        for i in range(3):
            decay = age.unsqueeze(-1) if self._params[i].dim() == 2 else age
            grad = grads[i][rows]
            m = self._exp_avg[i][rows] * beta1 ** (decay + 1) + grad * (1 - beta1)
            v = self._exp_avg_sq[i][rows] * beta2 ** (decay + 1) + grad.square() * (1 - beta2)
            self._exp_avg[i][rows], self._exp_avg_sq[i][rows] = m, v
            m_hat, v_hat = m / (1 - beta1**self.n_steps), v / (1 - beta2**self.n_steps)
            new = self._params[i][rows] - self.lr * m_hat / (v_hat.sqrt() + self.options.eps)
            self._params[i][rows] = normalise_rows_(new) if i == 1 and self.options.unit_norm else new
        self._touched[rows] = self.n_steps

    def _dense_adam(self, grads: list[Tensor]) -> None:
        """All rows. The decoder's go through projection, update and norm while they are in cache."""
        if not self.options.unit_norm:
            self._fused(range(4), grads)
            return
        self._fused((0, 2, 3), grads)
        F, D = self.W_dec.shape
        height = F if self.W_dec.is_cuda else max(1, GATHER_ELEMENTS // D)
        for start in range(0, F, height):
            rows = slice(start, start + height)
            remove_radial_(grads[1][rows], self.W_dec[rows])
            self._fused((1,), grads, rows)
            normalise_rows_(self.W_dec[rows])

    def _fused(self, which: Sequence[int], grads: list[Tensor], rows: slice = slice(None)) -> None:
        """torch's fused Adam: one pass over parameter, gradient and both moments."""
        step = torch.full((), float(self.n_steps - 1), device=self.encoder.device)
        adam(
            [self._params[i][rows] for i in which],
            [grads[i][rows] for i in which],
            [self._exp_avg[i][rows] for i in which],
            [self._exp_avg_sq[i][rows] for i in which],
            [],
            [step.clone() for _ in which],
            fused=True,
            amsgrad=False,
            beta1=self.options.betas[0],
            beta2=self.options.betas[1],
            lr=self.lr,
            weight_decay=0.0,
            eps=self.options.eps,
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


def residual_gradients(values: Tensor, indices: Tensor, W_dec: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """For L = mean_n ‖target − Σ_k values·W_dec[indices]‖²: dL/dx̂ [N, D] and dL/dvalues [N, k], 0 where a value is 0.

    On the CPU each row tile gathers its decoder rows once for both.
    """
    N, k = values.shape
    D = W_dec.shape[1]
    if use_triton(W_dec):
        grad = (decode_rows(values, indices, W_dec) - target) * (2 / N)
        return grad, gather_dot(grad, indices, W_dec).masked_fill_(values <= 0, 0)
    grad, d_values = torch.empty_like(target), torch.empty_like(values)
    rows = max(1, GATHER_ELEMENTS // max(1, k * D))
    for start in range(0, N, rows):
        tile = slice(start, min(N, start + rows))
        gathered = W_dec.index_select(0, indices[tile].reshape(-1)).view(-1, k, D)
        x_hat = torch.bmm(values[tile].unsqueeze(1), gathered).squeeze(1)
        torch.sub(x_hat, target[tile], out=grad[tile])
        grad[tile] *= 2 / N
        torch.bmm(gathered, grad[tile].unsqueeze(-1), out=d_values[tile].unsqueeze(-1))
    return grad, d_values.masked_fill_(values <= 0, 0)
