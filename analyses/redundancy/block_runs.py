"""Runs of blocks by angular distance (Gromov et al. 2024, arXiv 2403.17887): how little n blocks together turn a token.

d(l, n) = arccos(cos(x_l, x_{l+n}))/π at the last token (the class token of a vision model), x_l the residual stream in
front of block l, averaged over sequences. The best run of n blocks starts where d is least, and dropping just that run is
the paper's way to prune depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from attlas.analyses.common.columns import interval
from attlas.data.schema import TableSchema, column
from attlas.data.stats import bootstrap_mean
from attlas.interp.drop import Unit

BLOCK_RUNS = TableSchema(
    "block_runs",
    "one run of blocks: a start and a length",
    (
        column("length", pa.int16(), "blocks", "blocks in the run"),
        column("start", pa.int16(), "", "its first block, from 0"),
        column("distance", pa.float64(), "half turns", "mean arccos(cos)/π of the last token before and after the run"),
        *interval("half turns", "sequences"),
        column("best", pa.bool_(), "", "the least distance of its length"),
    ),
)


def angles(residuals: list[Tensor]) -> np.ndarray:
    """Angular distance of every pair of depths, float64 [B, L+1, L+1].

    Args:
        residuals: one token's residual stream [B, d_model] in front of each block, and after the last.
    """
    x = torch.nn.functional.normalize(torch.stack(residuals, dim=1).double(), dim=-1)
    cosines = (x @ x.transpose(1, 2)).clamp(-1, 1)
    found: np.ndarray = (cosines.arccos() / np.pi).cpu().numpy()
    return found


@dataclass(frozen=True)
class BlockRuns:
    """Distances with intervals, float64 [depth, depth]."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, per_sequence: np.ndarray, seed: int, n_bootstrap: int) -> BlockRuns:
        return cls(*bootstrap_mean(per_sequence, seed=seed, n_samples=n_bootstrap))

    def best(self, length: int) -> int:
        """Where the run of this length that turns the stream least begins."""
        return int(np.argmin(np.diagonal(self.mean, length)))

    def table(self) -> pa.Table:
        """Table block_runs, every run short of the whole model."""
        n_layers = len(self.mean) - 1
        rows: list[dict[str, Any]] = []
        for length in range(1, n_layers):
            best = self.best(length)
            for start in range(n_layers - length + 1):
                at = (start, start + length)
                row = {"length": length, "start": start, "distance": self.mean[at], "best": start == best}
                rows.append({**row, "low": self.low[at], "high": self.high[at]})
        return BLOCK_RUNS.table(rows)


class AngularOrder(Sequence[Unit]):
    """What to drop when n blocks go, for every n: `order[:n]` is the run of n blocks that turns the stream least.

    It stands where a ranking stands, but is none: the run of n + 1 need not hold that of n, so single places have no unit.
    """

    def __init__(self, runs: BlockRuns) -> None:
        self.runs = runs

    def __len__(self) -> int:
        return len(self.runs.mean) - 1

    @overload
    def __getitem__(self, at: int) -> Unit: ...

    @overload
    def __getitem__(self, at: slice) -> list[Unit]: ...

    def __getitem__(self, at: int | slice) -> Unit | list[Unit]:
        if not isinstance(at, slice) or at.start or at.step not in (None, 1):
            raise TypeError("runs of blocks have no place by place order; ask for order[:n]")
        n = len(range(len(self))[at])
        return [("block", layer) for layer in range(self.runs.best(n), self.runs.best(n) + n)] if n else []
