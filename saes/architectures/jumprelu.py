"""JumpReLU SAE (Rajamanoharan et al. 2024, arXiv 2407.14435).

f = ReLU(π)·1[π > θ], π = (x − b_dec)·W_enc + b_enc, with a learned threshold θ a feature;
L = ‖x − x̂‖² + λ·‖f‖₀ + α·L_aux (AuxK, of attlas.saes.architectures.auxk: a feature whose θ no token reaches gets no other
gradient; *ours*). The step function has no gradient, so θ gets the straight-through estimate of the paper, with a
rectangular kernel of width ε = cfg.bandwidth:  ∂f/∂θ ≈ −(θ/ε)·1[|π − θ| < ε/2],  ∂‖f‖₀/∂θ ≈ −(1/ε)·1[|π − θ| < ε/2].
Decoder rows have norm 1. θ is kept at or above 0 by clamping *(ours; the paper learns log θ)*.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attlas.saes.architectures.auxk import auxk_loss
from attlas.saes.base import SAE, LossTerms, StepContext, squared_error
from attlas.saes.config import SAEConfig

START_THRESHOLD = 0.1


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_BF: Tensor, theta_F: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_BF, theta_F)
        ctx.bandwidth = bandwidth
        return torch.relu(pre_BF) * (pre_BF > theta_F)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        pre_BF, theta_F = ctx.saved_tensors
        near = ((pre_BF - theta_F).abs() < ctx.bandwidth / 2).to(pre_BF.dtype)
        theta_grad = -(theta_F / ctx.bandwidth * near * grads[0]).sum_to_size(theta_F.shape)
        return grads[0] * ((pre_BF > theta_F) & (pre_BF > 0)), theta_grad, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_BF: Tensor, theta_F: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_BF, theta_F)
        ctx.bandwidth = bandwidth
        return ((pre_BF > theta_F) & (pre_BF > 0)).to(pre_BF.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        pre_BF, theta_F = ctx.saved_tensors
        near = ((pre_BF - theta_F).abs() < ctx.bandwidth / 2).to(pre_BF.dtype)
        return None, -(near / ctx.bandwidth * grads[0]).sum_to_size(theta_F.shape), None


def active_step(pre_BF: Tensor, theta_F: Tensor, bandwidth: float) -> Tensor:
    """1 where a pre-activation passes its threshold, with the straight-through gradient for the threshold."""
    return _Step.apply(pre_BF, theta_F, bandwidth)


class JumpReLUSAE(SAE):
    """`threshold` [F] is learned; λ = cfg.sparsity weighs the L0 penalty and is warmed up."""

    arch: ClassVar[str] = "jumprelu"
    saelens_arch: ClassVar[str] = "jumprelu"
    default_sparsity: ClassVar[float] = 1.0
    default_rate: ClassVar[float] = 9e-3
    default_clip: ClassVar[float | None] = 1.0  # λ rises while Adam still weighs the large gradients of the start
    rate_scale: ClassVar[dict[str, float]] = {"threshold": 2.0}

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.threshold = nn.Parameter(torch.full_like(self.b_enc.data, START_THRESHOLD))

    def activate(self, pre: Tensor) -> Tensor:
        return _JumpReLU.apply(pre, self.threshold, self.cfg.bandwidth)

    def activation_scaled(self) -> list[Tensor]:
        return [*super().activation_scaled(), self.threshold]

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        self.threshold.clamp_(min=0)

    def loss(self, x: Tensor, step: StepContext) -> LossTerms:
        pre_BF = self.pre_activations(x)
        f_BF = self.activate(pre_BF)
        x_hat_BD = self.decode(f_BF)
        mse = squared_error(x, x_hat_BD)
        aux = auxk_loss(self, x, x_hat_BD, step.dead_F)
        active_BF = active_step(pre_BF, self.threshold, self.cfg.bandwidth)
        l0 = active_BF.sum(-1).mean()
        penalty = self.cfg.sparsity * step.penalty_scale * l0
        return LossTerms(
            total=mse + penalty + aux,
            terms={"mse": mse.detach(), "l0_penalty": penalty.detach(), "auxk": aux.detach()},
            fired_F=(active_BF.detach() > 0).sum(0),
            l0=l0.detach(),
        )
