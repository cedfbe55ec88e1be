"""The second pass over the data: activations and attribution around the examples that the first pass chose."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.feature_stream import FeatureStream
from attlas.data.images import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset
from attlas.interp import HookedModel
from attlas.kernels import feature_dfa
from attlas.saes.base import SAE

BANDS = ((0.75, "q75"), (0.5, "q50"), (0.25, "q25"))


@dataclass
class Example:
    """One example; arrays are over the tokens shown, from `start`."""

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
    inputs = data.tokens if isinstance(data, TokenDataset) else data.pixels
    text: dict[int, str] = {}
    names = [hook]
    if attribute:
        kind = "rot_" if model.cfg.positional == "rotary" else ""
        prefix = hook.removesuffix("hook_z")
        names += [f"{prefix}hook_{kind}q", f"{prefix}hook_{kind}k", f"{prefix}hook_v"]
    starts = range(0, len(wanted), batch_size)
    for start in track(starts, "examples", len(starts)):
        rows = wanted[start : start + batch_size]
        batch = inputs[rows]
        cache = model.capture(batch, names)
        values, indices = sae.encode_sparse(sae.flatten_heads(cache[hook]))
        here = [(row, example) for row, sequence in enumerate(rows) for example in by_sequence[sequence]]
        _fill_activations(here, values.cpu(), indices.cpu(), context if isinstance(data, TokenDataset) else None)
        if isinstance(data, TokenDataset):
            _fill_tokens(here, batch, model, text)
        if attribute:
            _fill_attribution([(row, e) for row, e in here if e.stratum == "top"], cache, names[1:], model, sae, hook)


def _fill_activations(here: list[tuple[int, Example]], values: Tensor, indices: Tensor, context: int | None) -> None:
    T = values.shape[1]
    for row, example in here:
        low, high = (
            (0, T)
            if context is None
            else (max(0, example.position - context), min(T, example.position + context // 3 + 1))
        )
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
    here: list[tuple[int, Example]], cache: dict[str, Tensor], names: list[str], model: HookedModel, sae: SAE, hook: str
) -> None:
    if not here:
        return
    q, k, v = (cache[name].transpose(1, 2) for name in names)
    layer = int(hook.split(".")[1])
    found = feature_dfa(
        q,
        k,
        v,
        sae.W_enc.to(q.dtype),
        torch.tensor([e.feature for _, e in here], device=q.device),
        torch.tensor([e.position for _, e in here], device=q.device),
        model.layers[layer].rule,
        sequences=torch.tensor([row for row, _ in here], device=q.device),
    )
    for (_, example), source, heads in zip(
        here, found.by_source.cpu().numpy(), found.by_head.cpu().numpy(), strict=True
    ):
        example.by_source, example.by_head = source, heads
