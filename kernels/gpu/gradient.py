"""What the update of a matrix is told of its gradient: it is made row by row while rows are updated, and need not exist."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PairSums:
    """For each feature, Σ over its pairs of weight·source[row].

    Attributes:
        order: int64 [P], pairs by feature; offsets: int32 [F + 1], where each feature's pairs begin in it.
        weights: float32 [P].
        source: [N·G, D]; a pair p of a feature of group g takes row (p // slots)·G + g.
        slots: pairs a row of the batch has.
        edges: int32 [G], first feature after each group; None where there is one group.
    """

    order: Tensor
    offsets: Tensor
    weights: Tensor
    source: Tensor
    slots: int
    edges: Tensor | None = None


@dataclass(frozen=True)
class Gradient:
    """Addends of the gradient of a matrix [F, D]; at least one of the first two.

    Attributes:
        pairs: sums over pairs.
        dense: [F, D].
        extra: (slot int32 [F], rows [C, D]): row slot[f] is added to feature f's, none where it is negative.
        pull: [F], times the weight's own row.
    """

    pairs: PairSums | None = None
    dense: Tensor | None = None
    extra: tuple[Tensor, Tensor] | None = None
    pull: Tensor | None = None
