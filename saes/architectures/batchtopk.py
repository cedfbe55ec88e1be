"""BatchTopK SAE (Bussmann et al. 2024, arXiv 2412.06410).

In training the B·k largest pre-activations of the whole batch fire, so easy tokens may use fewer features than hard
ones. At inference a feature fires above a threshold θ, the running mean over training batches of the smallest
activation that fired; a token's features then do not depend on its neighbours. Decoder rows have norm 1; AuxK as TopK.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from attlas.kernels import topk_rows
from attlas.saes.architectures.auxk import auxk_loss
from attlas.saes.base import SAE, LossTerms, StepContext, squared_error
from attlas.saes.config import SAEConfig

THRESHOLD_RATE = 0.05


class Peers(Protocol):
    """Other processes that hold parts of the batch (attlas.saes.training.parallel)."""

    def choose(self, f_BF: Tensor, k: int) -> Tensor:
        """The part here with everything but the largest of the whole batch, k a row, set to 0."""

    def least(self, smallest: Tensor) -> Tensor:
        """The least over processes, in place."""


class BatchTopKSAE(SAE):
    """k = cfg.k features a token on average; `threshold` [F] (all entries equal) decides at inference."""

    arch: ClassVar[str] = "batchtopk"
    saelens_arch: ClassVar[str] = "jumprelu"
    chooses_k: ClassVar[bool] = True
    threshold: Tensor
    peers: Peers | None = None

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.register_buffer("threshold", torch.zeros_like(self.b_enc.data))

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre) * (pre > self.threshold)

    def activate_batch(self, pre_BF: Tensor) -> Tensor:
        """Training-time activation: the B·k largest of the batch, in B·F memory; ties to the lower row, then feature."""
        f_BF = torch.relu(pre_BF)
        if self.peers is not None:
            return self.peers.choose(f_BF, self.cfg.k)
        flat, budget = f_BF.flatten(), self.cfg.k * len(pre_BF)
        if budget >= flat.numel():
            return f_BF
        above = flat.detach().topk(budget + 1, sorted=False).values
        following, least = above.topk(2, largest=False).values.sort().values
        if bool(following < least):  # no tie at the last place, so a comparison chooses; NaN stays, to be seen
            return torch.where(f_BF < least, 0, f_BF)
        values, indices = topk_rows(flat, budget)
        return torch.zeros_like(flat).scatter(0, indices, values).view_as(pre_BF)

    def activation_scaled(self) -> list[Tensor]:
        return [*super().activation_scaled(), self.threshold]

    @torch.no_grad()
    def update_threshold(self, f_BF: Tensor) -> None:
        """Move θ towards the smallest activation of this batch; the first batch sets it."""
        active = f_BF[f_BF > 0]
        smallest = active.min() if active.numel() else f_BF.new_tensor(torch.inf)
        self.move_threshold(smallest if self.peers is None else self.peers.least(smallest))

    @torch.no_grad()
    def move_threshold(self, smallest: Tensor) -> None:
        """Move θ towards the smallest activation that fired, 0-dim, infinite for none; does not wait for the device."""
        some = torch.isfinite(smallest)
        rate = 1 - (1 - THRESHOLD_RATE) * (self.threshold[0] > 0).to(self.threshold.dtype)
        self.threshold.lerp_(torch.where(some, smallest, self.threshold[0]).expand_as(self.threshold), rate)

    def loss(self, x: Tensor, step: StepContext) -> LossTerms:
        f_BF = self.activate_batch(self.pre_activations(x))
        self.update_threshold(f_BF.detach())
        x_hat_BD = self.decode(f_BF)
        mse = squared_error(x, x_hat_BD)
        aux = auxk_loss(self, x, x_hat_BD, step.dead_F)
        active_BF = f_BF > 0
        return LossTerms(
            total=mse + aux,
            terms={"mse": mse.detach(), "auxk": aux.detach()},
            fired_F=active_BF.sum(0),
            l0=active_BF.sum(-1).float().mean(),
        )
