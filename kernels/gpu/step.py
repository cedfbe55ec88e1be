"""What the steps of all architectures share: buffers that stay, Adam, clipping, the report, checkpoints, and the order.

A step is `begin` (it reads the batch and this step's numbers) and a body that reads only buffers, which can be recorded
as a CUDA graph. Nothing in either waits for the device; what a step reports stays there until it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attlas.kernels.dispatch import on_device, require, require_like
from attlas.kernels.gpu.capture import CapturedStep
from attlas.kernels.gpu.controls import L0, MSE, N_CONTROLS, N_REPORTED, NESTED, OTHER, TOTAL
from attlas.kernels.gpu.gradient import Gradient
from attlas.kernels.gpu.ops import ops_for
from attlas.kernels.gpu.precision import Precision, products_in
from attlas.kernels.gpu.weights import Matrix, Vectors
from attlas.kernels.step_options import StepOptions

SPLITS = 32
"""Addends in which column sums are made."""


@dataclass(frozen=True)
class GPUStepResult:
    """What a step saw, before its update: views of buffers that the next step overwrites.

    Attributes:
        total: the loss, 0-dim; mse: mean_n ‖x − x̂‖²; nested: its mean over prefixes; other: penalties and AuxK; l0: active
            features a token.
        fired: int64 [F], rows in which each feature fired.
    """

    total: Tensor
    mse: Tensor
    nested: Tensor
    other: Tensor
    l0: Tensor
    fired: Tensor


class GPUStep:
    """Weights, Adam state and the step; a subclass computes the gradients of an architecture.

    Args:
        W_enc: [D, F]; b_enc: [F]; W_dec: [F, D]; b_dec: [D]; copied, float32 (float64 for checks, in torch).
        options: see StepOptions; `lazy` changes nothing here, since rows cost little.
        precision: see resolve_precision.
        clip: largest norm of the gradient of all parameters together; None never clips.
        extra: further vectors [F] of the architecture, by name.
        graph: record a CUDA graph where the tensors are on CUDA.
    """

    second_rate: ClassVar[float] = 0.0
    """The second vector's rate as a multiple of the others'; 0 where there is none with a rate of its own."""
    nested: ClassVar[bool] = False
    """Whether the loss is the mean over groups, not their sum."""

    def __init__(
        self,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        options: StepOptions,
        precision: Precision = "float32",
        clip: float | None = None,
        *,
        extra: Mapping[str, Tensor] | None = None,
        graph: bool = True,
    ) -> None:
        D, F = W_enc.shape
        require(tuple(W_dec.shape) == (F, D), f"W_dec has shape {tuple(W_dec.shape)}, want ({F}, {D})")
        require(tuple(b_enc.shape) == (F,) and tuple(b_dec.shape) == (D,), "b_enc must be [F], b_dec [D]")
        require_like(W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, **(extra or {}))
        self.options, self.precision, self.clip, self.n_steps = options, precision, clip, 0
        self.matrices = {"encoder": Matrix.start(W_enc.t(), precision), "W_dec": Matrix.start(W_dec, precision)}
        self.vectors = Vectors({"b_enc": b_enc, **(extra or {})}, b_dec)
        self.narrow = torch.bfloat16 if precision == "bfloat16" else W_enc.dtype
        new = self.vectors.flat.new_zeros
        self.controls, self.report, self.partial = new(N_CONTROLS), new(N_REPORTED), new(SPLITS, D)
        self.bad = torch.zeros(1, dtype=torch.int32, device=W_enc.device)
        self.fired = torch.zeros(F, dtype=torch.int64, device=W_enc.device)
        self.dead = torch.zeros(F, dtype=torch.bool, device=W_enc.device)
        self.squared = new(2 * F)
        self.penalties: Tensor | None = None
        self.n_rows, self.aux_columns = 0, 0
        self.aux_full = options.k_aux  # dead features from which on AuxK has its whole weight
        self.captured = CapturedStep(graph and W_enc.is_cuda)

    # -- parameters --------------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> Tensor:
        """[F, D]."""
        return self.matrices["encoder"].master

    @property
    def W_enc(self) -> Tensor:
        """[D, F], a view of the stored encoder."""
        return self.encoder.t()

    @property
    def W_dec(self) -> Tensor:
        return self.matrices["W_dec"].master

    @property
    def b_enc(self) -> Tensor:
        return self.vectors["b_enc"]

    @property
    def b_dec(self) -> Tensor:
        return self.vectors["b_dec"]

    # -- what an architecture says -----------------------------------------------------------------------------------

    def _allocate(self, n_rows: int) -> None:
        """Buffers for batches of this many rows."""
        raise NotImplementedError

    def _gradients(self) -> tuple[Gradient, Gradient, Tensor, Tensor, Tensor | None]:
        """From self.centred, all in buffers: gradients of encoder and W_dec, of x̂ [N, D], Σ_n of those of
        pre-activations [F], and AuxK's loss; the gradients of vectors but b_dec are in self.vectors.grad."""
        raise NotImplementedError

    def _key(self) -> tuple[int, ...]:
        return self.n_rows, self.aux_columns

    # -- the step ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(
        self,
        x: Tensor,
        dead: Tensor | None = None,
        *,
        lr: float | None = None,
        aux_weight: float | None = None,
        penalty: float = 0.0,
        aux_columns: int | None = None,
    ) -> GPUStepResult:
        """Update on x [N, D], N ≥ 1.

        Args:
            dead: bool [F], features for AuxK.
            aux_weight: AuxK's coefficient, which falls with fewer than `aux_full` dead features.
            penalty: λ.
            aux_columns: a bound on how many are dead, from the host; None counts them, which waits for the device.
        """
        require(x.dim() == 2 and x.shape[1] == self.b_dec.shape[0] and len(x) > 0, f"x has shape {tuple(x.shape)}")
        require_like(self.encoder, x=x)
        if len(x) != self.n_rows:
            self.n_rows = len(x)
            self.centred = torch.empty(x.shape, dtype=x.dtype, device=x.device)
            self.centred_narrow = (
                self.centred if self.narrow == x.dtype else torch.empty_like(self.centred, dtype=self.narrow)
            )
            self._allocate(len(x))
        self.aux_columns = self._aux_columns(dead, aux_columns)
        if self.aux_columns and dead is not None:
            self.dead.copy_(dead)
        with products_in(self.precision), on_device(x):
            values = self._controls(lr, self.options.aux_weight if aux_weight is None else aux_weight, penalty)
            ops_for(x).begin(x, self.b_dec, self.centred, self.centred_narrow, self.controls, values)
            self.captured.run(self._key(), self.body)
        self.n_steps += 1
        r = self.report
        return GPUStepResult(r[TOTAL], r[MSE], r[NESTED], r[OTHER], r[L0], self.fired)

    def _aux_columns(self, dead: Tensor | None, bound: int | None) -> int:
        """Columns that AuxK looks at: the bound, rounded up to a power of two, so that it seldom changes."""
        if dead is None or self.options.k_aux == 0:
            return 0
        bound = int(dead.sum()) if bound is None else bound
        return min(self.encoder.shape[0], max(16, 1 << (bound - 1).bit_length())) if bound else 0

    def _controls(self, lr: float | None, aux_weight: float, penalty: float) -> tuple[float, ...]:
        t, (b1, b2) = self.n_steps + 1, self.options.betas
        rate = self.options.lr if lr is None else lr
        return rate / (1 - b1**t), (1 - b2**t) ** -0.5, penalty, 1.0, float(t), aux_weight

    def body(self) -> None:
        """All but `begin`; reads buffers alone."""
        ops, clip, unit = ops_for(self.centred), self.clip is not None, self.options.unit_norm
        for_encoder, for_decoder, d_x_hat, d_pre, aux = self._gradients()
        encoder, decoder = self.matrices["encoder"], self.matrices["W_dec"]
        ops.columns(d_x_hat, d_pre, encoder.master, self.partial)
        if clip:
            F = self.fired.numel()
            ops.squares(encoder, for_encoder, self.squared[:F], unit_norm=False)
            ops.squares(decoder, for_decoder, self.squared[F:], unit_norm=unit)
            ops.clip_factor(self.squared, self.vectors.grad, self.partial, self.clip, self.controls)
        adam = (self.controls, self.options.betas, self.options.eps)
        ops.update(encoder, for_encoder, *adam, unit_norm=False, clip=clip)
        ops.update(decoder, for_decoder, *adam, unit_norm=unit, clip=clip, norms=self._norms())
        ops.update_vectors(
            self.vectors,
            self.partial,
            *adam,
            clip=clip,
            second_rate=self.second_rate,
            losses=self._losses(),
            nested=self.nested,
            fired=self.fired,
            penalties=self.penalties,
            aux=aux,
            report=self.report,
            bad=self.bad,
        )

    def _norms(self) -> Tensor | None:
        """Where to keep the norms of decoder rows [F], if they are needed."""
        return None

    def _losses(self) -> Tensor:
        """[G, N], squared errors."""
        raise NotImplementedError

    def spoilt(self) -> int:
        """The first step, from 1, whose loss was not finite, or 0. Waits for the device."""
        return int(self.bad)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Moments of Adam by parameter, not copied, and `n_steps`."""
        found: dict[str, Tensor] = {}
        for name, matrix in self.matrices.items():
            found |= {f"exp_avg/{name}": matrix.exp_avg, f"exp_avg_sq/{name}": matrix.exp_avg_sq}
        for name in self.vectors.all_names:
            found[f"exp_avg/{name}"] = self.vectors.of(name, self.vectors.exp_avg)
            found[f"exp_avg_sq/{name}"] = self.vectors.of(name, self.vectors.exp_avg_sq)
        return found | {"n_steps": torch.tensor(self.n_steps)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` gave, and weights that were set from outside."""
        for name, tensor in self.state().items():
            if name != "n_steps":
                tensor.copy_(tensors[name])
        self.n_steps = int(tensors["n_steps"])
        self.bad.zero_()
        self.refresh()

    def refresh(self) -> None:
        """Weights were set from outside: round them anew."""
        for matrix in self.matrices.values():
            matrix.refresh()
