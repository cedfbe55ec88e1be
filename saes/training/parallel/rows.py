"""Data parallel: each process takes its rows of every batch, gradients are averaged before Adam moves the weights.

Every process holds the whole autoencoder. With P processes the step is that of one process on the whole batch, up to the order
of sums: the loss is a mean over rows, AuxK and TopK choose within a row, BatchTopK asks the others (`choice`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from attlas.data.processes.group import Group
from attlas.saes.architectures.batchtopk import BatchTopKSAE
from attlas.saes.base import SAE, LossTerms, StepContext
from attlas.saes.training.parallel.choice import Peers


class RowsStep:
    """The step of one process; takes the place of the fused one.

    Args:
        sae: whole, the same on all processes.
        optimizer: over its parameters, a group each with its "scale" of the learning rate.
        clip: largest norm of the averaged gradient, or None.
    """

    def __init__(self, sae: SAE, optimizer: torch.optim.Adam, group: Group, clip: float | None) -> None:
        self.sae, self.optimizer, self.group, self.clip = sae, optimizer, group, clip

    def step(self, x_BD: Tensor, dead_F: Tensor, learning_rate: float, penalty_scale: float = 1.0) -> LossTerms:
        """Update on the whole batch, of which this process takes its part; the terms are those of the whole batch."""
        n, group = len(x_BD) // self.group.size, self.group
        if isinstance(self.sae, BatchTopKSAE):
            self.sae.peers = Peers(group, group.rank * n, 0, len(x_BD), self.sae.cfg.d_sae)
        own = x_BD[group.rank * n : (group.rank + 1) * n].to(self.sae.W_enc.dtype)
        terms = self.sae.loss(own, StepContext(dead_F=dead_F, penalty_scale=penalty_scale))
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        for parameter in self.sae.parameters():
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = group.sum(grad.contiguous()) / group.size
        self.sae.before_step()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.sae.parameters(), self.clip)
        update(self.optimizer, learning_rate)
        self.sae.after_step()
        numbers = torch.stack([terms.total.detach(), terms.l0.to(terms.total.dtype), *terms.terms.values()])
        total, l0, *parts = group.sum(numbers) / group.size
        fired_F = group.sum(terms.fired_F.contiguous())
        return LossTerms(total, dict(zip(terms.terms, parts, strict=True)), fired_F, l0)

    def state(self) -> dict[str, Tensor]:
        """Nothing: the optimiser's state is the trainer's."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to take up."""


def update(optimizer: torch.optim.Adam, learning_rate: float) -> None:
    """One step of Adam at a learning rate."""
    for part in optimizer.param_groups:
        part["lr"] = learning_rate * part["scale"]
    optimizer.step()
