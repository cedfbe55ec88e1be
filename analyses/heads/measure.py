"""One pass over the data for every head: sums a sequence, from tiles of weights, and each sequence's activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.heads.config import HeadsConfig
from attlas.analyses.heads.gallery import KeptRows
from attlas.analyses.heads.rules import REST, ImageRules, TextRules, Vocabulary
from attlas.data.images.dataset import ImageDataset
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset
from attlas.interp import HookedModel
from attlas.interp.attended import refuse_absent_heads
from attlas.interp.require import patch_grid
from attlas.kernels.attention_tiles import AttentionTile, Block, Scratch, attention_tile, tile_blocks

# HeadVis's: weights below count as none in its induction score (shared definition, so that numbers compare).
INDUCTION_FLOOR = 0.01
OVER_ALL = ("pattern_entropy", "self_attention", "distance", "distance_squared")  # every query
OVER_LATER = ("previous_token", "sink_mass", "max_weight", "active", "output_ratio")  # all but the first position
SUMS = (*OVER_ALL, *OVER_LATER, "induction")


@dataclass
class HeadSums:
    """What a pass found, by sequence: sums over queries, so that passes can be cut anywhere and joined.

    Attributes:
        sums: name (of SUMS, `rule:NAME`, or `repeat:NAME` of the queries whose token occurred before) → float64
            [n_sequences, layer, head].
        n_queries: int64 [n_sequences], all of them; n_repeats: those whose token occurred before.
        activation: "weight", "norm" → float32 [n_sequences, layer, head].
        max_logit: float64 [layer, head].
        rules: names, in their order.
    """

    sums: dict[str, np.ndarray]
    n_queries: np.ndarray
    n_repeats: np.ndarray
    activation: dict[str, np.ndarray]
    max_logit: np.ndarray
    rules: tuple[str, ...] = field(default=())

    def rest_share(self) -> np.ndarray:
        """Share of the mass that no rule takes, by sequence, float64 [n_sequences, layer, head]."""
        found: np.ndarray = self.sums[f"rule:{REST}"] / np.maximum(self.n_queries - 1, 1)[:, None, None]
        return found


@torch.no_grad()
def measure(
    model: HookedModel,
    data: TokenDataset | ImageDataset,
    config: HeadsConfig,
    track: Track = no_track,
    *,
    start: HeadSums | None = None,
    keep: Callable[[Callable[[], HeadSums]], None] | None = None,
    rows: KeptRows | None = None,
    title: str = "heads",
) -> HeadSums:
    """Go through the data once.

    Args:
        start: what an earlier pass over the first sequences found; the rest is added to it.
        keep: is called after every batch with a function that returns what is known so far, to be kept for a later `start`.
        rows: takes the strongest keys of every query of sequences that may be shown.

    Raises:
        UnsupportedModelError: a pruned model that lacks heads.
    """
    refuse_absent_heads(model)
    model.require_plain("the measures of heads", "sinks")
    reader = _Reader(model, data, config)
    parts = [] if start is None else [start]
    done = 0 if start is None else len(start.n_queries)
    for batch in track(data.batches(config.batch_size)[-(-done // config.batch_size) :], title):
        parts.append(reader.read(batch.to(model.device), rows, done))
        done += len(batch)
        if keep is not None:
            keep(lambda: joined(parts))
    return joined(parts)


def joined(parts: list[HeadSums]) -> HeadSums:
    """What passes over consecutive sequences found, as one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return HeadSums(
        {name: np.concatenate([p.sums[name] for p in parts]) for name in first.sums},
        np.concatenate([p.n_queries for p in parts]),
        np.concatenate([p.n_repeats for p in parts]),
        {name: np.concatenate([p.activation[name] for p in parts]) for name in first.activation},
        np.maximum.reduce([p.max_logit for p in parts]),
        first.rules,
    )


class _Reader:
    """Reads batches of one data set; what does not change from batch to batch is made once."""

    def __init__(self, model: HookedModel, data: TokenDataset | ImageDataset, config: HeadsConfig) -> None:
        self.model, self.config = model, config
        self.vocabulary = Vocabulary.of(model) if isinstance(data, TokenDataset) else None
        self.images = None
        if isinstance(data, ImageDataset):
            grid = patch_grid(model, data.pixels)
            self.images = ImageRules(grid, model.cfg.n_prefix_tokens, device=model.device)
        self.grams = [torch.einsum("hed,hfd->hef", W, W) for W in map(model.W_O, range(model.cfg.n_layers))]
        kind = "rot_" if model.cfg.positional == "rotary" else ""
        self.scratch = Scratch()
        self.names = [f"attn.hook_{kind}q", f"attn.hook_{kind}k", "attn.hook_z", "hook_resid_pre"]

    def read(self, batch: Tensor, rows: KeptRows | None, first: int) -> HeadSums:
        model, n_layers = self.model, self.model.cfg.n_layers
        cache = model.capture(batch, [f"blocks.*.{name}" for name in self.names])
        layers = [
            _Layer(model, layer, *[cache.pop(f"blocks.{layer}.{n}") for n in self.names]) for layer in range(n_layers)
        ]
        n, heads, n_tokens, _ = layers[0].q.shape
        rules = self._rules(batch)
        totals = _Totals(n, n_layers, heads, rules.names, n_tokens, batch.device)
        if rows is not None:
            totals.make_room(self.config.keys_per_query)
        for block in tile_blocks(n, heads, n_tokens, causal=model.cfg.causal, device=batch.device):
            self._read_block(block, batch, layers, rules, totals)
        for index, layer in enumerate(layers):
            norms = layer.output_norms(self.grams[index])
            totals.norms(index, norms, layer.residual)
        found = totals.found(batch if self.images is None else None)
        if rows is not None and totals.top is not None:
            rows.add(first, *totals.top, {**found.activation, REST: found.rest_share()})
        return found

    def _rules(self, batch: Tensor) -> TextRules | ImageRules:
        if self.vocabulary is None:
            assert self.images is not None
            return self.images
        return TextRules(batch, self.vocabulary, window=self.config.window, alike=self.config.alike)

    def _read_block(
        self, block: Block, batch: Tensor, layers: list[_Layer], rules: TextRules | ImageRules, totals: _Totals
    ) -> None:
        codes = rules.codes(block)
        codes = codes.long() if isinstance(rules, TextRules) else codes  # once for all layers
        repeats = _after_copies(batch, block) if isinstance(rules, TextRules) else None
        occurred = rules.occurred if isinstance(rules, TextRules) else None
        for index, layer in enumerate(layers):
            tile = attention_tile(layer.q, layer.k, layer.rule, block, scratch=self.scratch)
            here = codes
            if isinstance(rules, ImageRules):
                here = rules.with_high_norm(
                    codes, layer.high_norm(self.config.high_norm, self.model)[block.rows][:, block.keys]
                )
            totals.add(index, tile, tile.sums_by(here, len(rules.names)), repeats, occurred, self.config.active)


class _Layer:
    """What one layer attends with and writes, of one batch."""

    def __init__(self, model: HookedModel, layer: int, q: Tensor, k: Tensor, z: Tensor, residual: Tensor) -> None:
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.q, self.k = (part.transpose(1, 2).to(dtype).contiguous() for part in (q, k))
        self.rule, self.z = model.layers[layer].rule, z
        self.residual = torch.linalg.vector_norm(residual.float(), dim=-1)  # [B, T]

    def output_norms(self, gram: Tensor) -> Tensor:
        """‖z · W_O‖ of each head and position, [B, T, H], from the Gram matrix [H, e, e] of W_O."""
        z = self.z.float()
        return ((z.transpose(1, 2) @ gram.float()).transpose(1, 2) * z).sum(-1).clamp(min=0).sqrt()

    def high_norm(self, times: float, model: HookedModel) -> Tensor:
        """bool [B, T]: patches whose norm is so many times the median patch's."""
        prefix = model.cfg.n_prefix_tokens
        high = self.residual > times * self.residual[:, prefix:].median(1, keepdim=True).values
        high[:, :prefix] = False
        return high


class _Totals:
    """Sums of one batch, [B, layer, head] each."""

    def __init__(
        self, n: int, layers: int, heads: int, rules: tuple[str, ...], n_tokens: int, device: torch.device
    ) -> None:
        self.rules, self.n_tokens = rules, n_tokens
        names = (*SUMS, *(f"{of}:{rule}" for of in ("rule", "repeat") for rule in rules))
        self.all = torch.zeros(len(names), n, layers, heads, dtype=torch.float64, device=device)
        self.at = {name: place for place, name in enumerate(names)}
        self.sums = dict(zip(names, self.all, strict=True))
        self.activation = {by: torch.zeros(n, layers, heads, device=device) for by in ("weight", "norm")}
        self.max_logit = torch.full((layers, heads), -torch.inf, dtype=torch.float64, device=device)
        self.top: tuple[Tensor, Tensor] | None = None

    def make_room(self, keys_per_query: int) -> None:
        """For the strongest keys of every query: weights and keys, [B, layer, head, T, k]."""
        shape = (*self.sums["distance"].shape, self.n_tokens, min(keys_per_query, self.n_tokens))
        weights = torch.zeros(shape, device=self.max_logit.device)
        self.top = weights, torch.zeros(shape, dtype=torch.int32, device=weights.device)

    def add(
        self,
        layer: int,
        tile: AttentionTile,
        sums: Tensor,
        repeats: _Pairs | None,
        occurred: Tensor | None,
        active: float,
    ) -> None:
        """One tile; sums [n, H, R, rules]; occurred: bool [B, T], queries whose token stands earlier too, of text."""
        rows, first = (
            tile.block.rows,
            1 if tile.block.queries.start == 0 else 0,
        )  # the first position looks at itself alone
        own, inverse = tile.behind(0), 1 / tile.z
        sink = tile.weights[..., 0] * inverse
        over_all = [tile.entropy, own]
        if repeats is not None:  # text: the order of patches is no order of positions
            over_all += tile.distances()
            self.sums["induction"][rows, layer] += repeats.mass_over(tile, INDUCTION_FLOOR)
        moved = (1 - sink - own > active).to(sink.dtype)
        over_later = [tile.behind(1), sink, inverse, moved]
        self._sum("pattern_entropy", rows, layer, torch.stack(over_all))
        self._sum("previous_token", rows, layer, torch.stack(over_later)[..., first:])
        later = sums[:, :, first:].permute(3, 0, 1, 2)  # [rules, n, H, R]
        self._sum(f"rule:{self.rules[0]}", rows, layer, later)
        if occurred is not None:
            again = occurred[rows, tile.block.queries][:, None, first:]
            self._sum(f"repeat:{self.rules[0]}", rows, layer, later * again)
        if self.top is not None:
            values, keys = tile.strongest(self.top[0].shape[-1])
            place = (rows, layer, slice(None), tile.block.queries, slice(0, values.shape[-1]))
            self.top[0][place], self.top[1][place] = values.float(), keys.int()
        if later.shape[-1]:
            here = (tile.off_sink * inverse)[..., first:].amax(-1)
            seen = self.activation["weight"][rows, layer]
            self.activation["weight"][rows, layer] = torch.maximum(seen, here.float())
        self.max_logit[layer] = torch.maximum(self.max_logit[layer], tile.peak.double().amax((0, 2)))

    def _sum(self, first: str, rows: slice, layer: int, values: Tensor) -> None:
        """Add sums over queries of values [names, n, H, R] to those of consecutive names from `first` on."""
        at = self.at[first]
        self.all[at : at + len(values), rows, layer] += values.sum(-1, dtype=torch.float64)

    def norms(self, layer: int, norms: Tensor, residual: Tensor) -> None:
        """Norms of the heads' outputs [B, T, H], and of the residual stream they read [B, T]."""
        if norms.shape[1] > 1:
            self.activation["norm"][:, layer] = norms[:, 1:].amax(1)
            self.sums["output_ratio"][:, layer] = (norms / residual.unsqueeze(-1)).double()[:, 1:].sum(1)

    def found(self, tokens: Tensor | None) -> HeadSums:
        n = len(self.sums["distance"])
        repeats = np.zeros(n, dtype=np.int64) if tokens is None else _repeats(tokens).cpu().numpy()
        return HeadSums(
            {name: values.cpu().numpy() for name, values in self.sums.items()},
            np.full(n, self.n_tokens),
            repeats,
            {by: values.cpu().numpy() for by, values in self.activation.items()},
            self.max_logit.cpu().numpy(),
            self.rules,
        )


@dataclass(frozen=True)
class _Pairs:
    """Some pairs of query and key in a block: sequence, query row and key column, int64 [P] each."""

    sequence: Tensor
    query: Tensor
    key: Tensor

    def mass_over(self, tile: AttentionTile, floor: float) -> Tensor:
        """Σ of the weights on these pairs that reach the floor, [n, H]."""
        weights = tile.weights[self.sequence, :, self.query, self.key] / tile.z[self.sequence, :, self.query]  # [P, H]
        found = weights.new_zeros(tile.weights.shape[:2])
        return found.index_add_(0, self.sequence, torch.where(weights < floor, 0, weights))


def _after_copies(tokens: Tensor, block: Block) -> _Pairs:
    """Pairs whose key stands right after an earlier copy of the query's token."""
    own, there = tokens[block.rows, block.queries], tokens[block.rows, block.keys]
    equal = own.unsqueeze(-1) == there[:, None, :-1]
    equal.tril_(block.queries.start - 1)  # key j + 1 at column j: copies stand strictly before the query
    sequence, query, key = equal.nonzero(as_tuple=True)
    return _Pairs(sequence, query, key + 1)


def _repeats(tokens: Tensor) -> Tensor:
    """How many tokens of each row occurred before in it, [B]."""
    ordered = tokens.sort(1).values
    return (ordered[:, 1:] == ordered[:, :-1]).sum(1)
