"""Where directions in hook_z fire and from where: scores that a feature and a random direction are measured by alike.

A direction w ∈ R^(H·e) fires, like a feature, on the tokens where x·w stands highest above the *bar*, the least activation
that is active on the token (TopK: the k-th largest of the dictionary; elsewhere 0). Its examples are the strongest active
token of each of the `n_top` sequences where it is strongest. Scores are of its direct feature attribution there, positive
parts, first position left out, averaged over examples:

- induction: share on the token after an earlier occurrence of the current token;
- local: share on the last 8 positions, the current one among them;
- long_range: share on positions 32 or more back;
- source_entropy: nats, of the token at the source, over the activation (sources of 1 % or more of an example's).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attlas.analyses.features.stream import FeatureStream
from attlas.data.progress import Track, no_track
from attlas.data.text import TokenDataset
from attlas.interp import HookedModel
from attlas.interp.names import layer_index
from attlas.kernels import feature_dfa
from attlas.saes.base import SAE
from attlas.saes.positions import Positions
from attlas.saes.reading import encoder_columns

SCORES = ("induction", "local", "long_range")
LOCAL_WINDOW = 8
LONG_DISTANCE = 32
MIN_EXAMPLES = 3
# Least share of an example's attribution of a source that counts in the entropy of source tokens.
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Sample:
    """What directions are scored on.

    Attributes:
        tokens: int64 [S, T].
        x: float32 [S, T, D], what the encoder reads (any per-token normalisation done).
        bar: float32 [S, T]; infinite at positions left out.
        stream: the features' own counts and examples on the same tokens.
        text: bool [S, T], False in padding; None of packed rows.
    """

    tokens: Tensor
    x: Tensor
    bar: Tensor
    stream: FeatureStream
    text: Tensor | None = None


@dataclass(frozen=True)
class Examples:
    """n rows: a direction firing at a token.

    Attributes:
        direction, sequence, position: int64 [n]; positions count from the start of the sequence.
        activation: float32 [n], above 0.
    """

    direction: Tensor
    sequence: Tensor
    position: Tensor
    activation: Tensor

    def __len__(self) -> int:
        return len(self.direction)

    def where(self, keep: Tensor) -> Examples:
        """The rows chosen by a mask or by indices."""
        return Examples(self.direction[keep], self.sequence[keep], self.position[keep], self.activation[keep])

    def strongest(self, n: int) -> Examples:
        """The n rows of each direction with the largest activations, in the order they stand in."""
        of = self.direction.numpy()
        order = np.lexsort((-self.activation.numpy(), of))
        rank = np.arange(len(order)) - np.searchsorted(of[order], of[order])
        return self.where(torch.from_numpy(np.sort(order[rank < n])))


@torch.no_grad()
def sample(
    model: HookedModel,
    sae: SAE,
    data: TokenDataset,
    hook: str,
    *,
    n_tokens: int,
    n_top: int,
    batch_size: int,
    positions: Positions,
    track: Track = no_track,
) -> Sample:
    """Read the first `n_tokens` tokens of the data (whole sequences, one at least)."""
    part = data.take(max(1, n_tokens // data.tokens.shape[1]))
    stream = FeatureStream(sae.cfg.d_sae, n_top, 1)
    xs, bars = [], []
    for batch in track(part.minibatches(batch_size), "null: activations"):
        z = sae.flatten_heads(model.capture(batch.inputs, hook)[hook])
        values, indices = sae.encode_sparse(z)
        keep = positions.mask(batch.inputs, text=batch.mask)
        stream.add(values, indices, keep=keep)
        x, bar = reading(sae, z, values)
        xs.append(x)
        bars.append(bar.masked_fill(~keep.cpu(), torch.inf))
    return Sample(part.tokens.cpu(), torch.cat(xs), torch.cat(bars), stream, part.mask)


def reading(sae: SAE, z: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """(what the encoder reads [..., D], the bar [...]) from z [..., D] and the active values [..., k]; float32, CPU."""
    bar = values[..., -1].clamp_min(0) if sae.arch == "topk" else torch.zeros(z.shape[:-1])
    return encoder_input(sae, z).float().cpu(), bar.float().cpu()


def encoder_input(sae: SAE, z: Tensor) -> Tensor:
    """[..., D] as the encoder's weights multiply it, its bias apart."""
    return sae._normalise(z.to(sae.W_enc.dtype))[0]


def encoder_directions(sae: SAE) -> Tensor:
    """[F, D] float32: rows whose product with z, up to a factor of the token, is the part of the pre-activation (gated: of
    the magnitude) that z makes. A layer norm's centring moves from the input to the direction."""
    return encoder_columns(sae)[0].T.float().cpu()


def feature_examples(stream: FeatureStream) -> Examples:
    """The top examples of every feature: `direction` is the feature."""
    top = stream.top
    slot, feature = torch.nonzero((top.sequence >= 0) & (top.value > 0), as_tuple=True)
    at = (slot, feature)
    return Examples(feature, top.sequence[at].long(), top.position[at].long(), top.value[at])


def offsets(margin: Tensor, n_active: Tensor) -> Tensor:
    """[P] what to take from margins [P, N] that `n_active` int64 [P] of each row stay above 0 (fewer with ties)."""
    if not len(n_active):
        return margin.new_zeros(0)
    most = min(int(n_active.max()) + 1, margin.shape[1])
    largest = margin.topk(most, dim=1).values
    return largest.gather(1, n_active.clamp_max(most - 1)[:, None])[:, 0]


def fire(pre: Tensor, bar: Tensor, n_active: Tensor, n_top: int) -> Examples:
    """Examples of directions, each active on as many tokens as is asked.

    Args:
        pre: [P, S, T] x·w of P directions.
        bar: [S, T].
        n_active: int64 [P] tokens.
        n_top: examples of each, one a sequence.
    """
    margin = pre - bar
    offset = offsets(margin.flatten(1), n_active)[:, None, None]
    value = (pre - offset).masked_fill_(margin <= offset, -torch.inf)
    strongest, at = value.max(2)
    best, sequence = strongest.topk(min(n_top, pre.shape[1]), dim=1)
    direction, slot = torch.nonzero(torch.isfinite(best), as_tuple=True)
    rows = sequence[direction, slot]
    return Examples(direction, rows, at[direction, rows], best[direction, slot])


@dataclass
class Scores:
    """Scores of P directions, float64 [P] by name; NaN with fewer than `MIN_EXAMPLES` examples."""

    columns: dict[str, np.ndarray]
    n_examples: np.ndarray

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]


@torch.no_grad()
def score(
    model: HookedModel,
    hook: str,
    tokens: Tensor,
    examples: Examples,
    directions: Tensor,
    *,
    batch_size: int,
    track: Track = no_track,
) -> Scores:
    """Scores of directions from their examples, reading again the sequences that hold one.

    Args:
        tokens: int64 [S, T].
        directions: [P, D].
    """
    n_directions = len(directions)
    sums = {name: np.zeros(n_directions) for name in SCORES}
    counted = np.zeros(n_directions)
    sources: list[tuple[np.ndarray, np.ndarray]] = []
    for rows, part in _by_batch(examples, len(tokens), batch_size, track):
        shares, keys, weights = _attributed(model, hook, tokens[rows], rows.start, part, directions[part.direction].T)
        direction = part.direction.numpy()
        seen = np.isfinite(shares["local"])
        for name in SCORES:
            sums[name] += np.bincount(direction[seen], weights=shares[name][seen], minlength=n_directions)
        counted += np.bincount(direction[seen], minlength=n_directions)
        sources.append((keys, weights))
    short = counted < MIN_EXAMPLES
    columns = {name: np.where(short, np.nan, total / np.maximum(counted, 1)) for name, total in sums.items()}
    columns["source_entropy"] = np.where(short, np.nan, _entropies(sources, n_directions))
    return Scores(columns, counted.astype(np.int64))


def _by_batch(examples: Examples, n: int, batch_size: int, track: Track) -> Iterator[tuple[slice, Examples]]:
    order = examples.sequence.argsort(stable=True)
    ordered = examples.where(order)
    starts = range(0, n, batch_size)
    edges = torch.searchsorted(ordered.sequence, torch.tensor([*starts, n])).tolist()
    for i, start in enumerate(track(starts, "null: attribution", len(starts))):
        if edges[i] < edges[i + 1]:
            yield slice(start, min(n, start + batch_size)), ordered.where(torch.arange(edges[i], edges[i + 1]))


def _attributed(
    model: HookedModel, hook: str, tokens: Tensor, first: int, examples: Examples, vectors: Tensor
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Shares [n] by score (NaN where nothing is positive), and (direction · 2³² + token, weight) of sources."""
    kind = "rot_" if model.cfg.positional == "rotary" else ""
    prefix = hook.removesuffix("hook_z")
    names = [f"{prefix}hook_{kind}q", f"{prefix}hook_{kind}k", f"{prefix}hook_v"]
    cache = model.capture(tokens, names)
    q, k, v = (cache[name].transpose(1, 2).float() for name in names)
    rows = examples.sequence - first
    by_source = feature_dfa(
        q,
        k,
        v,
        vectors.to(q.device).contiguous(),
        torch.arange(len(examples), device=q.device),
        examples.position.to(q.device),
        model.layers[layer_index(hook)].rule,
        sequences=rows.to(q.device),
    ).by_source.cpu()
    mine = tokens.cpu()[rows]
    shares, by_source = source_shares(by_source, mine, examples.position)
    row, source = torch.nonzero(by_source >= _LEAST_SHARE, as_tuple=True)
    keys = (examples.direction[row] << 32) | mine[row, source]
    weights = (by_source[row, source] * examples.activation[row]).double()
    return {name: values.double().numpy() for name, values in shares.items()}, *_merged(keys.numpy(), weights.numpy())


def source_shares(by_source: Tensor, tokens: Tensor, position: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Shares of the positive attribution of n examples.

    Args:
        by_source: [n, T] attribution by source, 0 after the position.
        tokens: int64 [n, T].
        position: int64 [n] destinations.

    Returns: shares [n] by score, NaN where nothing is positive; and of each source, [n, T].
    """
    positive = by_source.clamp_min(0)
    positive[:, 0] = 0
    total = positive.sum(1)
    positive /= total.clamp_min(1e-30)[:, None]
    position = position[:, None]
    at = torch.arange(tokens.shape[1])
    copies = torch.zeros_like(positive, dtype=torch.bool)
    copies[:, 1:] = (tokens[:, :-1] == tokens.gather(1, position)) & (at[:-1] < position)
    shares = {
        "induction": (positive * copies).sum(1),
        "local": (positive * (at > position - LOCAL_WINDOW)).sum(1),
        "long_range": (positive * (at <= position - LONG_DISTANCE)).sum(1),
    }
    return {name: values.masked_fill(total <= 0, torch.nan) for name, values in shares.items()}, positive


def _merged(keys: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unique, inverse = np.unique(keys, return_inverse=True)
    return unique, np.bincount(inverse, weights=weights, minlength=len(unique))


def _entropies(sources: list[tuple[np.ndarray, np.ndarray]], n: int) -> np.ndarray:
    """Entropy of the source token by direction, nats; NaN where there is no source."""
    if not sources:
        return np.full(n, np.nan)
    keys, weights = _merged(*(np.concatenate(column) for column in zip(*sources, strict=True)))
    direction = keys >> 32
    total = np.bincount(direction, weights=weights, minlength=n)
    share = weights / np.maximum(total[direction], 1e-300)
    entropy = np.bincount(direction, weights=-share * np.log(np.maximum(share, 1e-300)), minlength=n)
    return np.where(total > 0, entropy, np.nan)
