"""How processes share one training: who trains what, who holds which activations, and what comes together on the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from attlas.data.processes.group import ALONE, Group
from attlas.saes.architectures import create_sae
from attlas.saes.base import SAE
from attlas.saes.config import SAEConfig

Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True)
class Share:
    """This process's part of a training.

    Attributes:
        group: the processes.
        form: "alone", "hooks", "data" or "features".
        hooks: every hook of the training, in order.
    """

    group: Group = ALONE
    form: str = "alone"
    hooks: tuple[str, ...] = field(default=())

    @property
    def dealt(self) -> bool:
        """Whether each process has autoencoders of its own."""
        return self.form == "hooks"

    def owner(self, hook: str) -> int:
        """The process that trains a hook's autoencoder."""
        return self.hooks.index(hook) % self.group.size if self.dealt else 0

    @property
    def own(self) -> tuple[str, ...]:
        """Hooks whose activations this process holds."""
        return tuple(h for h in self.hooks if self.owner(h) == self.group.rank) if self.dealt else self.hooks

    def rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """New rows of the curve: of all processes on the first, none on the others."""
        if not self.dealt:
            return rows if self.group.first else []
        together = [row for part in self.group.all_of(rows) for row in part]
        together.sort(key=lambda row: self.hooks.index(row["hook"]))
        return together if self.group.first else []

    def state(self, tensors: dict[str, Tensor], trainees: dict[str, Any]) -> Checkpoint:
        """A checkpoint's tensors and trainers' values, of all processes on the first."""
        if not self.dealt:
            return tensors, trainees
        held = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        for more, values in self.group.all_of((held, trainees)):
            tensors, trainees = more | tensors, values | trainees
        return tensors, trainees

    def everyone(self, agreed: bool) -> bool:
        """Whether all processes say yes."""
        return all(self.group.all_of(agreed))

    def finished(self, saes: Mapping[str, SAE]) -> dict[str, SAE]:
        """All autoencoders by hook on the first process, none on the others."""
        if not self.dealt:
            return dict(saes) if self.group.first else {}
        sent = {hook: (sae.cfg, {n: t.cpu() for n, t in sae.state_dict().items()}) for hook, sae in saes.items()}
        found = {hook: part for each in self.group.all_of(sent) for hook, part in each.items()}
        if not self.group.first:
            return {}
        return {hook: saes[hook] if hook in saes else _made(*found[hook]) for hook in self.hooks}

    def values(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """hook → value, of all processes."""
        found = {hook: value for part in self.group.all_of(dict(own)) for hook, value in part.items()}
        return {hook: found[hook] for hook in self.hooks}


def _made(cfg: SAEConfig, weights: dict[str, Tensor]) -> SAE:
    sae = create_sae(cfg)
    sae.load_state_dict(weights)
    return sae.requires_grad_(False).eval()


def gathered(share: Share, rows: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
    """Activations that every process captured a part of: all processes' rows in order, of this process's own hooks."""
    counts = share.group.all_of(len(next(iter(rows.values()))))
    found = {}
    for hook in wanted:
        part = share.group.all_rows(rows[hook], counts, share.owner(hook) if share.dealt else None)
        if part is not None:
            found[hook] = part
    return found
