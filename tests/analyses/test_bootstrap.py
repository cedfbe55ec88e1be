"""Do intervals cover what they say? Simulated populations of known mean, and SciPy."""

from __future__ import annotations

import numpy as np
import pytest

from attlas.analyses.bootstrap import MIN_UNITS, bootstrap_mean, bootstrap_ratio, count_mean

REPEATS = 1500


def _covered(interval: tuple[np.ndarray, np.ndarray, np.ndarray], truth: float) -> float:
    _, low, high = interval
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize("n", [8, 16, 32])
@pytest.mark.parametrize(
    ("name", "truth", "least"), [("normal", 0, 0.925), ("uniform", 0.5, 0.925), ("exponential", 1, 0.92)]
)
def test_bootstrap_covers_the_mean_of_small_samples(name: str, truth: float, least: float, n: int) -> None:
    draw = getattr(np.random.default_rng(1), name)
    values = draw(size=(n, REPEATS))
    assert least <= _covered(bootstrap_mean(values), truth) <= 0.985
    percentile = np.percentile(
        np.random.default_rng(2).multinomial(n, np.full(n, 1 / n), size=1000) / n @ values, [2.5, 97.5], axis=0
    )
    if n == 8:  # what it replaces
        assert _covered((values.mean(0), *percentile), truth) < 0.91


@pytest.mark.parametrize("n", [8, 16, 32])
def test_ratio_covers_what_the_percentile_interval_misses(n: int) -> None:
    """As in "share of a loss recovered": noisy numerator and denominator that go together."""
    rng = np.random.default_rng(7)
    below = rng.gamma(3, 1, size=(n, REPEATS))
    above = 0.8 * below + rng.normal(0, 0.5, size=below.shape)
    assert 0.92 <= _covered(bootstrap_ratio(above, below), 0.8) <= 0.985


def test_ratio_by_a_constant_is_the_mean() -> None:
    values = np.random.default_rng(8).normal(size=(20, 4))
    for got, want in zip(bootstrap_ratio(values, np.full_like(values, 2.0)), bootstrap_mean(values / 2), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9)
    assert np.isnan(bootstrap_ratio(values, np.zeros_like(values))[0]).all()


@pytest.mark.parametrize("n", [8, 16, 40])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.95])
def test_counts_cover_shares(n: int, share: float) -> None:
    right = np.random.default_rng(3).random((n, REPEATS)) < share
    assert _covered(count_mean(right), share) >= 0.93


@pytest.mark.parametrize("n", [8, 16, 40])
@pytest.mark.parametrize(("up", "down"), [(0.02, 0.02), (0.1, 0.02), (0.3, 0.2), (0.0, 0.01)])
def test_counts_cover_paired_differences(n: int, up: float, down: float) -> None:
    at = np.random.default_rng(4).random((n, REPEATS))
    change = (at < up).astype(float) - (at > 1 - down)
    assert _covered(count_mean(change, differences=True), up - down) >= 0.93


def test_no_change_on_forty_images_is_not_known_exactly() -> None:
    mean, low, high = count_mean(np.zeros((40, 2)), differences=True)
    np.testing.assert_array_equal(mean, 0)
    assert (low < -0.03).all()
    assert (high > 0.03).all()
    assert count_mean(np.ones(40))[1] < 0.95  # forty of forty right


def test_too_few_units_have_no_interval() -> None:
    for interval in (bootstrap_mean, count_mean, lambda x: bootstrap_ratio(x, x)):
        mean, low, high = interval(np.ones((MIN_UNITS - 1, 3)))
        np.testing.assert_array_equal(mean, 1)
        assert np.isnan(low).all()
        assert np.isnan(high).all()
        assert np.isfinite(interval(np.ones((MIN_UNITS, 3)))[1]).all()


def test_interval_is_equivariant_and_keeps_shape() -> None:
    values = np.random.default_rng(5).normal(size=(12, 2, 3))
    mean, low, high = bootstrap_mean(values)
    assert mean.shape == low.shape == high.shape == (2, 3)
    assert (low < mean).all()
    assert (mean < high).all()
    far = bootstrap_mean(1e6 + values)  # a spread small beside the mean
    np.testing.assert_allclose(far[1] - 1e6, low, atol=1e-6)
    np.testing.assert_allclose(bootstrap_mean(3 * values)[2], 3 * high, rtol=1e-10)


def test_nearly_constant_columns_get_a_finite_interval() -> None:
    values = np.zeros((16, 2))
    values[0, 0] = 1.0
    mean, low, high = bootstrap_mean(values)
    assert np.isfinite(low).all()
    assert np.isfinite(high).all()
    assert high[0] > mean[0] > low[0]
    assert low[1] == high[1] == 0  # nothing varies: real values, so width 0


def test_widths_are_students_on_normal_data() -> None:
    """At 64 units of a normal population the two can hardly differ."""
    from scipy import stats

    values = np.random.default_rng(6).normal(size=(64, 200))
    _, low, high = bootstrap_mean(values, n_samples=4000)
    half = stats.t.ppf(0.975, 63) * values.std(0, ddof=1) / 8
    np.testing.assert_allclose(((high - low) / 2 / half).mean(), 1, atol=0.03)
