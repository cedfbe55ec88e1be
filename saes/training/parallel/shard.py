"""The trainer of one process's features: it starts, is saved and finished as a part of the whole autoencoder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attlas.data.processes.group import ALONE, Group
from attlas.saes.architectures import create_sae
from attlas.saes.base import SAE
from attlas.saes.config import SAEConfig
from attlas.saes.training.moments import as_adam
from attlas.saes.training.trainer import SAETrainer


@dataclass
class ShardTrainer(SAETrainer):
    """An SAETrainer whose `sae` is a part.

    Attributes:
        group: the processes; this one has the features rank·n … (rank + 1)·n.
        whole: of the autoencoder that all make together.
    """

    group: Group = ALONE
    whole: SAEConfig | None = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As SAETrainer's, of the whole autoencoder, on process 0; every process must call it."""
        tensors, values = super().state()
        return {name: self._joined(name, tensor) for name, tensor in sorted(tensors.items())}, values

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take up this process's part of a whole autoencoder's state."""
        whole = tensors | as_adam(tensors, self.name)
        prefixes = tuple(f"{self.name}/{kind}" for kind in ("sae/", "adam/", "silent"))
        super().restore({name: self._part(name, t) for name, t in whole.items() if name.startswith(prefixes)}, values)

    def finish(self) -> SAE:
        """The whole autoencoder on process 0, the part on the others."""
        joined = {n: self._joined(f"{self.name}/sae/{n}", t) for n, t in sorted(self.sae.state_dict().items())}
        if self.group.first:
            assert self.whole is not None
            device = self.sae.W_enc.device
            self.sae = create_sae(self.whole)
            self.sae.load_state_dict(joined)
            self.sae.to(device if math.prod(self.sae.W_enc.shape) < 2**31 else "cpu")
        return super().finish()

    def _joined(self, name: str, tensor: Tensor) -> Tensor:
        along = _along(name)
        if along is None:
            return tensor
        parts = self.group.to_first(tensor)
        return tensor if parts is None else torch.cat([part.cpu() for part in parts], dim=along)

    def _part(self, name: str, tensor: Tensor) -> Tensor:
        along = _along(name)
        return tensor if along is None else tensor.chunk(self.group.size, dim=along)[self.group.rank].contiguous()


def _along(name: str) -> int | None:
    """The dimension of features of a trainer's tensor; None of what all processes have alike."""
    words = name.rsplit("/", 2)
    parameter = words[-2] if "/adam/" in name else words[-1]
    if parameter in ("b_dec", "silent") or words[-1] == "step":
        return None
    return 1 if parameter == "W_enc" else 0


def part_of(cfg: SAEConfig, group: Group) -> SAEConfig:
    """The configuration of one process's features."""
    n = cfg.d_sae // group.size
    return dataclasses.replace(cfg, d_sae=n, k=min(cfg.k, n), widths=())
