"""Which features fire on which rows, as pairs, tile by tile of rows; pre-activations exist for one tile a thread.

Three rules: the k largest of each row (TopK), the N·k largest of a batch (BatchTopK), all above a limit (JumpReLU).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attlas.kernels.cpu.crew import MOST_ROWS, row_tiles, share
from attlas.kernels.topk_torch import BLOCK, pre_activations, select_torch

TILE_ELEMENTS = 1 << 22
"""The most pre-activations of a tile."""
SAMPLE_ROWS = 64


@dataclass(frozen=True)
class Pairs:
    """(row, feature) pairs in order of row.

    Attributes:
        rows, features: int64 [P].
        values: [P].
        n_rows: N.
    """

    rows: Tensor
    features: Tensor
    values: Tensor
    n_rows: int

    @cached_property
    def starts(self) -> Tensor:
        """int64 [N + 1]: where each row's pairs begin, and the end."""
        counts = torch.bincount(self.rows, minlength=self.n_rows)
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def where(self, keep: Tensor) -> Pairs:
        """Those that a bool [P] keeps."""
        return Pairs(self.rows[keep], self.features[keep], self.values[keep], self.n_rows)


def select_tiles(x_ND: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`select_torch`, its tiles of rows shared among threads."""
    N, F = x_ND.shape[0], W_enc.shape[1]
    values = x_ND.new_empty(N, k)
    indices = torch.empty(N, k, dtype=torch.int64)

    def work(tile: slice) -> None:
        values[tile], indices[tile] = select_torch(x_ND[tile], W_enc, b_enc, k)

    share(row_tiles(N, F * x_ND.shape[1]), work, N * F * x_ND.shape[1])
    return values, indices


def top_of_rows(x_ND: Tensor, encoder_FD: Tensor, b_enc: Tensor, k: int) -> Pairs:
    """The k largest pre-activations of each row, those below 0 with the value 0."""
    N, F = x_ND.shape[0], encoder_FD.shape[0]
    if k >= F:  # all of them
        values = torch.addmm(b_enc, x_ND, encoder_FD.t())
        indices = torch.arange(F).repeat(N, 1)
    else:
        values, indices = select_tiles(x_ND, encoder_FD.t(), b_enc, k)
    rows = torch.arange(N).repeat_interleave(values.shape[1])
    return Pairs(rows, indices.reshape(-1), values.relu_().view(-1), N)


def top_of_batch(x_ND: Tensor, encoder_FD: Tensor, b_enc: Tensor, k: int, guess: float) -> Pairs:
    """The N·k largest positive pre-activations of all rows, ties to the lower row, then feature.

    Only entries from `guess` on are looked at; where these are too few, the call goes through the batch again, from a
    bound that cannot fail: the N·k-th largest of the maxima of blocks of 64 features.
    """
    budget = x_ND.shape[0] * k
    guess = guess if guess > 0 else _from_sample(x_ND, encoder_FD, b_enc, k)
    pairs, maxima = from_limit(x_ND, encoder_FD, b_enc, x_ND.new_tensor(max(guess, 0.0)))
    if pairs.values.numel() < budget and guess > 0:
        sure = 0.0
        if maxima is not None and maxima.numel() >= budget:
            sure = max(0.0, float(maxima.view(-1).topk(budget, sorted=False).values.min()))
        pairs, _ = from_limit(x_ND, encoder_FD, b_enc, x_ND.new_tensor(sure))
    pairs = pairs.where(~(pairs.values <= 0))
    if pairs.values.numel() <= budget:
        return pairs
    least = pairs.values.topk(budget, sorted=False).values.min()
    above, equal = ~(pairs.values <= least), pairs.values == least
    room = budget - above.sum()
    return pairs.where(above | (equal & (equal.cumsum(0) <= room)))


def _from_sample(x_ND: Tensor, encoder_FD: Tensor, b_enc: Tensor, k: int) -> float:
    """What about 2k pre-activations a row exceed, from rows that lie evenly in the batch."""
    x = x_ND[:: max(1, x_ND.shape[0] // SAMPLE_ROWS)]
    pre = torch.addmm(b_enc, x, encoder_FD.t()).view(-1)
    return float(pre.topk(min(pre.numel(), 2 * k * x.shape[0]), sorted=False).values.min())


def from_limit(x_ND: Tensor, encoder_FD: Tensor, b_enc: Tensor, limit: Tensor) -> tuple[Pairs, Tensor | None]:
    """All pre-activations at or above a limit (0-dim or [F]; NaN counts as above), and the maxima of blocks of features
    [N, F / 64] where the limit is one number and F divides into blocks."""
    N, (F, D) = x_ND.shape[0], encoder_FD.shape
    tiles = row_tiles(N, F * D, min(MOST_ROWS, max(16, TILE_ELEMENTS // F)))
    found: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = [None] * len(tiles)  # type: ignore[list-item]
    blocks = limit.dim() == 0 and F % BLOCK == 0

    def work(at: int) -> None:
        x = x_ND[tiles[at]]
        pre = x.new_empty(x.shape[0], F)
        maxima = pre_activations(x, encoder_FD.t(), b_enc, pre, blocks=blocks)
        rows, features, values = _at_least(pre, limit) if maxima is None else _in_blocks(pre, maxima, limit)
        found[at] = (rows + tiles[at].start, features, values, maxima)

    share(range(len(tiles)), work, N * F * D)
    rows, features, values = (torch.cat(column) for column in zip(*[tile[:3] for tile in found], strict=True))
    all_maxima = [tile[3] for tile in found if tile[3] is not None]
    return Pairs(rows, features, values, N), torch.cat(all_maxima) if blocks else None


def _at_least(pre: Tensor, limit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, features = torch.nonzero(~(pre < limit), as_tuple=True)
    return rows, features, pre[rows, features]


def _in_blocks(pre: Tensor, maxima: Tensor, limit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`_at_least`, among the blocks whose maximum reaches the limit."""
    rows, blocks = torch.nonzero(~(maxima < limit), as_tuple=True)
    hot = pre.view(-1, BLOCK).index_select(0, rows * maxima.shape[1] + blocks)
    which, places, values = _at_least(hot, limit)
    return rows[which], blocks[which] * BLOCK + places, values
