"""A training step as one fused call of the kernels in place of autograd and Adam.

Same loss, same update, up to rounding; nothing of size tokens × features is kept. TopK everywhere; BatchTopK, Matryoshka and
JumpReLU on the CPU, with gradient clipping too. The SAE's parameters are views of the kernel's, so the SAE can be read at any
time.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from attlas.kernels import SelectDtype, StepOptions, TopKStep
from attlas.kernels.cpu.step import BatchTopKStep, JumpReLUStep, SparseStep, SparseStepResult, TopKOnCPU
from attlas.kernels.dispatch import use_triton
from attlas.saes.base import SAE, LossTerms, StepContext

DENSE = 1 / 8
"""Share of pairs near or above JumpReLU's thresholds from which dense products are faster than sums over pairs."""


class FusedStep:
    """Owns the optimiser state of one SAE.

    Args:
        sae: one that `fits`; its parameters become views of this step's.
        eps: of Adam.
        lazy: leave rows alone that Adam would not move (attlas.kernels.row_adam).
        clip: largest gradient norm, or None.
        select_dtype: what TopK chooses features in (attlas.kernels.topk_encode).
    """

    def __init__(
        self,
        sae: SAE,
        eps: float,
        lazy: bool = False,
        clip: float | None = None,
        select_dtype: SelectDtype = "float32",
    ) -> None:
        self.sae = sae
        cfg = sae.cfg
        self.k_aux = cfg.k_aux or max(1, cfg.d_in // 2)
        self.options = StepOptions(
            k=cfg.k,
            eps=eps,
            k_aux=self.k_aux,
            aux_weight=cfg.aux_coefficient,
            lazy=lazy,
            select_dtype=select_dtype,
        )
        self._kernel = self._start(clip)
        self._share()

    @staticmethod
    def fits(sae: SAE, clip: float | None = None) -> bool:
        """Whether a kernel computes this SAE's step."""
        if not sae.cfg.apply_b_dec_to_input or sae.W_enc.dtype != torch.float32:
            return False
        if _on_cpu(sae):
            return sae.cfg.arch in ("topk", "batchtopk", "matryoshka", "jumprelu")
        return sae.cfg.arch == "topk" and clip is None

    def _start(self, clip: float | None) -> SparseStep | TopKStep:
        sae, options = self.sae, self.options
        weights = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
        if not _on_cpu(sae) or options.select_dtype != "float32":
            return TopKStep(*weights, options)
        if sae.cfg.arch == "topk":
            return TopKOnCPU(*weights, options, clip)
        if sae.cfg.arch == "jumprelu":
            threshold, bandwidth = sae.get_parameter("threshold"), sae.cfg.bandwidth
            return JumpReLUStep(*weights, options, clip, threshold=threshold, bandwidth=bandwidth)
        kernel = BatchTopKStep(*weights, options, clip)
        kernel.widths = getattr(sae, "widths", ())
        return kernel

    def _share(self) -> None:
        for name, _ in self.sae.named_parameters():
            getattr(self.sae, name).data = getattr(self._kernel, name)

    def step(self, x_BD: Tensor, dead_F: Tensor, learning_rate: float, penalty_scale: float = 1.0) -> LossTerms:
        """Update on a batch; the terms are of the weights before the update, as with autograd."""
        kernel = self._kernel
        n_dead = int(dead_F.sum())
        # the weight of AuxK falls with few dead features, as in attlas.saes.architectures.auxk
        weight = self.sae.cfg.aux_coefficient * min(1.0, n_dead / self.k_aux)
        dead = dead_F if n_dead and weight else None
        if isinstance(kernel, JumpReLUStep):
            return self._jumprelu(kernel, x_BD, StepContext(dead, penalty_scale), learning_rate, weight)
        if isinstance(kernel, SparseStep):
            return self._terms(kernel.step(x_BD, dead, lr=learning_rate, aux_weight=weight), len(x_BD))
        kernel.options = dataclasses.replace(self.options, aux_weight=weight)
        kernel.lr = learning_rate
        result = kernel.step(x_BD, dead)
        return LossTerms(
            total=result.loss + result.aux_loss,
            terms={"mse": result.loss, "auxk": result.aux_loss},
            fired_F=result.fired,
            l0=(result.values > 0).sum(-1).float().mean(),
        )

    def _terms(self, result: SparseStepResult, n: int) -> LossTerms:
        named = {"mse": result.errors[-1], "auxk": result.aux_loss}
        if self.sae.nested:
            named["nested"] = result.errors.mean()
        if self.sae.cfg.arch != "topk":
            self.sae.update_threshold(result.least.view(1))  # type: ignore[operator]
        total = result.errors.mean() + result.aux_loss
        return LossTerms(total=total, terms=named, fired_F=result.fired, l0=result.fired.sum() / n)

    def _jumprelu(
        self, kernel: JumpReLUStep, x_BD: Tensor, context: StepContext, learning_rate: float, aux_weight: float
    ) -> LossTerms:
        """The sparse step where few pre-activations lie near or above their thresholds, else autograd's gradients."""
        if kernel.density(x_BD) > DENSE:
            terms = self.sae.loss(x_BD, context)
            named = dict(self.sae.named_parameters())
            grads = dict(zip(named, torch.autograd.grad(terms.total, list(named.values())), strict=True))
            kernel.apply(grads.pop("W_enc"), grads.pop("W_dec"), grads, learning_rate)
            return terms
        kernel.penalty = self.sae.cfg.sparsity * context.penalty_scale
        result = kernel.step(x_BD, context.dead_F, lr=learning_rate, aux_weight=aux_weight)
        l0 = result.fired.sum() / len(x_BD)
        mse, penalty, aux = result.errors[0], kernel.penalty * l0, result.aux_loss
        found = {"mse": mse, "l0_penalty": penalty, "auxk": aux}
        return LossTerms(mse + penalty + aux, found, result.fired, l0)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Moments and step count, by name."""
        return self._kernel.state()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up saved moments (the weights are restored through the SAE)."""
        self._kernel.restore(tensors)


def _on_cpu(sae: SAE) -> bool:
    return sae.W_enc.device.type == "cpu" and not use_triton(sae.W_enc)
