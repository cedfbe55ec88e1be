"""The second pass over the data: activations and attribution around the examples that the first pass chose."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.features.attribution import attribute_features, attribution_hooks
from attlas.analyses.features.stream import FeatureStream
from attlas.data.images.dataset import ImageDataset, shrink
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset
from attlas.interp import HookedModel
from attlas.saes.base import SAE
from attlas.saes.reading import encoder_paths

BANDS = ((0.75, "q75"), (0.5, "q50"), (0.25, "q25"))


@dataclass
class Example:
    """One example; `activations` are of the tokens shown, from `start`.

    `by_source`, `by_head` and `constant` add up to the pre-activation (gated: the magnitude, and `gate_…` to the gate).
    """

    feature: int
    rank: int
    stratum: str
    activation: float
    sequence: int
    position: int
    start: int = 0
    tokens: list[str] = field(default_factory=list)
    activations: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    by_source: np.ndarray | None = None
    by_head: np.ndarray | None = None
    constant: float | None = None
    gate_by_source: np.ndarray | None = None
    gate_by_head: np.ndarray | None = None
    gate_constant: float | None = None
    sequence_tokens: np.ndarray | None = None


def choose(stream: FeatureStream, per_band: int) -> list[Example]:
    """Top examples of every feature, and `per_band` from each band of its uniform sample of activations."""
    chosen = []
    for feature in torch.nonzero(stream.count).flatten().tolist():
        top = stream.top
        for rank in range(stream.n_top):
            if top.sequence[rank, feature] >= 0:
                chosen.append(_example(top, rank, feature, rank, "top"))
        sample = stream.sample
        filled = torch.nonzero(sample.sequence[:, feature] >= 0).flatten()
        if len(filled) < 4:
            continue
        values = sample.value[filled, feature]
        upper = float("inf")
        for quantile, name in BANDS:
            lower = float(values.quantile(quantile))
            band = filled[(values >= lower) & (values < upper)][:per_band]
            chosen += [_example(sample, int(slot), feature, rank, name) for rank, slot in enumerate(band)]
            upper = lower
    return chosen


def _example(kept: object, slot: int, feature: int, rank: int, stratum: str) -> Example:
    at = (slot, feature)
    return Example(
        feature=feature,
        rank=rank,
        stratum=stratum,
        activation=float(kept.value[at]),  # type: ignore[attr-defined]
        sequence=int(kept.sequence[at]),  # type: ignore[attr-defined]
        position=int(kept.position[at]),  # type: ignore[attr-defined]
    )


@torch.no_grad()
def fill(
    examples: list[Example],
    model: HookedModel,
    sae: SAE,
    data: TokenDataset | ImageDataset,
    *,
    hook: str,
    context: int,
    batch_size: int,
    attribute: bool,
    track: Track = no_track,
) -> None:
    """Add tokens and activations shown, and for top examples the attribution by source and head, in place."""
    by_sequence: dict[int, list[Example]] = {}
    for example in examples:
        by_sequence.setdefault(example.sequence, []).append(example)
    wanted = sorted(by_sequence)
    inputs = data.tensor
    text: dict[int, str] = {}
    is_text = isinstance(data, TokenDataset)
    names = attribution_hooks(model, hook) if attribute else [hook]
    starts = range(0, len(wanted), batch_size)
    for start in track(starts, "examples", len(starts)):
        rows = wanted[start : start + batch_size]
        batch = inputs[rows]
        cache = model.capture(batch, names)
        values, indices = sae.encode_sparse(sae.flatten_heads(cache[hook]))
        here = [(row, example) for row, sequence in enumerate(rows) for example in by_sequence[sequence]]
        lengths = [values.shape[1]] * len(rows) if data.mask is None else data.mask[rows].sum(1).tolist()
        _fill_activations(here, values.cpu(), indices.cpu(), lengths, context if is_text else None)
        if is_text:
            _fill_tokens(here, batch, model, text)
        if attribute:
            _fill_attribution([(row, e) for row, e in here if e.stratum == "top"], cache, model, sae, hook)


def _fill_activations(
    here: list[tuple[int, Example]], values: Tensor, indices: Tensor, lengths: list[int], context: int | None
) -> None:
    """What is shown ends with the text of a row; padding is not shown."""
    for row, example in here:
        low, high = 0, lengths[row]
        if context is not None:
            low, high = max(0, example.position - context), min(high, example.position + context // 3 + 1)
        hit = indices[row, low:high] == example.feature
        example.start = low
        example.activations = (values[row, low:high] * hit).sum(-1).clamp_min(0).float().numpy()


def _fill_tokens(here: list[tuple[int, Example]], batch: Tensor, model: HookedModel, text: dict[int, str]) -> None:
    for row, example in here:
        ids = batch[row].tolist()
        example.sequence_tokens = np.asarray(ids)
        for token in set(ids) - text.keys():
            text[token] = model.to_str_tokens([token])[0] if model.tokenizer is not None else str(token)
        example.tokens = [text[i] for i in ids[example.start : example.start + len(example.activations)]]


def _fill_attribution(
    here: list[tuple[int, Example]], cache: dict[str, Tensor], model: HookedModel, sae: SAE, hook: str
) -> None:
    if not here:
        return
    rows, features, positions = (
        torch.tensor(column, device=cache[hook].device)
        for column in zip(*((row, e.feature, e.position) for row, e in here), strict=True)
    )
    for path in encoder_paths(sae):
        found = attribute_features(model, sae, hook, cache, features, positions, sequences=rows, path=path)
        columns = (found.dfa.by_source, found.dfa.by_head, found.constant)
        for (_, e), source, heads, constant in zip(here, *(c.cpu().numpy() for c in columns), strict=True):
            if path == "magnitude":
                e.by_source, e.by_head, e.constant = source, heads, float(constant)
            else:
                e.gate_by_source, e.gate_by_head, e.gate_constant = source, heads, float(constant)


def sequences_of(examples: list[Example]) -> dict[int, np.ndarray]:
    """Sequence → ids of all its tokens, of the sequences that examples are from; none for images."""
    return {e.sequence: e.sequence_tokens for e in examples if e.sequence_tokens is not None}


def texts_of(examples: list[Example], names: dict[int, str]) -> list[dict[str, object]]:
    """Rows of `feature_texts`, in order of sequence; `names` holds the text of every id."""
    found = sorted(sequences_of(examples).items())
    return [{"sequence": n, "tokens": [names[int(i)] for i in ids]} for n, ids in found]


def pictures_of(examples: list[Example], data: ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    """(thumbnails, numbers) of the images that examples are from."""
    used = np.unique(np.array([e.sequence for e in examples], dtype=np.int32))
    return shrink(data.thumbnails[used]), used
