"""What a sweep measured, over the seeds of one configuration: the table sweep_seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from attlas.data.schema import TableSchema, column
from attlas.data.stats import student_mean

METRICS = ("l0", "explained_variance", "ce_recovered", "dead_fraction")
SETTING_COLUMNS = (
    column("hook", pa.string(), "", "hook it was trained on"),
    column("arch", pa.string(), "", "architecture"),
    column("k", pa.int32(), "features", "k of the configuration (TopK families)"),
    column("sparsity", pa.float64(), "", "λ of the configuration (standard, gated, jumprelu)"),
    column("d_sae", pa.int32(), "features", "width"),
)
SETTINGS = tuple(field.name for field in SETTING_COLUMNS)
SWEEP_SEEDS = TableSchema(
    "sweep_seeds",
    "one metric of one configuration of a sweep, over its seeds",
    (
        *SETTING_COLUMNS,
        column("metric", pa.string(), "", "l0, explained_variance, ce_recovered or dead_fraction, as in pareto"),
        column("mean", pa.float64(), "as the metric", "over seeds"),
        column("low", pa.float64(), "as the metric", "95 % interval over seeds (Student's t), lower end"),
        column("high", pa.float64(), "as the metric", "its upper end"),
        column("n_seeds", pa.int32(), "seeds", "seeds behind it"),
    ),
    only="where the grid has several seeds",
)


def over_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table sweep_seeds, from those of the table pareto; configurations with one seed are left out.

    The interval is of the seeds' spread on the same held-out data: how another training would come out, not other text.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in SETTINGS), []).append(row)
    found = []
    for key, members in groups.items():
        for metric in METRICS:
            values = [row[metric] for row in members if row[metric] is not None]
            if len(values) > 1:
                mean, low, high = (float(x) for x in student_mean(np.array(values)))
                settings = dict(zip(SETTINGS, key, strict=True))
                found.append(
                    {**settings, "metric": metric, "mean": mean, "low": low, "high": high, "n_seeds": len(values)}
                )
    return found
