"""TopK SAE (Gao et al. 2024, arXiv 2406.04093).

f = ReLU(TopK_k((x − b_dec)·W_enc + b_enc)), so exactly k (or fewer positive) features a token and no penalty to tune;
L = ‖x − x̂‖² + α·L_aux (see attlas.saes.architectures.auxk). Decoder rows have norm 1. Ties go to the lower index.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attlas.kernels import topk_encode, topk_rows
from attlas.saes.architectures.auxk import auxk_loss
from attlas.saes.base import SAE, LossTerms, StepContext, squared_error


class TopKSAE(SAE):
    """The k = cfg.k largest pre-activations of each token."""

    arch: ClassVar[str] = "topk"
    saelens_arch: ClassVar[str] = "topk"
    chooses_k: ClassVar[bool] = True

    def activate(self, pre: Tensor) -> Tensor:
        values, indices = topk_rows(pre, self.cfg.k)
        return torch.zeros_like(pre).scatter(-1, indices, torch.relu(values))

    def encode(self, x: Tensor) -> Tensor:
        # from the sparse codes: a product of another shape rounds otherwise, and could choose otherwise where two are near
        values, indices = self.encode_sparse(x)
        return values.new_zeros(*values.shape[:-1], self.cfg.d_sae).scatter(-1, indices, values)

    def encode_sparse(self, x: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
        return self._select(self._normalise(self.flatten_heads(x).to(self.W_enc.dtype))[0], k)

    def _select(self, x: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
        b_dec = self.b_dec if self.cfg.apply_b_dec_to_input else None
        return topk_encode(x, self.W_enc, self.b_enc, min(k or self.cfg.k, self.cfg.k), b_dec=b_dec)

    def _reconstruct(self, x: Tensor) -> Tensor:
        return self.decode_sparse(*self._select(x))

    def loss(self, x: Tensor, step: StepContext) -> LossTerms:
        values_BK, indices_BK = self.encode_sparse(x)
        x_hat_BD = self.decode_sparse(values_BK, indices_BK)
        mse = squared_error(x, x_hat_BD)
        aux = auxk_loss(self, x, x_hat_BD, step.dead_F)
        active_BK = values_BK > 0
        fired_F = torch.bincount(indices_BK[active_BK], minlength=self.cfg.d_sae)
        return LossTerms(
            total=mse + aux,
            terms={"mse": mse.detach(), "auxk": aux.detach()},
            fired_F=fired_F,
            l0=active_BK.sum(-1).float().mean(),
        )
