"""Which sequences a head is shown on, and what it attends to there: HeadVis's strata, from all sequences *(exact)*.

HeadVis draws interval boundaries from a warm-up and fills reservoirs as it goes; here boundaries are quantiles of all
sequences. The pass keeps the strongest keys of sequences that may be shown: of each head the strongest so far, and of all
heads the first sequences of the drawing order that memory has room for. Those few that it did not keep are read once more.
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
MOST_BYTES = 2**28  # of the rows of sequences that may be drawn


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


def drawing_order(n_sequences: int, config: HeadsConfig) -> np.ndarray:
    """The order in which sequences are drawn, the same for every head, int64 [n_sequences]."""
    return np.random.default_rng(config.seed).permutation(n_sequences)


def choose(activation: np.ndarray, config: HeadsConfig, drawn: np.ndarray) -> list[tuple[int, int, int]]:
    """(interval, rank, sequence) of one head's kept sequences, the highest interval first.

    Args:
        activation: float [n_sequences].
        config: n_intervals of equal size by quantile; the top one keeps its n_top largest (ties: the lower sequence), the
            others n_sampled drawn at random.
        drawn: the order of drawing, int64 [n_sequences].
    """
    edges = np.quantile(activation, np.arange(1, config.n_intervals) / config.n_intervals)
    interval = np.searchsorted(edges, activation, side="right")
    order = np.lexsort((np.arange(len(activation)), -activation))
    top = [int(i) for i in order if interval[i] == config.n_intervals - 1][: config.n_top]
    found = [(config.n_intervals - 1, rank, sequence) for rank, sequence in enumerate(top)]
    for at in range(config.n_intervals - 2, -1, -1):
        members = drawn[interval[drawn] == at][: config.n_sampled]
        ranked = sorted(members.tolist(), key=lambda i: (-activation[i], i))
        found += [(at, rank, sequence) for rank, sequence in enumerate(ranked)]
    return found


def choose_all(activations: dict[str, np.ndarray], config: HeadsConfig) -> list[Chosen]:
    """Kept sequences of every head, by each kind of activation [n_sequences, layer, head]."""
    found = []
    for by, values in activations.items():
        drawn = drawing_order(len(values), config)
        for layer, head in np.ndindex(values.shape[1:]):
            for interval, rank, sequence in choose(values[:, layer, head], config, drawn):
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


class KeptRows:
    """The strongest keys of every query, of sequences that may be shown, as a pass goes over the data.

    Args:
        n_sequences: of the data.
        most_bytes: room for sequences that may be drawn; the strongest of each head have theirs besides.
    """

    def __init__(self, config: HeadsConfig, n_sequences: int, most_bytes: int = MOST_BYTES) -> None:
        self.config, self.most_bytes = config, most_bytes
        self._place = np.argsort(drawing_order(n_sequences, config))  # of each sequence in the drawing order
        self._whole: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # sequence → weights and keys [layer, head, T, k]
        self._rows: dict[Place, tuple[np.ndarray, np.ndarray]] = {}  # the same of one head, [T, k]
        self._best: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # by → strength and sequence [n_top, layer, head]

    def add(self, first: int, weights: Tensor, keys: Tensor, strength: dict[str, np.ndarray]) -> None:
        """Take a batch in.

        Args:
            first: its first sequence.
            weights, keys: of the strongest keys of every query, [B, layer, head, T, k], 0 where there is none.
            strength: by → float [B, layer, head].
        """
        held, at = weights.cpu().numpy(), keys.to(torch.int32).cpu().numpy()
        n_whole = self.most_bytes // max(1, held[0].nbytes + at[0].nbytes)
        for row in range(len(held)):
            if self._place[first + row] < n_whole:
                self._whole[first + row] = (held[row].copy(), at[row].copy())
        enters = np.zeros(held.shape[:3], dtype=bool)
        for by, values in strength.items():
            enters |= self._compete(by, values, first)
        for row, layer, head in np.argwhere(enters).tolist():
            if first + row not in self._whole:
                self._rows[layer, head, first + row] = (held[row, layer, head].copy(), at[row, layer, head].copy())
        self._forget()

    def _compete(self, by: str, values: np.ndarray, first: int) -> np.ndarray:
        """Which of a batch's sequences are among the strongest n_top so far, bool [B, layer, head]."""
        sequences = np.broadcast_to(first + np.arange(len(values))[:, None, None], values.shape)
        old = self._best.get(by, (values[:0], sequences[:0]))
        both = np.concatenate([old[0], values]), np.concatenate([old[1], sequences])
        order = np.argsort(-both[0], axis=0, kind="stable")[: self.config.n_top]  # ties: the lower sequence
        strength, best = (np.take_along_axis(part, order, 0) for part in both)
        self._best[by] = strength, best
        found: np.ndarray = (sequences[:, None] == best).any(1)
        return found

    def _forget(self) -> None:
        """Let go of rows that are no more among the strongest by anything."""
        for layer, head, sequence in list(self._rows):
            if not any(sequence in best[:, layer, head] for _, best in self._best.values()):
                del self._rows[layer, head, sequence]

    def get(self, place: Place) -> Edges | None:
        """What a head attends to in a sequence, where it was kept."""
        layer, head, sequence = place
        if sequence in self._whole:
            weights, keys = (part[layer, head] for part in self._whole[sequence])
        elif place in self._rows:
            weights, keys = self._rows[place]
        else:
            return None
        query, slot = np.nonzero(weights >= self.config.least_weight)
        kept = weights[query, slot].astype(np.float32).round(PLACES)
        return Edges(query.astype(np.int32), keys[query, slot], kept)


@torch.no_grad()
def read_edges(
    model: HookedModel,
    data: TokenDataset | ImageDataset,
    chosen: list[Chosen],
    config: HeadsConfig,
    track: Track = no_track,
    kept: KeptRows | None = None,
) -> dict[Place, Edges]:
    """The strongest keys of every query in the kept sequences, each (head, sequence) once.

    Args:
        kept: rows that a pass kept; what is not among them is read.
    """
    wanted: dict[int, set[tuple[int, int]]] = {}
    found: dict[Place, Edges] = {}
    for place in {(c.layer, c.head, c.sequence) for c in chosen}:
        edges = None if kept is None else kept.get(place)
        if edges is None:
            wanted.setdefault(place[2], set()).add(place[:2])
        else:
            found[place] = edges
    if not wanted:
        return found
    sequences = sorted(wanted)
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
    model.require_plain("what heads attend to in a text", "sinks")
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
