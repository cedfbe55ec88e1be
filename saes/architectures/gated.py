"""Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014).

π = (x − b_dec)·W_enc + b_gate decides which features fire, m = (x − b_dec)·(W_enc·e^{r_mag}) + b_mag how strongly:
f = 1[π > 0]·ReLU(m).  L = ‖x − x̂(f)‖² + λ·Σ ReLU(π) + ‖x − x̂_frozen(ReLU(π))‖², the last with W_dec and b_dec
held fixed, so that the gate learns without shrinking the magnitudes. Decoder rows have norm 1. Added *(ours)*: the
pre-activation loss of attlas.saes.architectures.auxk on gates that no token opens.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from attlas.saes.architectures.auxk import pre_activation_loss
from attlas.saes.base import SAE, LossTerms, StepContext, squared_error
from attlas.saes.config import SAEConfig


class GatedSAE(SAE):
    """b_enc is the gate's bias b_gate; r_mag [F] and b_mag [F] make the magnitude from the same product."""

    arch: ClassVar[str] = "gated"
    saelens_arch: ClassVar[str] = "gated"
    saelens_names: ClassVar[dict[str, str]] = {"b_enc": "b_gate"}
    default_sparsity: ClassVar[float] = 2.7
    default_rate: ClassVar[float] = 1.4e-2
    narrow_exponent: ClassVar[float] = 2.0
    default_clip: ClassVar[float | None] = 1.0  # λ rises while Adam still weighs the large gradients of the start

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.r_mag = nn.Parameter(torch.zeros_like(self.b_enc))
        self.b_mag = nn.Parameter(torch.zeros_like(self.b_enc))

    def activate(self, pre: Tensor) -> Tensor:
        magnitude = (pre - self.b_enc) * self.r_mag.exp() + self.b_mag
        return (pre > 0) * torch.relu(magnitude)

    def activation_scaled(self) -> list[Tensor]:
        return [*super().activation_scaled(), self.b_mag]

    def loss(self, x: Tensor, step: StepContext) -> LossTerms:
        gate_BF = self.pre_activations(x)
        f_BF = self.activate(gate_BF)
        mse = squared_error(x, self.decode(f_BF))
        open_BF = torch.relu(gate_BF)
        l1 = self.cfg.sparsity * step.penalty_scale * open_BF.sum(-1).mean()
        aux = squared_error(x, open_BF @ self.W_dec.detach() + self.b_dec.detach())
        revival = pre_activation_loss(self, gate_BF, step.dead_F)
        active_BF = f_BF > 0
        return LossTerms(
            total=mse + l1 + aux + revival,
            terms={"mse": mse.detach(), "l1": l1.detach(), "aux": aux.detach(), "revival": revival.detach()},
            fired_F=active_BF.sum(0),
            l0=active_BF.sum(-1).float().mean(),
        )
