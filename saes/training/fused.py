"""A training step as one fused call of the kernels in place of autograd and Adam.

Same loss, same update, up to rounding. On a GPU every architecture, in any precision; on the CPU TopK, BatchTopK, Matryoshka
and JumpReLU in float32, with nothing of size tokens × features. The SAE's parameters are views of the kernel's, so the SAE can
be read at any time.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from attlas.kernels import StepOptions
from attlas.kernels.cpu.step import BatchTopKStep, JumpReLUStep, SparseStep, SparseStepResult, TopKOnCPU
from attlas.kernels.dispatch import use_triton
from attlas.kernels.gpu import (
    BatchTopKOnGPU,
    GatedStep,
    GPUStep,
    GPUStepResult,
    JumpReLUDenseStep,
    Precision,
    ReLUStep,
    TopKOnGPU,
)
from attlas.saes.architectures.auxk import MU
from attlas.saes.base import SAE, LossTerms, StepContext

_log = logging.getLogger("attlas.saes")
ON_CPU = ("topk", "batchtopk", "matryoshka", "jumprelu")
"""Architectures with a step of their own on the CPU."""
DENSE = 1 / 8
"""Share of pairs near or above JumpReLU's thresholds from which dense products are faster than sums over pairs."""


class FusedStep:
    """Owns the optimiser state of one SAE.

    Args:
        sae: one that `fits`; its parameters become views of this step's.
        eps: of Adam.
        lazy: leave rows alone that Adam would not move (attlas.kernels.row_adam).
        clip: largest gradient norm, or None.
        precision: of products (attlas.kernels.gpu.precision).
        graph: on CUDA, replay the step as one graph.
    """

    def __init__(
        self,
        sae: SAE,
        eps: float,
        lazy: bool = False,
        clip: float | None = None,
        precision: Precision = "float32",
        graph: bool = True,
    ) -> None:
        self.sae = sae
        self.options = step_options(sae, eps, lazy)
        self.k_aux = self.options.k_aux
        self._kernel: SparseStep | GPUStep
        if _on_cpu(sae) and precision == "float32":
            self._kernel = self._cpu_kernel(clip)
        else:
            self._kernel = gpu_step(sae, precision=precision, clip=clip, graph=graph, options=self.options)
        self._share()

    @staticmethod
    def fits(sae: SAE, precision: Precision = "float32") -> bool:
        """Whether a kernel computes this SAE's step."""
        if not sae.cfg.apply_b_dec_to_input or sae.W_enc.dtype != torch.float32:
            return False
        return not _on_cpu(sae) or precision != "float32" or sae.cfg.arch in ON_CPU

    def _cpu_kernel(self, clip: float | None) -> SparseStep:
        sae, options = self.sae, self.options
        weights = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
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

    @property
    def waits(self) -> bool:
        """Whether a step's terms are known when it returns; else `look` says whether all went well."""
        return not isinstance(self._kernel, GPUStep)

    def look(self) -> int:
        """At a step that waits for the device: the first step, from 1, whose loss was not finite, or 0."""
        kernel = self._kernel
        if isinstance(kernel, BatchTopKOnGPU) and (cut := kernel.widen()):
            _log.info("%d rows filled all their slots; there are %d from now on", cut, kernel.slots)
        return kernel.spoilt() if isinstance(kernel, GPUStep) else 0

    def step(
        self,
        x_BD: Tensor,
        dead_F: Tensor,
        learning_rate: float,
        penalty_scale: float = 1.0,
        dead_bound: int | None = None,
    ) -> LossTerms:
        """Update on a batch; the terms are of the weights before the update, as with autograd.

        `dead_bound`: the most features that can be dead, where the host knows; None has them counted.
        """
        kernel = self._kernel
        if isinstance(kernel, GPUStep):
            result = kernel.step(
                x_BD,
                dead_F if self.k_aux and self.options.aux_weight else None,
                lr=learning_rate,
                penalty=self.sae.cfg.sparsity * penalty_scale,
                aux_columns=dead_bound,
            )
            return self._gpu_terms(kernel, result)
        n_dead = int(dead_F.sum())
        # the weight of AuxK falls with few dead features, as in attlas.saes.architectures.auxk
        weight = self.sae.cfg.aux_coefficient * min(1.0, n_dead / self.k_aux)
        dead = dead_F if n_dead and weight else None
        if isinstance(kernel, JumpReLUStep):
            return self._jumprelu(kernel, x_BD, StepContext(dead, penalty_scale), learning_rate, weight)
        return self._terms(kernel.step(x_BD, dead, lr=learning_rate, aux_weight=weight), len(x_BD))

    def _gpu_terms(self, kernel: GPUStep, result: GPUStepResult) -> LossTerms:
        """Views of what the next step overwrites: read them before it."""
        named = {"mse": result.mse, "other": result.other}
        if self.sae.nested:
            named["nested"] = result.nested
        if isinstance(kernel, BatchTopKOnGPU):
            self.sae.move_threshold(kernel.least)  # type: ignore[operator]
        return LossTerms(result.total, named, result.fired, result.l0)

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


def step_options(sae: SAE, eps: float, lazy: bool = False) -> StepOptions:
    """What an SAE's configuration says of its step."""
    cfg = sae.cfg
    k_aux = 0 if cfg.arch == "standard" else cfg.k_aux or max(1, cfg.d_in // 2)
    return StepOptions(
        k=cfg.k,
        eps=eps,
        k_aux=k_aux,
        aux_weight=cfg.aux_coefficient,
        lazy=lazy,
        unit_norm=sae.unit_norm_decoder,
    )


def gpu_step(
    sae: SAE,
    *,
    precision: Precision,
    clip: float | None,
    graph: bool = True,
    options: StepOptions | None = None,
) -> GPUStep:
    """The step of an SAE's architecture as a GPU takes it, from the SAE's weights."""
    options, arch = options or step_options(sae, 1e-8), sae.cfg.arch
    weights = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, options, precision, clip)
    if arch == "topk":
        return TopKOnGPU(*weights, graph=graph)
    if arch == "standard":
        return ReLUStep(*weights, graph=graph)
    extra = {name: vector for name, vector in sae.named_parameters() if name in ("threshold", "r_mag", "b_mag")}
    if arch == "gated":
        gated = GatedStep(*weights, extra=extra, graph=graph)
        gated.revival = MU
        return gated
    if arch == "jumprelu":
        step = JumpReLUDenseStep(*weights, extra=extra, graph=graph)
        step.bandwidth = sae.cfg.bandwidth
        return step
    batch = BatchTopKOnGPU(*weights, graph=graph)
    batch.use(getattr(sae, "widths", ()))
    return batch


def _on_cpu(sae: SAE) -> bool:
    return sae.W_enc.device.type == "cpu" and not use_triton(sae.W_enc)
