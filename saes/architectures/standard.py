"""ReLU SAE with a norm-weighted L1 penalty (Anthropic, "Circuits Updates – April 2024").

f = ReLU((x − b_dec)·W_enc + b_enc);  L = ‖x − x̂‖² + λ·Σ_i f_i·‖W_dec,i‖₂.
Weighing by the row norm leaves decoder rows free: growing a row to shrink its activation gains nothing.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attlas.saes.base import SAE, LossTerms, StepContext, squared_error


class StandardSAE(SAE):
    """ReLU encoder, L1 penalty λ = cfg.sparsity, warmed up over the first steps."""

    arch: ClassVar[str] = "standard"
    saelens_arch: ClassVar[str] = "standard"
    unit_norm_decoder: ClassVar[bool] = False
    default_sparsity: ClassVar[float] = 2.5
    default_rate: ClassVar[float] = 2.4e-2
    rate_exponent: ClassVar[float | None] = 1 / 6
    default_clip: ClassVar[float | None] = 1.0  # λ rises while Adam still weighs the large gradients of the start

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre)

    def loss(self, x: Tensor, step: StepContext) -> LossTerms:
        f_BF = self.encode(x)
        mse = squared_error(x, self.decode(f_BF))
        l1 = self.cfg.sparsity * step.penalty_scale * (f_BF * self.W_dec.norm(dim=-1)).sum(-1).mean()
        active_BF = f_BF > 0
        return LossTerms(
            total=mse + l1,
            terms={"mse": mse.detach(), "l1": l1.detach()},
            fired_F=active_BF.sum(0),
            l0=active_BF.sum(-1).float().mean(),
        )
