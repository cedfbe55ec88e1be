"""Where training's activations come from: a model run as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from attlas.saes.activations import Rows, capture_rows
from attlas.saes.positions import positions_for
from attlas.saes.training.buffer import Source
from attlas.saes.training.config import TrainConfig

if TYPE_CHECKING:
    from attlas.interp import HookedModel
    from attlas.saes.inputs import Inputs


def model_source(model: HookedModel, inputs: Inputs, hooks: Sequence[str], config: TrainConfig) -> Source:
    """Chunks captured as they are needed: `capture_batch` inputs each, in an order drawn anew for every epoch."""
    n, size = len(inputs.tensor), config.capture_batch
    per_epoch = -(-n // size)
    positions = positions_for(model, config.skip_positions, config.exclude_tokens)
    positions.require_some(inputs.tensor)

    def source(chunk: int) -> Rows:
        epoch, part = divmod(chunk, per_epoch)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch))
        picked = order[part * size : (part + 1) * size]
        return capture_rows(model, inputs.tensor[picked], hooks, positions)

    return source
