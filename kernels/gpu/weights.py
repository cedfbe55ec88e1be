"""Weights of a step: float32 masters, moments of Adam, and rounded copies of the matrices where products are in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.kernels.gpu.precision import Precision


@dataclass
class Matrix:
    """A matrix with a feature a row, [F, D]."""

    master: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    shadow: Tensor
    """bfloat16, or the master itself."""

    @classmethod
    def start(cls, rows: Tensor, precision: Precision) -> Matrix:
        master = rows.detach().clone(memory_format=torch.contiguous_format)
        shadow = master.to(torch.bfloat16) if precision == "bfloat16" else master
        return cls(master, torch.zeros_like(master), torch.zeros_like(master), shadow)

    def refresh(self) -> None:
        """The master was set from outside."""
        if self.shadow is not self.master:
            self.shadow.copy_(self.master)


class Vectors:
    """b_enc, further vectors of F entries, and b_dec, one after the other, so that one launch updates them all.

    Attributes:
        flat, exp_avg, exp_avg_sq, grad: [V·F + D].
        names: of the V vectors of F entries.
    """

    def __init__(self, per_feature: Mapping[str, Tensor], b_dec: Tensor) -> None:
        self.names = tuple(per_feature)
        self.flat = torch.cat([*(v.detach() for v in per_feature.values()), b_dec.detach()])
        self.exp_avg, self.exp_avg_sq, self.grad = (torch.zeros_like(self.flat) for _ in range(3))
        self.n_features, self.width = next(iter(per_feature.values())).numel(), b_dec.numel()

    def of(self, name: str, flat: Tensor) -> Tensor:
        """The part of `flat` that is this vector's, a view."""
        if name == "b_dec":
            return flat[-self.width :]
        start = self.names.index(name) * self.n_features
        return flat[start : start + self.n_features]

    def __getitem__(self, name: str) -> Tensor:
        return self.of(name, self.flat)

    @property
    def all_names(self) -> tuple[str, ...]:
        return (*self.names, "b_dec")
