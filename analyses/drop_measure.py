"""Losses of many drops at once: each batch runs dense once, and every drop goes on from the first layer it touches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from attlas.analyses.drop_scores import Judge, Measured
from attlas.analyses.drop_selection import Drop, masked
from attlas.data.images import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset
from attlas.interp import HookedModel
from attlas.interp.labels import loss_labels
from attlas.interp.modeling_attlas_pruned import AbsentAttention, AbsentMLP
from attlas.interp.prefix_reuse import Prefix


def measure_drops(
    model: HookedModel,
    data: TokenDataset | ImageDataset,
    drops: Sequence[Drop],
    batch_size: int = 8,
    track: Track = no_track,
) -> tuple[Measured, list[Measured], str]:
    """(the whole model's, each drop's (loss, accuracy, predictions), what the loss is; see `drop_scores.Judge`).

    A drop that comes twice is measured once.
    """
    distinct = list(dict.fromkeys(drops))
    if not Judge.has_loss(model, data):
        judge = Judge(model, data, batch_size)
        found = {}
        for drop in track(distinct, "drop curves"):
            with masked(model, drop):
                found[drop] = judge.measure()
        return judge.whole, [found[drop] for drop in drops], judge.kind
    sums = _sums(model, data, distinct, batch_size, track)
    measured = [(loss / count, right / count, int(count)) for loss, right, count in sums.tolist()]
    by_drop = dict(zip(distinct, measured[1:], strict=True))
    return measured[0], [by_drop[drop] for drop in drops], Judge.LOSS


@torch.no_grad()
def _sums(
    model: HookedModel, data: TokenDataset | ImageDataset, drops: Sequence[Drop], batch_size: int, track: Track
) -> Tensor:
    """Sum of losses, right predictions and predictions: float64 [1 + drops, 3], the whole model first."""
    labels = loss_labels(model, data)
    sums = torch.zeros(1 + len(drops), 3, dtype=torch.float64)
    if labels is None:  # logits of 16 MB at most: larger blocks are fetched from the system, and cleared, each time
        batch_size = max(1, min(batch_size, 2**22 // (data.batches(1)[0].shape[1] * model.cfg.d_vocab)))
    work = [(batch, row) for batch in data.batches(batch_size) for row in range(1 + len(drops))]
    start, prefix, target = 0, None, torch.empty(0)

    def read(logits: Tensor) -> Tensor:
        parts = [logits] if labels is not None else [row[:-1] for row in logits]
        found = torch.zeros(2, dtype=torch.float64)
        for part, wanted in zip(parts, target.split([len(part) for part in parts]), strict=True):
            found[0] += torch.nn.functional.cross_entropy(part.float(), wanted, reduction="sum").item()
            found[1] += (part.argmax(-1) == wanted).sum().item()
        return found

    for batch, row in track(work, "drop curves"):
        if row == 0:
            chosen = batch[:, 1:].flatten() if labels is None else labels[start : start + len(batch)]
            start += len(batch)
            target = chosen.to(model.device)
            prefix = Prefix(model, batch)
            found = read(prefix.output)
        else:
            assert prefix is not None
            drop = drops[row - 1]
            first = min([*drop.attn, *drop.mlp, *drop.blocks, *(layer for layer, _ in drop.heads)])
            with without(model, drop):
                found = prefix.run_from(first, prefix.residual[first], read)[0]
        sums[row] += torch.cat([found, torch.tensor([len(target)])])
    return sums


@contextlib.contextmanager
def without(model: HookedModel, drop: Drop) -> Iterator[None]:
    """As `masked`, but dropped attention and MLPs are not computed at all."""
    places: list[tuple[nn.Module, str, nn.Module]] = []
    for layers, kind in (({*drop.attn, *drop.blocks}, "attn"), ({*drop.mlp, *drop.blocks}, "mlp")):
        for layer in layers:
            parts = model.layer(layer)
            module: nn.Module = getattr(parts, kind)
            name = next((name for name, child in parts.block.named_children() if child is module), None)
            if name is None:  # transformers before 5 nested the MLP of ViTs
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
