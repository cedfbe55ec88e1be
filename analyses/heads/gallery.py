"""Which sequences a head is shown on, and what it attends to there: HeadVis's strata, from all sequences *(exact)*.

HeadVis draws interval boundaries from a warm-up and fills reservoirs as it goes; here the first pass knows the activation
of every sequence, so boundaries are quantiles of all of them, and a second pass reads the kept sequences alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.heads.config import HeadsConfig
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset
from attlas.errors import LayerRangeError
from attlas.interp import AnyModel, HookedModel, as_hooked, attended
from attlas.interp.attended import Attended
from attlas.kernels.attention_tiles import attention_tile, tile_blocks

PLACES = 4  # of kept weights, as in HeadVis's tree


@dataclass(frozen=True)
class Chosen:
    """A sequence that shows a head: of which interval (0 = lowest), and its place there (0 = first)."""

    by: str
    layer: int
    head: int
    interval: int
    rank: int
    sequence: int
    strength: float


def choose(activation: np.ndarray, config: HeadsConfig, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """(interval, rank, sequence) of one head's kept sequences, the highest interval first.

    Args:
        activation: float [n_sequences].
        config: n_intervals of equal size by quantile; the top one keeps its n_top largest (ties: the lower sequence), the
            others n_sampled drawn at random.
        rng: draws them.
    """
    edges = np.quantile(activation, np.arange(1, config.n_intervals) / config.n_intervals)
    interval = np.searchsorted(edges, activation, side="right")
    order = np.lexsort((np.arange(len(activation)), -activation))
    top = [int(i) for i in order if interval[i] == config.n_intervals - 1][: config.n_top]
    found = [(config.n_intervals - 1, rank, sequence) for rank, sequence in enumerate(top)]
    for at in range(config.n_intervals - 2, -1, -1):
        members = np.flatnonzero(interval == at)
        drawn = rng.permutation(members)[: config.n_sampled]
        ranked = sorted(drawn.tolist(), key=lambda i: (-activation[i], i))
        found += [(at, rank, sequence) for rank, sequence in enumerate(ranked)]
    return found


def choose_all(activations: dict[str, np.ndarray], config: HeadsConfig) -> list[Chosen]:
    """Kept sequences of every head, by each kind of activation [n_sequences, layer, head]."""
    found = []
    for by, values in activations.items():
        for layer, head in np.ndindex(values.shape[1:]):
            rng = np.random.default_rng((config.seed, layer, head))
            for interval, rank, sequence in choose(values[:, layer, head], config, rng):
                value = float(values[sequence, layer, head])
                found.append(Chosen(by, layer, head, interval, rank, sequence, value))
    return found


@dataclass(frozen=True)
class Edges:
    """What one head attends to in one sequence: a weight a (query, key), largest keys of each query first."""

    query: np.ndarray
    key: np.ndarray
    weight: np.ndarray


Place = tuple[int, int, int]
"""(layer, head, sequence)."""


@torch.no_grad()
def read_edges(
    model: HookedModel,
    data: TokenDataset | ImageDataset,
    chosen: list[Chosen],
    config: HeadsConfig,
    track: Track = no_track,
) -> dict[Place, Edges]:
    """The strongest keys of every query in the kept sequences, each (head, sequence) once."""
    wanted: dict[int, set[tuple[int, int]]] = {}
    for c in chosen:
        wanted.setdefault(c.sequence, set()).add((c.layer, c.head))
    sequences, found = sorted(wanted), {}
    for batch, rows in track(list(_batches(data, sequences, config.batch_size)), "sequences of heads"):
        for layer in attended(model, batch):
            places = [(row, head) for row, s in enumerate(rows) for at, head in sorted(wanted[s]) if at == layer.layer]
            if places:
                for (row, head), edges in zip(places, edges_of(layer, places, config), strict=True):
                    found[layer.layer, head, rows[row]] = edges
    return found


def _batches(
    data: TokenDataset | ImageDataset, sequences: list[int], batch_size: int
) -> Iterator[tuple[Tensor, list[int]]]:
    inputs = data.pixels if isinstance(data, ImageDataset) else data.tokens
    for start in range(0, len(sequences), batch_size):
        rows = sequences[start : start + batch_size]
        yield inputs[rows], rows


@torch.no_grad()
def text_edges(model: AnyModel, tokens: Tensor, layer: int, head: int, config: HeadsConfig | None = None) -> Edges:
    """What one head attends to in one text: the strongest keys of every query; memory O(T), no map is held.

    Args:
        tokens: int64 [1, T].
        config: keys_per_query and least_weight.

    Raises:
        LayerRangeError: the model has no such head.

    Example:
        >>> from attlas.analyses.heads import text_edges
        >>> found = text_edges(model, text.tokens[:1], 3, 0)
        >>> bool((found.key <= found.query).all())
        True
    """
    model = as_hooked(model)
    if not (0 <= layer < model.cfg.n_layers and 0 <= head < model.cfg.n_heads):
        raise LayerRangeError(
            f"{model.name} has no head {layer}.{head}; it has {model.cfg.n_layers} × {model.cfg.n_heads}"
        )
    found = next(one for one in attended(model, tokens) if one.layer == layer)
    return edges_of(found, [(0, head)], config or HeadsConfig())[0]


def edges_of(layer: Attended, places: list[tuple[int, int]], config: HeadsConfig) -> list[Edges]:
    """The strongest keys of every query, for some (row of the batch, head) of a layer."""
    rows, heads = torch.tensor(places, device=layer.q.device).T
    q = layer.q[rows, heads].unsqueeze(1)  # [P, 1, T, e]: each place a sequence with one head
    k = layer.k[rows, heads // (layer.q.shape[1] // layer.k.shape[1])].unsqueeze(1)
    mask = None if layer.mask is None else layer.mask[rows]
    parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in places]
    for block in tile_blocks(len(places), 1, q.shape[2], causal=layer.rule.causal, device=q.device):
        tile = attention_tile(q, k, layer.rule, block, mask)
        weights = (tile.weights / tile.z.unsqueeze(-1))[:, 0]
        top = weights.topk(min(config.keys_per_query, weights.shape[-1]), dim=-1)
        kept = top.values >= config.least_weight
        for n, place in enumerate(range(block.rows.start, block.rows.stop)):
            query, slot = kept[n].nonzero(as_tuple=True)
            key = top.indices[n, query, slot] + block.keys.start
            parts[place].append((query + block.queries.start, key, top.values[n, query, slot]))
    return [_edges(part) for part in parts]


def _edges(parts: list[tuple[Tensor, Tensor, Tensor]]) -> Edges:
    query, key, weight = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return Edges(query.astype(np.int32), key.astype(np.int32), weight.round(PLACES).astype(np.float32))
