"""Capture shared by processes: each runs the model on its sequences of every chunk, and the rows come together in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attlas.saes.activations import Rows, capture_rows
from attlas.saes.positions import positions_for
from attlas.saes.training.buffer import Source
from attlas.saes.training.clock import Clock
from attlas.saes.training.config import TrainConfig
from attlas.saes.training.parallel.share import Share, gathered

if TYPE_CHECKING:
    from attlas.data.dataset import Dataset
    from attlas.interp import HookedModel


def shared_source(model: HookedModel, data: Dataset, config: TrainConfig, clock: Clock, share: Share) -> Source:
    """The chunks of `model_source`, in the same order; every process must ask for the same ones.

    Each process runs 1/P of the model's work. The rows of a hook go to the process that trains it, or to all where they share
    one autoencoder.
    """
    n, size, group = len(data), config.capture_batch, share.group
    per_epoch = -(-n // size)
    positions = positions_for(model, config.skip_positions, config.exclude_tokens)
    positions.require_some(data)

    def source(chunk: int) -> Rows:
        epoch, part = divmod(chunk, per_epoch)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch))
        picked = order[part * size : (part + 1) * size]
        own = torch.tensor_split(picked, group.size)[group.rank]
        asked = own if len(own) else picked[:1]  # with fewer sequences than processes; its rows are then dropped
        text = None if data.mask is None else data.mask[asked]
        with clock.on("model"):
            rows = capture_rows(model, data.tensor[asked], share.hooks, positions, text)
        return gathered(share, rows if len(own) else {hook: r[:0] for hook, r in rows.items()}, share.hooks)

    return source
