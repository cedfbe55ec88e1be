"""Matryoshka SAE on BatchTopK (Bussmann et al. 2025, arXiv 2503.17547).

Nested prefixes of the dictionary, of widths m₁ < m₂ < … < F, must each reconstruct the input alone:
L = Σ_m ‖x − (f_{<m}·W_dec,<m + b_dec)‖² / (number of prefixes) + α·L_aux. General features gather at the front and are
not absorbed into specific ones. Dividing by the number of prefixes *(ours)* keeps the loss on the scale of the
other architectures; Adam is indifferent to it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attlas.saes.architectures.auxk import auxk_loss
from attlas.saes.architectures.batchtopk import BatchTopKSAE
from attlas.saes.base import LossTerms, StepContext, squared_error


class MatryoshkaSAE(BatchTopKSAE):
    """BatchTopK whose prefixes of cfg.widths are autoencoders of their own."""

    arch: ClassVar[str] = "matryoshka"
    nested: ClassVar[bool] = True

    @property
    def widths(self) -> tuple[int, ...]:
        """The prefix sizes; by default d_sae/16, /8, /4, /2 and d_sae."""
        d_sae = self.cfg.d_sae
        return self.cfg.widths or tuple(sorted({max(1, d_sae // n) for n in (16, 8, 4, 2, 1)}))

    def loss(self, x: Tensor, step: StepContext) -> LossTerms:
        f_BF = self.activate_batch(self.pre_activations(x))
        self.update_threshold(f_BF.detach())
        x_hat_BD = self.b_dec.expand_as(x)
        errors, start = [], 0
        for width in self.widths:
            x_hat_BD = x_hat_BD + f_BF[:, start:width] @ self.W_dec[start:width]
            errors.append(squared_error(x, x_hat_BD))
            start = width
        nested = torch.stack(errors).mean()
        aux = auxk_loss(self, x, x_hat_BD, step.dead_F)
        active_BF = f_BF > 0
        return LossTerms(
            total=nested + aux,
            terms={"mse": errors[-1].detach(), "nested": nested.detach(), "auxk": aux.detach()},
            fired_F=active_BF.sum(0),
            l0=active_BF.sum(-1).float().mean(),
        )
