"""Intervals of means over independent units (sequences, images, prompts, heads, seeds), and correlations.

Real values get the bootstrap-t interval (Efron & Tibshirani 1993, chapter 12.5): the percentile interval, its better
known cousin, covers 80 % instead of 95 % at four units and 88 % at eight. Right or wrong answers, and differences of
such, are counts: many of them equal says more about the sample than about the spread, so they get the interval of
Agresti & Coull 1998, and Agresti & Min 2005 for differences. Below MIN_UNITS no interval is given (NaN).
"""

from __future__ import annotations

import numpy as np

# Measured coverage of the bootstrap-t interval at 8 units: 0.90 (log-normal) to 0.97 (uniform); at 5, 0.87.
MIN_UNITS = 8

# Below, half the units say too little of how far noise pulls ρ; coverage from here on stands in docs/architecture.md.
RELIABLE = 0.8

Interval = tuple[np.ndarray, np.ndarray, np.ndarray]


def bootstrap_mean(values: np.ndarray, *, n_samples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean and bootstrap-t interval over the first axis.

    Args:
        values: float [n_units, …]; NaN is not allowed.
        n_samples: resamples with replacement.
        level: coverage of the interval.
        seed: of the resampling; the same units are drawn for every column, so columns can be compared.

    Returns: (mean, low, high), each of shape [...]. The interval is NaN below MIN_UNITS units, and of width 0 where
    all units are equal.
    """
    n, shape, flat, mean = _by_column(values)
    if n < MIN_UNITS:
        return _without_interval(mean, shape)
    # Around the mean: means of squares would lose the spread of values that are large beside it.
    centred = flat - mean
    weights = _weights(n, n_samples, seed)
    shift = weights @ centred
    spread = np.maximum(weights @ centred**2 - shift**2, 0)
    low, high = _studentised(mean, (centred**2).mean(0), shift, spread, n, level)
    return mean.reshape(shape), low.reshape(shape), high.reshape(shape)


def bootstrap_ratio(
    numerator: np.ndarray, denominator: np.ndarray, *, n_samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Ratio of two means over the same units, with its bootstrap-t interval; the spread is that of the linearised ratio.

    Args:
        numerator, denominator: float [n_units, …] of equal shape.
        n_samples, level, seed: as in bootstrap_mean.

    Returns: (ratio, low, high), each of shape [...]; all NaN where the denominator's mean is 0, the interval NaN below
    MIN_UNITS units.
    """
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    n, shape = numerator.shape[0], numerator.shape[1:]
    above, below = numerator.reshape(n, -1), denominator.reshape(n, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(below.mean(0) == 0, np.nan, above.mean(0) / below.mean(0))
        if n < MIN_UNITS:
            return _without_interval(ratio, shape)
        residual = above - ratio * below  # mean 0 over the units
        weights = _weights(n, n_samples, seed)
        mean_below = weights @ below
        shift = (weights @ residual) / mean_below  # of the resample's ratio against the sample's
        # Residuals of the resample's own ratio: those at hand less shift · denominator.
        square = weights @ residual**2 - 2 * shift * (weights @ (residual * below)) + shift**2 * (weights @ below**2)
        spread = np.maximum(square, 0) / mean_below**2
        low, high = _studentised(ratio, (residual**2).mean(0) / below.mean(0) ** 2, shift, spread, n, level)
    return ratio.reshape(shape), low.reshape(shape), high.reshape(shape)


def _by_column(values: np.ndarray) -> tuple[int, tuple[int, ...], np.ndarray, np.ndarray]:
    """(units, shape of one, values [n_units, columns], their mean)."""
    values = np.asarray(values, dtype=np.float64)
    flat = values.reshape(values.shape[0], -1)
    return values.shape[0], values.shape[1:], flat, flat.mean(0)


def _weights(n: int, n_samples: int, seed: int) -> np.ndarray:
    drawn: np.ndarray = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_samples) / n
    return drawn


def _studentised(
    value: np.ndarray, variance: np.ndarray, shift: np.ndarray, variances: np.ndarray, n: int, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the bootstrap-t interval, from a statistic and its resamples' shifts, with the variance of one unit in each."""
    error, errors = np.sqrt(variance / (n - 1)), np.sqrt(variances / (n - 1))
    # A resample of equal units says nothing of the spread; it counts as beyond every other on its side.
    flat = errors <= 1e-6 * error
    t = np.where(flat, np.copysign(np.inf, shift), shift / np.where(flat, 1, errors))
    tail = (1 - level) / 2
    below, above = np.quantile(t, [tail, 1 - tail], axis=0, method="nearest")
    # Where the quantile itself is such a resample (nearly all units equal), Student's t stands in for it.
    student = student_t(n - 1, level)
    below, above = np.where(np.isfinite(below), below, -student), np.where(np.isfinite(above), above, student)
    return value - above * error, value - below * error


def count_mean(values: np.ndarray, *, differences: bool = False, level: float = 0.95) -> Interval:
    """Mean and interval of right or wrong answers, or of paired differences of such, over the first axis.

    Args:
        values: [n_units, …] of 0 and 1 (bool, or float); with `differences` of −1, 0 and 1.
        differences: the values are one answer minus another of the same unit.
        level: coverage of the interval.

    Returns: (mean, low, high), each of shape [...]: Agresti & Coull's interval, z²/2 successes and failures added, for
    shares; Agresti & Min's, half an observation added to each cell of the paired table, for differences. Both have width
    where all answers are equal. NaN below MIN_UNITS units.
    """
    n, shape, flat, mean = _by_column(values)
    if n < MIN_UNITS:
        return _without_interval(mean, shape)
    z = _normal(level)
    up, down = (flat > 0).sum(0), (flat < 0).sum(0)
    share = (up + z**2 / 2) / (n + z**2)
    half = z * np.sqrt(share * (1 - share) / (n + z**2))
    gain, loss = up + 0.5, down + 0.5
    shift = (gain - loss) / (n + 2)
    wide = z * np.sqrt(gain + loss - (gain - loss) ** 2 / (n + 2)) / (n + 2)
    low, high = (shift - wide, shift + wide) if differences else (share - half, share + half)
    low, high = np.maximum(low, -1 if differences else 0), np.minimum(high, 1)
    return mean.reshape(shape), low.reshape(shape), high.reshape(shape)


def student_mean(values: np.ndarray, *, level: float = 0.95) -> Interval:
    """Mean and Student's t interval over the first axis, for a few values that are near normal: seeds of one training.

    Args:
        values: float [n, …], n from 2 on; one has no interval (NaN).

    Returns: (mean, low, high), each of shape [...].
    """
    n, shape, flat, mean = _by_column(values)
    if n < 2:
        return _without_interval(mean, shape)
    half = student_t(n - 1, level) * flat.std(0, ddof=1) / np.sqrt(n)
    return mean.reshape(shape), (mean - half).reshape(shape), (mean + half).reshape(shape)


def span(low: float, high: float, spec: str = ".3g") -> str:
    """An interval as text, or that there is none."""
    return f"{low:{spec}}–{high:{spec}}" if np.isfinite(low) else f"none below {MIN_UNITS} units"


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation ρ over the last axis, ties by mean rank.

    Args:
        a, b: float [..., n] of equal shape.

    Returns: float64 [...]; NaN where one side is constant.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(x, axis=-1) for x in (a, b)]
    return pearson(*ranks)


def bootstrap_spearman(
    a: np.ndarray, b: np.ndarray, *, n_samples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Rank correlation over columns of two measures' means, with an interval over the units behind the means.

    Student's t around Fisher's z = artanh ρ, its standard error from the bootstrap. Noise in the means pulls ρ to 0 (or, where
    the units' noise is common to both measures, to that noise's correlation), so the interval reaches from the lower end
    around ρ or ρ without noise (`without_noise`) to the upper end around either *(ours)*: BCa and percentile intervals, and
    the interval around either alone, cover less.

    Args:
        a, b: float [n_units, n_columns], the same units.
        n_samples, level, seed: as in bootstrap_mean.

    Returns: (ρ, low, high). NaN as interval below MIN_UNITS units, and where either measure's own ranking is not known
    to a reliability of RELIABLE: then no resampling knows how far ρ has been pulled to 0.
    """
    n, k = a.shape
    rho = float(spearman(a.mean(0), b.mean(0)))
    if n < MIN_UNITS or not np.isfinite(rho) or min(reliability(a, seed=seed), reliability(b, seed=seed)) < RELIABLE:
        return rho, float("nan"), float("nan")
    weights = _weights(n, n_samples, seed)
    drawn = spearman(weights @ a, weights @ b)
    largest = 1 - 6 / (k * (k**2 - 1))  # half a swap of neighbours away from 1
    around = np.arctanh(np.clip([rho, without_noise(a, b, seed=seed)], -largest, largest))
    spread = np.arctanh(np.clip(drawn[np.isfinite(drawn)], -largest, largest)).std()
    half = student_t(n - 1, level) * spread * np.sqrt(n / (n - 1))
    low, high = np.tanh(around.min() - half), np.tanh(around.max() + half)
    return rho, float(min(low, rho)), float(max(high, rho))


def without_noise(a: np.ndarray, b: np.ndarray, *, n_halvings: int = 20, seed: int = 0) -> float:
    """Rank correlation over columns that the means of endlessly many units would have: Spearman's correction (1904).

    The mean of one half of the units for one measure, of the other half for the other, so that noise common to both cancels;
    over the root of the two measures' own correlations between halves. On the scale of normal scores, r = 2 sin(π ρ / 6).

    Args:
        a, b: float [n_units, n_columns], the same units.
        n_halvings: halvings to average.
    """
    (a1, a2), (b1, b2) = _halves(a, n_halvings, seed), _halves(b, n_halvings, seed)
    pairs = (((a1, b2), (a2, b1)), ((a1, a2),), ((b1, b2),))
    across, own_a, own_b = (
        2 * np.sin(np.pi / 6 * np.mean([spearman(x, y).mean() for x, y in alike])) for alike in pairs
    )
    known = max(own_a, 1e-9) * max(own_b, 1e-9)
    return float(6 / np.pi * np.arcsin(np.clip(across / np.sqrt(known), -1, 1) / 2))


def _halves(values: np.ndarray, n_halvings: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of one and of the other half of the units, [n_halvings, n_columns] both."""
    n = len(values)
    chosen = (np.random.default_rng(seed).random((n_halvings, n)).argsort(1) < n // 2).astype(np.float64)
    return chosen @ values / (n // 2), (1 - chosen) @ values / (n - n // 2)


def reliability(values: np.ndarray, *, n_halvings: int = 20, seed: int = 0) -> float:
    """How well the ranking of the columns' means is known: ρ between random halves of the units, stepped up to all.

    Args:
        values: float [n_units, n_columns].
        n_halvings: halvings to average.

    Returns: 2ρ / (1 + ρ) (Spearman 1910, Brown 1910); 1 where no unit changes the ranking.
    """
    rho = float(spearman(*_halves(values, n_halvings, seed)).mean())
    return 2 * rho / (1 + rho)


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the last axis, float64 [...]; NaN where one side is constant."""
    da, db = (np.asarray(x, np.float64) - np.mean(x, axis=-1, keepdims=True, dtype=np.float64) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        r: np.ndarray = (da * db).sum(-1) / np.sqrt((da**2).sum(-1) * (db**2).sum(-1))
    return r


def _without_interval(mean: np.ndarray, shape: tuple[int, ...]) -> Interval:
    nothing = np.full(shape, np.nan)
    return mean.reshape(shape), nothing, nothing.copy()


def student_t(degrees: int, level: float = 0.95) -> float:
    """Quantile of Student's t that holds `level` between itself and its negative."""
    from scipy import stats

    return float(stats.t.ppf((1 + level) / 2, degrees))


def _normal(level: float) -> float:
    from scipy import stats

    return float(stats.norm.ppf((1 + level) / 2))
