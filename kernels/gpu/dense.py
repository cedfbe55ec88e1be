"""ReLU, JumpReLU and Gated: products over all N×F activations, in bfloat16 on tensor cores where that is the precision.

Their activations start dense and end near a per cent; a penalty decides, so no number of slots would do. Activations and
their gradients exist in the products' type; column sums, weights and Adam are float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from attlas.kernels.gpu.aux import aux_gradients
from attlas.kernels.gpu.gradient import Gradient
from attlas.kernels.gpu.ops import ops_for
from attlas.kernels.gpu.precision import product
from attlas.kernels.gpu.step import GPUStep


class DenseStep(GPUStep):
    """What the three share."""

    kind: ClassVar[str]
    bandwidth: float = 1.0
    revival: float = 0.0
    """Weight of Σ ReLU(−π) over dead features, as a multiple of AuxK's (gated)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        F = self.encoder.shape[0]
        self.penalties, self.centre = self.encoder.new_zeros(F), self.encoder.new_zeros(F)
        self.norms: Tensor | None = None
        self.pull: Tensor | None = None

    @property
    def n_groups(self) -> int:
        """Reconstructions a row."""
        return 1

    def _allocate(self, n_rows: int) -> None:
        (F, D), device = self.encoder.shape, self.encoder.device
        self.losses = torch.empty(self.n_groups, n_rows, dtype=self.encoder.dtype, device=device)
        self.f = torch.empty(self.n_groups * n_rows, F, dtype=self.narrow, device=device)
        self.grads = torch.empty(self.n_groups * n_rows, D, dtype=self.narrow, device=device)

    def _gradients(self) -> tuple[Gradient, Gradient, Tensor, Tensor, Tensor | None]:
        ops, N, narrow = ops_for(self.centred), self.n_rows, self.narrow
        encoder, W_dec = self.matrices["encoder"], self.matrices["W_dec"]
        u = product(self.centred_narrow, encoder.shadow.t(), narrow)
        by_group = (self.n_groups, N, -1) if self.n_groups > 1 else (N, -1)
        ops.activate(self.kind, u, self.vectors, self.f.view(by_group))
        x_hat = product(self.f, W_dec.shadow, narrow)
        ops.residual(x_hat, self.centred, 1.0, None, self.grads, self.losses)
        d_f = product(self.grads, W_dec.shadow.t(), narrow)
        ops.dense_backward(
            self.kind, u, d_f.view(by_group), self.vectors, self.controls, self.bandwidth, self.norms, self.pull,
            self.centre, self.fired, self.penalties, self.dead if self.revival and self.aux_columns else None, self.revival,
        )  # fmt: skip
        f, grads, d_u = self.f[-N:], self.grads[-N:], d_f[-N:]
        d_W_dec, d_encoder = product(f.t(), grads, narrow), product(d_u.t(), self.centred_narrow, narrow)
        for_encoder, for_decoder, aux = Gradient(dense=d_encoder), Gradient(dense=d_W_dec, pull=self.pull), None
        if self.aux_columns and not self.revival:
            aux, at, slot, more_enc, more_dec, d_b = aux_gradients(
                self.centred, self.centred_narrow, grads, -N / 2, encoder, W_dec, self.b_enc,
                self.dead, self.aux_columns, self.options.k_aux, self.aux_full, self.controls,
            )  # fmt: skip
            for_encoder = replace(for_encoder, extra=(slot, more_enc))
            for_decoder = replace(for_decoder, extra=(slot, more_dec))
            self.centre.index_add_(0, at, d_b)
            self.vectors.of("b_enc", self.vectors.grad).index_add_(0, at, d_b)
        return for_encoder, for_decoder, grads, self.centre, aux

    def _losses(self) -> Tensor:
        return self.losses

    def _norms(self) -> Tensor | None:
        return self.norms


class ReLUStep(DenseStep):
    """f = ReLU(π), L = mean ‖x − x̂‖² + λ·mean Σ f·‖W_dec‖ (Anthropic, April 2024); give `unit_norm=False`."""

    kind = "standard"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norms, self.pull = torch.linalg.vector_norm(self.W_dec, dim=1), torch.zeros_like(self.centre)

    def refresh(self) -> None:
        super().refresh()
        if self.norms is not None:
            torch.linalg.vector_norm(self.W_dec, dim=1, out=self.norms)


class JumpReLUDenseStep(DenseStep):
    """f = π·1[π > θ] (arXiv 2407.14435), with extra vector `threshold`; set `bandwidth` before the first step."""

    kind = "jumprelu"
    second_rate = 2.0

    @property
    def threshold(self) -> Tensor:
        return self.vectors["threshold"]


class GatedStep(DenseStep):
    """f = 1[π > 0]·ReLU(m) (arXiv 2404.16014), with extra vectors `r_mag` and `b_mag`, in this order; in place of AuxK the
    pre-activation loss of `revival` on dead features."""

    kind = "gated"

    @property
    def n_groups(self) -> int:
        return 2

    @property
    def r_mag(self) -> Tensor:
        return self.vectors["r_mag"]

    @property
    def b_mag(self) -> Tensor:
        return self.vectors["b_mag"]
