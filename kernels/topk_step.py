"""One training step of a TopK SAE, fused: forward, loss, AuxK, backward, Adam, unit-norm rows (arXiv 2406.04093).

L = mean_n ‖x − x̂‖² + α·mean_n ‖e − ê‖², with e = x − x̂ held constant and ê the decode of the k_aux largest dead features.
Nothing of size N×F is kept. Weight gradients are sums over pairs sorted by feature, so two runs agree bit for bit. The
encoder is stored by feature, [F, D], like the decoder, so both gradients come in the stored layout. On a CPU the step is that
of kernels.cpu, elsewhere and in bfloat16 that of kernels.gpu.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.kernels.cpu.step import TopKOnCPU
from attlas.kernels.dispatch import require, require_like, use_triton
from attlas.kernels.gpu import TopKOnGPU
from attlas.kernels.step_options import StepOptions
from attlas.kernels.topk_encode import require_select_dtype


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
        weights = (W_enc, b_enc, W_dec, b_dec, options)
        self._kernel: TopKOnCPU | TopKOnGPU
        if W_enc.device.type == "cpu" and not use_triton(W_enc) and options.select_dtype == "float32":
            self._kernel = TopKOnCPU(*weights)
        else:
            self._kernel = TopKOnGPU(*weights, options.select_dtype)
            self._kernel.aux_full = 1  # the weight is as given, however few are dead
        self.encoder, self.W_dec = self._kernel.encoder, self._kernel.W_dec
        self.b_enc, self.b_dec = self._kernel.b_enc, self._kernel.b_dec

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
        kernel, weight = self._kernel, self.options.aux_weight
        kernel.n_steps = self.n_steps
        self.n_steps += 1
        if isinstance(kernel, TopKOnCPU):
            found = kernel.step(x, dead, lr=self.lr, aux_weight=weight)
            values, indices = (part.view(N, k) for part in (found.pairs.values, found.pairs.features))
            return TopKStepResult(found.errors[0], found.aux_loss, values, indices, found.fired)
        seen = kernel.step(x, dead, lr=self.lr, aux_weight=weight)
        loss, aux_loss, values = (tensor.clone() for tensor in (seen.mse, seen.other, kernel.values))
        return TopKStepResult(loss, aux_loss, values, kernel.index.long(), seen.fired.clone())

    def state(self) -> dict[str, Tensor]:
        """Moments of Adam by parameter, not copied, and `n_steps`."""
        return self._kernel.state()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self._kernel.restore(tensors)
        self.n_steps = self._kernel.n_steps
