"""Where training's activations come from: a model run as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from attlas.saes.activations import Rows, capture_rows
from attlas.saes.positions import positions_for
from attlas.saes.training.buffer import Source
from attlas.saes.training.clock import Clock
from attlas.saes.training.config import TrainConfig

if TYPE_CHECKING:
    from attlas.data.dataset import Dataset
    from attlas.interp import HookedModel


def model_source(
    model: HookedModel, data: Dataset, hooks: Sequence[str], config: TrainConfig, clock: Clock | None = None
) -> Source:
    """Chunks captured as they are needed: `capture_batch` inputs each, in an order drawn anew for every epoch."""
    clock = clock or Clock()
    n, size = len(data), config.capture_batch
    per_epoch = -(-n // size)
    positions = positions_for(model, config.skip_positions, config.exclude_tokens)
    positions.require_some(data)

    def source(chunk: int) -> Rows:
        epoch, part = divmod(chunk, per_epoch)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch))
        picked = order[part * size : (part + 1) * size]
        text = None if data.mask is None else data.mask[picked]
        with clock.on("model"):
            return capture_rows(model, data.tensor[picked], hooks, positions, text)

    return source
