"""The first pass over the data: sparse codes of every batch, which several processes may compute in turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attlas.analyses.features.config import FeaturesConfig
from attlas.data.dataset import Batch, Dataset
from attlas.data.processes.group import ALONE, Group
from attlas.data.processes.turns import in_turn
from attlas.saes.base import SAE
from attlas.saes.identity import check_sae

if TYPE_CHECKING:
    from attlas.interp import HookedModel


def coded(
    model: HookedModel, sae: SAE, data: Dataset, hook: str, batch_size: int, group: Group = ALONE, done: int = 0
) -> Iterator[tuple[Batch, tuple[Tensor, Tensor]]]:
    """(batch, (values, indices) [B, T, k]) in order, on the first process; batches before `done` of the first are left out."""

    def encode(batch: Batch) -> tuple[Tensor, Tensor]:
        values, indices = sae.encode_sparse(sae.flatten_heads(model.capture(batch.inputs, hook)[hook]))
        return (values, indices) if group.first else (values.cpu(), indices.cpu())

    return in_turn(group, data.minibatches(batch_size), encode, first=group.of_first(done))


@torch.no_grad()
def help_features(
    model: HookedModel, sae: SAE, data: Dataset, config: FeaturesConfig, *, group: Group, hook: str | None = None
) -> None:
    """Do this process's share of the pass of `features`, which the first process of the group runs meanwhile.

    What follows the pass (examples' attribution, scores) the first does alone.
    """
    for _ in coded(model, sae, data, check_sae(sae, model, hook), config.batch_size, group):
        pass
