"""Means over the seeds of a sweep, against SciPy's t interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from attlas.saes.training.over_seeds import SWEEP_SEEDS, over_seeds


def _row(k: int, seed: int, explained: float) -> dict:
    settings = {"hook": "blocks.0.attn.hook_z", "arch": "topk", "k": k, "sparsity": 0.0, "d_sae": 64, "seed": seed}
    return {**settings, "l0": float(k), "explained_variance": explained, "ce_recovered": None, "dead_fraction": 0.0}


def test_seeds_of_one_configuration_are_taken_together() -> None:
    values = np.array([0.71, 0.74, 0.72])
    found = over_seeds([*(_row(8, i, v) for i, v in enumerate(values)), _row(16, 0, 0.9)])
    assert {row["k"] for row in found} == {8}  # one seed has no spread
    assert [row["metric"] for row in found] == ["l0", "explained_variance", "dead_fraction"]
    row = found[1]
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((values.mean(), low, high))
    assert row["n_seeds"] == 3
    assert SWEEP_SEEDS.table(found).num_rows == 3
