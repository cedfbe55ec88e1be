"""Where autoencoders are measured, and the moments of activations there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.data.dataset import Batch
from attlas.data.processes.group import ALONE, Group
from attlas.data.processes.turns import in_turn
from attlas.data.progress import Track
from attlas.errors import ConfigError, NonFiniteError
from attlas.interp import HookedModel
from attlas.saes.positions import Positions

SAMPLE_ROWS = 8_192


@dataclass(frozen=True)
class Place:
    """Where an SAE is measured: a hook, and the positions that count."""

    hook: str
    positions: Positions

    def rows(self, batch: Batch, activation: Tensor) -> tuple[Tensor, Tensor]:
        """Activations float32 [N, D] at the positions that count, and those positions, bool [B, T]."""
        keep_BT = self.positions.mask(batch.inputs, activation.shape[1], batch.mask).to(activation.device)
        if not bool(torch.isfinite(activation).all()):
            raise NonFiniteError(f"'{self.hook}' holds NaN or infinity; load the model in float32")
        return activation.flatten(2)[keep_BT].float(), keep_BT


def measure_moments(
    model: HookedModel, batches: Sequence[Batch], places: Sequence[Place], track: Track, group: Group = ALONE
) -> dict[Place, tuple[Tensor, Tensor, Tensor]]:
    """Mean [D], covariance [D,D] (float64) and a sample of rows of every place, from one pass that stops after the last."""
    if not batches:
        raise ConfigError("there are no sequences to evaluate on; give more tokens or images")
    hooks = list(dict.fromkeys(place.hook for place in places))
    totals: dict[Place, list[Tensor]] = {}
    samples: dict[Place, list[Tensor]] = {place: [] for place in places}

    def measure(batch: Batch) -> dict[Place, tuple[list[Tensor], Tensor]]:
        cache = model.capture(batch.inputs, hooks)
        own = {}
        for place in places:
            rows_ND, _ = place.rows(batch, cache[place.hook])
            double = rows_ND.double()
            sums = [double.sum(0), double.T @ double, torch.tensor(float(len(rows_ND)), dtype=torch.float64)]
            own[place] = (_sent(sums, group), _sent([rows_ND[:SAMPLE_ROWS]], group)[0])
        return own

    for _, of_batch in track(in_turn(group, batches, measure), "measuring activations", len(batches)):
        for place, (sums, rows_ND) in of_batch.items():
            totals[place] = [a + b for a, b in zip(totals[place], sums, strict=True)] if place in totals else sums
            room = SAMPLE_ROWS - sum(len(part) for part in samples[place])
            if room > 0:
                samples[place].append(rows_ND[:room])
    found = {}
    for place, (total_D, products_DD, n) in totals.items():
        mean_D = total_D / float(n)
        covariance_DD = products_DD / float(n) - torch.outer(mean_D, mean_D)
        found[place] = (mean_D.float(), covariance_DD, torch.cat(samples[place]))
    device = model.device
    return {place: (m.to(device), c.to(device), s.to(device)) for place, (m, c, s) in group.of_first(found).items()}


def _sent(tensors: list[Tensor], group: Group) -> list[Tensor]:
    """As another process can take them: a tensor of a GPU would come out on the same GPU there."""
    return tensors if group.size == 1 else [tensor.cpu() for tensor in tensors]
