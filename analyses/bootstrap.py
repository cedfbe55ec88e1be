"""Percentile bootstrap (Efron 1979) of means over independent units: sequences or images."""

from __future__ import annotations

import numpy as np


def bootstrap_mean(
    values: np.ndarray, *, n_samples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and interval over the first axis.

    Args:
        values: float [n_units, …]; NaN is not allowed.
        n_samples: resamples with replacement.
        level: coverage of the interval.
        seed: of the resampling; the same units are drawn for every column, so columns can be compared.

    Returns: (mean, low, high), each of shape [...].
    """
    values = np.asarray(values, dtype=np.float64)
    n = values.shape[0]
    flat = values.reshape(n, -1)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_samples) / n
    means = weights @ flat
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    shape = values.shape[1:]
    return flat.mean(0).reshape(shape), low.reshape(shape), high.reshape(shape)
