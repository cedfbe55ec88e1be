"""Reconstruction errors and gradients of active pairs, without a matrix of rows × features.

`embedding_bag` sums weighted rows of a matrix, and the gradient of its weights is the product of a bag's gradient with each
of its rows: torch does both without copying the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as nnf
from torch import Tensor

from attlas.kernels.cpu.choose import Pairs
from attlas.kernels.cpu.crew import row_tiles, share
from attlas.kernels.sparse_decode import FeatureOrder

# (gradient of bags, matrix, indices, offsets, bag of each index, mode 0: sum) → gradient of each index's weight
_weight_gradient = torch.ops.aten._embedding_bag_per_sample_weights_backward


@dataclass(frozen=True)
class Residuals:
    """Of L = mean_g mean_n ‖target − x̂_g‖², where x̂_g is decoded from the features below widths[g].

    Attributes:
        grads: [N·G, D], entry n·G + g is Σ of dL/dx̂_h[n] over h ≥ g: what a pair of group g gets.
        bags: int64 [P], the entry of each pair.
        d_values: [P].
        errors: [G], mean_n ‖target − x̂_g‖².
        last: [N, D], x̂ − target of all features.
    """

    grads: Tensor
    bags: Tensor
    d_values: Tensor
    errors: Tensor
    last: Tensor


def residuals(pairs: Pairs, W_dec: Tensor, target_ND: Tensor, widths: Sequence[int]) -> Residuals:
    """For prefixes of several widths, each row's pairs must be in order of their features."""
    (N, D), G = target_ND.shape, len(widths)
    work_of = 64.0 * (pairs.values.numel() + N * G) * D  # a pair is slower than one of a product's multiplications
    edges = torch.tensor(widths)
    grads, last = target_ND.new_empty(N, G, D), torch.empty_like(target_ND)
    bags, d_values = torch.empty_like(pairs.rows), torch.empty_like(pairs.values)
    tiles = row_tiles(N, work_of / max(1, N))
    errors = target_ND.new_zeros(len(tiles), G)
    bounds = pairs.starts[[*(tile.start for tile in tiles), N]].tolist()

    def work(at: int) -> None:
        tile, inside = tiles[at], slice(*bounds[at : at + 2])
        n, features, values = tile.stop - tile.start, pairs.features[inside], pairs.values[inside]
        if G == 1:
            bag, offsets = pairs.rows[inside], pairs.starts[tile.start : tile.stop + 1] - inside.start
        else:
            bag = pairs.rows[inside] * G + torch.bucketize(features, edges, right=True)
            offsets = torch.searchsorted(bag, torch.arange(tile.start * G, tile.stop * G + 1))
        bags[inside] = bag
        decoded = _bag_sums(features, W_dec, offsets, values).view(n, G, D)
        error = decoded.cumsum_(1) if G > 1 else decoded
        error -= target_ND[tile].unsqueeze(1)
        errors[at], last[tile] = error.square().sum((0, 2)), error[:, -1]
        error *= 2 / (N * G)
        grads[tile] = error.flip(1).cumsum_(1).flip(1) if G > 1 else error
        d_values[inside] = _weight_gradient(
            grads[tile].view(n * G, D), W_dec, features, offsets[:-1], bag - tile.start * G, 0
        )

    share(range(len(tiles)), work, work_of)
    return Residuals(grads.view(N * G, D), bags, d_values, errors.sum(0) / N, last)


class FeatureSums:
    """For each feature, Σ over its pairs of weight·source[row], any range of features at a time.

    Args:
        order: the pairs by feature.
        source: [M, D]; rows: int64 [P], the row of source that each pair takes; weights: [P].
        extra: (features [E] ascending, [E, D]), added.
    """

    def __init__(
        self,
        order: FeatureOrder,
        source: Tensor,
        rows: Tensor,
        weights: Tensor,
        extra: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.order, self.source, self.extra = order, source.contiguous(), extra
        self._rows = rows.index_select(0, order.order)
        self._weights = weights.index_select(0, order.order)

    @property
    def active_F(self) -> Tensor:
        """bool [F]: features with a pair, or with more."""
        active = self.order.counts > 0
        if self.extra is not None:
            active[self.extra[0]] = True
        return active

    def at(self, places: slice, features: Tensor | None = None) -> Tensor:
        """[places, D]: of these features, or of these places among `features` [M], ascending, with all the active ones."""
        offsets = self.order.offsets
        if features is not None:
            offsets = torch.cat([offsets[features], offsets[-1:]])
        offsets = offsets[places.start : places.stop + 1]
        low, high = int(offsets[0]), int(offsets[-1])
        sums = _bag_sums(self._rows[low:high], self.source, offsets - low, self._weights[low:high])
        if self.extra is not None:
            at, more = self.extra
            at = at if features is None else torch.searchsorted(features, at)
            low, high = torch.searchsorted(at, torch.tensor([places.start, places.stop])).tolist()
            sums.index_add_(0, at[low:high] - places.start, more[low:high])
        return sums


@dataclass(frozen=True)
class DenseSums:
    """A gradient that is there already, [F, D]."""

    gradient: Tensor

    @property
    def active_F(self) -> Tensor:
        return torch.ones(self.gradient.shape[0], dtype=torch.bool)

    def at(self, places: slice, features: Tensor | None = None) -> Tensor:
        return self.gradient[places if features is None else features[places]].clone(
            memory_format=torch.contiguous_format
        )


def all_sums(sums: FeatureSums, n_features: int, tile: int) -> Tensor:
    """[F, D], its tiles shared."""
    out = sums.source.new_empty(n_features, sums.source.shape[1])

    def work(places: slice) -> None:
        out[places] = sums.at(places)

    starts = [*range(0, n_features, tile), n_features]
    share((slice(*pair) for pair in pairwise(starts)), work, 64 * sums.order.order.numel() * out.shape[1])
    return out


def _bag_sums(indices: Tensor, matrix: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Σ of weighted rows for each bag [bags, D]; `offsets` ends with the end."""
    if indices.numel() == 0:
        return matrix.new_zeros(offsets.numel() - 1, matrix.shape[1])
    return nnf.embedding_bag(indices, matrix, offsets, per_sample_weights=weights, mode="sum", include_last_offset=True)
