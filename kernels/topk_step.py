"""One training step of a TopK SAE, fused: forward, loss, AuxK, backward, Adam, unit-norm rows (arXiv 2406.04093).

L = mean_n ‖x − x̂‖² + α·mean_n ‖e − ê‖², with e = x − x̂ held constant and ê the decode of the k_aux largest dead features.
Nothing of size N×F is made. A tile of rows gathers its k decoder rows once, and takes from them the reconstruction, the
residual and the gradient of the activations. Weight gradients are sums over pairs sorted by feature, so two runs agree
bit for bit. The encoder is stored by feature, [F, D], like the decoder, so both gradients come in the stored layout, and
each matrix is updated by tiles of rows (see row_adam, also for `lazy`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attlas.kernels.cpu.step import SparseStep, TopKOnCPU
from attlas.kernels.dispatch import require, require_like, use_triton
from attlas.kernels.row_adam import RowGradient, fused_adam
from attlas.kernels.sparse_decode import GATHER_ELEMENTS, FeatureOrder, decode_rows, gather_dot
from attlas.kernels.step_options import StepOptions
from attlas.kernels.topk_encode import require_select_dtype, select


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


class TopKStep:
    """Parameters, Adam state and the fused step.

    Args:
        W_enc: [D, F]; b_enc: [F]; W_dec: [F, D]; b_dec: [D]; copied. float32 (float64 for checks).
        options: see StepOptions.

    Attributes:
        W_enc ([D, F], a view), b_enc, W_dec, b_dec: the current parameters; n_steps.

    Example:
        >>> from attlas.kernels import StepOptions, TopKStep
        >>> W_dec = torch.nn.functional.normalize(torch.randn(16, 8), dim=-1)  # [F, D]
        >>> training = TopKStep(W_dec.T, torch.zeros(16), W_dec, torch.zeros(8), StepOptions(k=3, lr=1e-3))
        >>> result = training.step(torch.randn(32, 8))  # [N, D]
        >>> training.n_steps, training.W_dec.shape
        (1, torch.Size([16, 8]))
    """

    def __init__(self, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, options: StepOptions) -> None:
        D, F = W_enc.shape
        require(tuple(W_dec.shape) == (F, D), f"W_dec has shape {tuple(W_dec.shape)}, want ({F}, {D})")
        require(tuple(b_enc.shape) == (F,) and tuple(b_dec.shape) == (D,), "b_enc must be [F], b_dec [D]")
        require(0 < options.k <= F, f"k = {options.k} is not within 1 and the {F} features")
        require_like(W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec)
        require_select_dtype(options.select_dtype)
        self.options = options
        self.lr = options.lr
        self.n_steps = 0
        here = not W_enc.is_cuda and not use_triton(W_enc) and options.select_dtype == "float32"
        self._cpu = TopKOnCPU(W_enc, b_enc, W_dec, b_dec, options) if here else None
        state = self._cpu or SparseStep(W_enc, b_enc, W_dec, b_dec, options)
        self.encoder, self.W_dec = state.encoder, state.W_dec
        self.b_enc, self.b_dec = state.b_enc, state.b_dec
        self._encoder_adam, self._decoder_adam = state.adams["encoder"], state.adams["W_dec"]
        self._biases = list(state.vectors.values())
        self._bias_avg, self._bias_avg_sq = list(state.vector_avg.values()), list(state.vector_avg_sq.values())

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
        if self._cpu is not None:
            return self._on_cpu(self._cpu, x, dead)
        centred = x - self.b_dec
        grid = getattr(torch, self.options.select_dtype)
        values, indices = select(centred, self.W_enc, self.b_enc, k, grid)
        values = values.relu_()
        grad_x_hat, d_values = residual_gradients(values, indices, self.W_dec, centred)
        loss = grad_x_hat.square().sum() * (N / 4)  # grad = 2 (x̂ − x) / N
        order = FeatureOrder(indices, F)
        encoder, decoder = RowGradient(order, centred, d_values), RowGradient(order, grad_x_hat, values)
        d_b_enc = order.sum(d_values)
        aux_loss = x.new_zeros(())
        if dead is not None and self.options.k_aux > 0 and bool(dead.any()):
            aux_loss, at, d_encoder, d_W_dec, d_b_aux = self._aux(centred, grad_x_hat * (-N / 2), dead)
            encoder, decoder = replace(encoder, extra=(at, d_encoder)), replace(decoder, extra=(at, d_W_dec))
            d_b_enc.index_add_(0, at, d_b_aux)
        d_b_dec = grad_x_hat.sum(0) - d_b_enc @ self.encoder
        self._encoder_adam.update(encoder, self.n_steps, self.lr)
        self._decoder_adam.update(decoder, self.n_steps, self.lr)
        biases = (self._biases, [d_b_enc, d_b_dec], self._bias_avg, self._bias_avg_sq)
        fused_adam(*biases, self.n_steps, self.lr, self.options.betas, self.options.eps)
        self.n_steps += 1
        fired = torch.bincount(indices[values > 0], minlength=F)
        return TopKStepResult(loss, aux_loss, values, indices, fired)

    def _on_cpu(self, cpu: TopKOnCPU, x: Tensor, dead: Tensor | None) -> TopKStepResult:
        cpu.n_steps = self.n_steps
        found = cpu.step(x, dead, lr=self.lr, aux_weight=self.options.aux_weight)
        self.n_steps += 1
        values, indices = (part.view(len(x), self.options.k) for part in (found.pairs.values, found.pairs.features))
        return TopKStepResult(found.errors[0], found.aux_loss, values, indices, found.fired)

    def _aux(self, centred: Tensor, residual: Tensor, dead: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """AuxK (arXiv 2406.04093, §A.2): α·mean ‖e − ê‖²; the dead features it chose [E], ascending; and its gradients
        there: of the encoder [E, D], W_dec [E, D] and b_enc [E]."""
        alpha, N = self.options.aux_weight, centred.shape[0]
        at = dead.nonzero().squeeze(1)
        encoder, W_dec = self.encoder[at], self.W_dec[at]
        values, indices = select(centred, encoder.t(), self.b_enc[at], min(self.options.k_aux, at.numel()))
        values = values.relu_()
        grad, d_values = residual_gradients(values, indices, W_dec, residual)
        order = FeatureOrder(indices, at.numel())
        chosen = (order.counts > 0).nonzero().squeeze(1)
        d_W_dec, d_encoder = order.weighted_sum(grad, values), order.weighted_sum(centred, d_values)
        loss = alpha * grad.square().sum() * (N / 4)
        d_b_enc = order.sum(d_values)
        return loss, at[chosen], alpha * d_encoder[chosen], alpha * d_W_dec[chosen], alpha * d_b_enc[chosen]

    def state(self) -> dict[str, Tensor]:
        """Moments of Adam by parameter, not copied, and `n_steps`."""
        adams = {"encoder": self._encoder_adam, "W_dec": self._decoder_adam}
        for adam in adams.values():
            adam.settle(self.n_steps)
        found = {f"exp_avg/{name}": adam.exp_avg for name, adam in adams.items()}
        found |= {f"exp_avg_sq/{name}": adam.exp_avg_sq for name, adam in adams.items()}
        for i, name in enumerate(("b_enc", "b_dec")):
            found |= {f"exp_avg/{name}": self._bias_avg[i], f"exp_avg_sq/{name}": self._bias_avg_sq[i]}
        return found | {"n_steps": torch.tensor(self.n_steps)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""
        for name, tensor in self.state().items():
            if name != "n_steps":
                tensor.copy_(tensors[name])
        self.n_steps = int(tensors["n_steps"])
        for adam in (self._encoder_adam, self._decoder_adam):
            adam.resume(self.n_steps)


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
