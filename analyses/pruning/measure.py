"""Losses of many drops at once: each batch runs dense once, and every drop goes on from the first layer it touches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from attlas.analyses.common.losses import Losses, loss_and_accuracy, n_predictions
from attlas.analyses.pruning.scores import LossMeter
from attlas.data.dataset import Batch, Dataset
from attlas.data.progress import Track, no_track
from attlas.interp import HookedModel
from attlas.interp.drop import Drop, masked
from attlas.interp.labels import loss_labels
from attlas.interp.prefix import Prefix
from attlas.interp.pruned.modeling_attlas_pruned import AbsentAttention, AbsentMLP


def measure_drops(
    model: HookedModel,
    data: Dataset,
    drops: Sequence[Drop],
    batch_size: int = 8,
    track: Track = no_track,
    n_first: Sequence[int] | None = None,
) -> tuple[Losses, list[Losses], str]:
    """(the whole model's, each drop's losses by sequence or image, what the loss is; see `LossMeter`).

    A drop that comes twice is measured once.

    Args:
        n_first: how many sequences or images, from the first on, each drop is measured on; all by default.
    """
    wanted = [len(data)] * len(drops) if n_first is None else list(n_first)
    needed: dict[Drop, int] = {}
    for drop, n in zip(drops, wanted, strict=True):
        needed[drop] = max(n, needed.get(drop, 0))
    if not LossMeter.has_loss(model, data):
        meter = LossMeter(model, data, batch_size)
        found = {}
        for drop in track(list(needed), "drop curves"):
            with masked(model, drop):
                found[drop] = meter.measure()
        return meter.whole, [found[drop].first(n) for drop, n in zip(drops, wanted, strict=True)], meter.kind
    rows, each = _rows(model, data, needed, batch_size, track)
    whole, *measured = (Losses(loss, right, each) for loss, right in rows)
    by_drop = dict(zip(needed, measured, strict=True))
    return whole, [by_drop[drop].first(n) for drop, n in zip(drops, wanted, strict=True)], LossMeter.LOSS


@torch.no_grad()
def _rows(
    model: HookedModel, data: Dataset, needed: Mapping[Drop, int], batch_size: int, track: Track
) -> tuple[np.ndarray, int | np.ndarray]:
    """(loss and share right of each sequence or image, float64 [1 + drops, 2, n], the whole model first and NaN where a
    drop was not asked for; predictions of each).
    """
    labels = loss_labels(model, data)
    if labels is None:  # logits of 16 MB at most: larger blocks are fetched from the system, and cleared, each time
        batch_size = max(1, min(batch_size, 2**22 // (data.tensor.shape[1] * model.cfg.d_vocab)))
    found = np.full((1 + len(needed), 2, len(data)), np.nan)
    drops = [None, *needed]
    work: list[tuple[Batch, int]] = []
    for batch in data.minibatches(batch_size, labels):
        work += [(batch, row) for row, n in enumerate([len(data), *needed.values()]) if n > int(batch.rows[0])]
    prefix, target = None, torch.empty(0)

    def read(logits: Tensor) -> Tensor:
        return loss_and_accuracy(logits, target, labels is None)

    for batch, row in track(work, "drop curves"):
        drop = drops[row]
        if drop is None:
            assert batch.targets is not None
            target = batch.targets.to(model.device)
            prefix = Prefix(model, batch.inputs)
            values = read(prefix.output)
        else:
            assert prefix is not None
            first = min([*drop.attn, *drop.mlp, *drop.blocks, *(layer for layer, _ in drop.heads)])
            with without(model, drop):
                values = prefix.run_from(first, prefix.residual[first], read)[0]
        found[row, :, batch.rows] = values.cpu().numpy()
    return found, n_predictions(data)


@contextlib.contextmanager
def without(model: HookedModel, drop: Drop) -> Iterator[None]:
    """As `masked`, but dropped attention and MLPs are not computed at all."""
    places: list[tuple[nn.Module, str, nn.Module]] = []
    for layers, kind in (({*drop.attn, *drop.blocks}, "attn"), ({*drop.mlp, *drop.blocks}, "mlp")):
        for layer in layers:
            parts = model.layer(layer)
            module: nn.Module = getattr(parts, kind)
            name = next((name for name, child in parts.block.named_children() if child is module), None)
            if name is None or "experts" in model.cfg.traits:  # transformers before 5 nested the MLP of ViTs
                with masked(model, drop):
                    yield
                return
            places.append((parts.block, name, module))
    try:
        for block, name, module in places:
            attention = any(module is parts.attn for parts in model.layers)
            setattr(block, name, AbsentAttention() if attention else AbsentMLP())
        with masked(model, Drop(heads=drop.heads)):
            yield
    finally:
        for block, name, module in places:
            setattr(block, name, module)
