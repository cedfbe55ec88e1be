"""The TopK family's training step as one fused kernel call (attlas.kernels.TopKStep) in place of autograd and Adam.

Same loss, same update, up to rounding; nothing of size tokens × features is made. The SAE's parameters are views of the
kernel's, so the SAE can be read at any time.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from attlas.kernels import SelectDtype, StepOptions, TopKStep
from attlas.saes.base import SAE, LossTerms


class FusedTopK:
    """Owns the optimiser state of one TopK SAE.

    Args:
        sae: architecture "topk"; its parameters become views of this step's.
        eps: of Adam.
        lazy: leave rows alone that Adam would not move (attlas.kernels.row_adam).
        select_dtype: what features are chosen in (attlas.kernels.topk_encode).
    """

    def __init__(self, sae: SAE, eps: float, lazy: bool = False, select_dtype: SelectDtype = "float32") -> None:
        cfg = sae.cfg
        self.sae = sae
        self.k_aux = cfg.k_aux or max(1, cfg.d_in // 2)
        self.options = StepOptions(
            k=cfg.k,
            eps=eps,
            k_aux=self.k_aux,
            aux_weight=cfg.aux_coefficient,
            lazy=lazy,
            select_dtype=select_dtype,
        )
        self._kernel = TopKStep(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, self.options)
        self._share()

    @staticmethod
    def fits(sae: SAE) -> bool:
        """Whether the kernel computes this SAE's loss."""
        return sae.cfg.arch == "topk" and sae.cfg.apply_b_dec_to_input and sae.W_enc.dtype == torch.float32

    def _share(self) -> None:
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(self.sae, name).data = getattr(self._kernel, name)

    def step(self, x_BD: Tensor, dead_F: Tensor, learning_rate: float) -> LossTerms:
        """Update on a batch; the terms are of the weights before the update, as with autograd."""
        n_dead = int(dead_F.sum())
        # the weight of AuxK falls with few dead features, as in attlas.saes.architectures.auxk
        weight = self.sae.cfg.aux_coefficient * min(1.0, n_dead / self.k_aux)
        self._kernel.options = dataclasses.replace(self.options, aux_weight=weight)
        self._kernel.lr = learning_rate
        result = self._kernel.step(x_BD, dead_F if n_dead and weight else None)
        return LossTerms(
            total=result.loss + result.aux_loss,
            parts={"mse": result.loss, "auxk": result.aux_loss},
            fired_F=result.fired,
            l0=(result.values > 0).sum(-1).float().mean(),
        )

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Moments and step count, by name."""
        return self._kernel.state()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up saved moments (the weights are restored through the SAE)."""
        self._kernel.restore(tensors)
