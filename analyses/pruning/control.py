"""Orders of dropping held against random sets: the table drop_control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from attlas.analyses.common.columns import TARGET, upper
from attlas.analyses.common.losses import Losses
from attlas.data.schema import TableSchema, column
from attlas.data.stats import bootstrap_mean

_NATS = "nats"
DROP_CONTROL = TableSchema(
    "drop_control",
    "one order at one count beside distinct random sets of as many modules, on the same sequences or images",
    (
        TARGET,
        column("order", pa.string(), "", "ranked, iterative, last or reversed"),
        column("n_dropped", pa.int16(), "modules", "modules dropped"),
        column("delta", pa.float64(), _NATS, "Δ loss of the order on these sequences or images"),
        column("random_median", pa.float64(), _NATS, "median Δ loss of the random sets"),
        column("random_min", pa.float64(), _NATS, "their smallest"),
        column("random_max", pa.float64(), _NATS, "their largest"),
        column("n_draws", pa.int32(), "sets", "distinct random sets measured, none of them the ranking's"),
        column("n_possible", pa.int64(), "sets", "how many such sets there are; n_draws where all were taken"),
        column("n_cheaper", pa.int32(), "sets", "random sets that cost less than the order"),
        column(
            "excess", pa.float64(), _NATS, "loss of the middle random set (mean of the middle two) less the order's"
        ),
        column("low", pa.float64(), _NATS, "95 % interval of excess over sequences or images, paired; null below 8"),
        upper(_NATS),
        column("n_sequences", pa.int64(), "", "sequences or images compared"),
    ),
    only="where random sets were drawn beside an order",
)


def control_row(
    target: str, order: str, n_dropped: int, measured: Losses, draws: Sequence[Losses], dense: Losses, possible: int
) -> dict[str, Any]:
    """A row of the table drop_control.

    Args:
        measured: of the order.
        draws: of the random sets, on the first sequences or images; the others are cut to these.
        possible: distinct sets that there are to draw from.
    """
    n = len(draws[0].loss)
    base, mine = dense.loss[:n], measured.loss[:n]
    losses = np.stack([draw.loss for draw in draws])
    deltas = losses.mean(1) - base.mean()
    ordered = np.argsort(deltas, kind="stable")
    middle = losses[ordered[(len(draws) - 1) // 2 : len(draws) // 2 + 1]].mean(0)
    excess, low, high = (float(x) for x in bootstrap_mean(middle - mine))
    delta = float((mine - base).mean())
    return {
        "target": target,
        "order": order,
        "n_dropped": n_dropped,
        "delta": delta,
        "random_median": float(np.median(deltas)),
        "random_min": float(deltas.min()),
        "random_max": float(deltas.max()),
        "n_draws": len(draws),
        "n_possible": possible,
        "n_cheaper": int((deltas < delta).sum()),
        "excess": excess,
        "low": low if np.isfinite(low) else None,
        "high": high if np.isfinite(high) else None,
        "n_sequences": n,
    }
