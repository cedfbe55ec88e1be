"""Do intervals cover what they say? Simulated populations of known mean, and SciPy."""

from __future__ import annotations

import numpy as np
import pytest

from attlas.data.stats import (
    MIN_UNITS,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_spearman,
    count_mean,
    pearson,
    reliability,
    spearman,
    student_mean,
    without_noise,
)

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


@pytest.mark.parametrize("n", [8, 16, 32])
@pytest.mark.parametrize("ratio", ["explained variance", "cross-entropy recovered"])
def test_what_is_said_of_autoencoders_covers(ratio: str, n: int) -> None:
    """Sequences whose variance, or whose loss without the layer, differ; the error goes with it and has its own spread."""
    rng = np.random.default_rng(9)
    if ratio == "explained variance":
        below = rng.gamma(20, 1, size=(n, REPEATS))
        above = below - 0.25 * below * rng.gamma(25, 1 / 25, size=below.shape)
        truth = 0.75
    else:  # loss with 0 in place of the layer less the clean one, skewed; what the reconstruction leaves, in part negative
        below = rng.gamma(4, 0.25, size=(n, REPEATS))
        above = below - rng.normal(0.05, 0.05, size=below.shape) * (1 + below)
        truth = 1 - 0.05 * 2
    assert 0.925 <= _covered(bootstrap_ratio(above, below), truth) <= 0.985
    weights = np.random.default_rng(2).multinomial(n, np.full(n, 1 / n), size=1000) / n
    percentile = np.percentile((weights @ above) / (weights @ below), [2.5, 97.5], axis=0)
    if n == 8:  # what it replaces
        assert _covered((above.mean(0) / below.mean(0), *percentile), truth) < 0.92


@pytest.mark.parametrize("n", [2, 3, 5])
def test_student_covers_over_a_few_seeds(n: int) -> None:
    values = np.random.default_rng(10).normal(0.8, 0.01, size=(n, 20 * REPEATS))
    assert 0.945 <= _covered(student_mean(values), 0.8) <= 0.955
    mean, low, high = student_mean(values[:, :4])
    from scipy import stats

    expected = stats.t.interval(0.95, n - 1, values[:, :4].mean(0), stats.sem(values[:, :4]))
    np.testing.assert_allclose((low, high), expected, rtol=1e-12)
    assert np.isnan(student_mean(values[:1])[1]).all()  # one seed has no spread
    np.testing.assert_allclose(mean, values[:, :4].mean(0))


def test_rank_correlation_is_that_of_scipy_ties_too() -> None:
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, size=(2, 6, 40)).astype(float)
    for got, x, y in zip(spearman(a, b), a, b, strict=True):
        assert got == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert float(pearson(a[0], b[0])) == pytest.approx(pearsonr(a[0], b[0]).statistic, abs=1e-12)
    assert np.isnan(spearman(np.ones(5), np.arange(5)))


def _two_measures(rng: np.random.Generator, rho: float, k: int) -> tuple[np.ndarray, np.ndarray]:
    first = rng.normal(size=k)
    return first, rho * first + np.sqrt(1 - rho**2) * rng.normal(size=k)


def _noisy(rng: np.random.Generator, effects: np.ndarray, noise: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Units of each measure, half of their noise's variance common to both."""
    common, own = rng.normal(size=(n, effects.shape[1])), rng.normal(size=(2, n, effects.shape[1]))
    first, second = effects[:, None] + noise * (common + own) / np.sqrt(2)
    return first, second


@pytest.mark.parametrize("rho", [0, 0.5, 0.9, 0.95])
@pytest.mark.parametrize(("n", "n_columns"), [(16, 12), (144, 12), (8, 72), (32, 72)])
def test_rank_correlation_of_noisy_means_is_covered(rho: float, n: int, n_columns: int) -> None:
    """Columns of fixed effects, units with noise as large, half of it common to both: the ρ of the effects is covered."""
    rng = np.random.default_rng(11)
    held = []
    for _ in range(30):
        effects = np.stack(_two_measures(rng, rho, n_columns))
        truth = float(spearman(*effects))
        for _ in range(3):
            _, low, high = bootstrap_spearman(*_noisy(rng, effects, 1, n), n_samples=150)
            held += [low <= truth <= high] if np.isfinite(low) else []
    assert len(held) > 20  # most of these samples tell the ranking of each measure
    assert np.mean(held) >= 0.88


def test_without_noise_is_nearer_to_the_effects_own_correlation() -> None:
    rng = np.random.default_rng(5)
    effects = np.stack(_two_measures(rng, 0.95, 72))
    truth = float(spearman(*effects))
    samples = [_noisy(rng, effects, 1, 12) for _ in range(40)]
    seen = np.mean([spearman(a.mean(0), b.mean(0)) for a, b in samples])
    assert seen < truth - 0.02
    assert np.mean([without_noise(a, b) for a, b in samples]) == pytest.approx(truth, abs=0.01)
    # Noise common to both measures of unrelated effects looks like agreement; across halves it does not.
    effects = np.stack(_two_measures(rng, 0, 72))
    truth = float(spearman(*effects))
    common = [rng.normal(size=(12, 72)) * 3 for _ in range(60)]
    samples = [(effects[0] + c, effects[1] + c) for c in common]
    assert np.mean([spearman(a.mean(0), b.mean(0)) for a, b in samples]) > truth + 0.3
    assert np.mean([without_noise(a, b) for a, b in samples]) == pytest.approx(truth, abs=0.06)


def test_rank_correlation_has_no_interval_where_the_ranking_is_noise() -> None:
    rng = np.random.default_rng(12)
    noise = rng.normal(size=(2, 40, 12))
    assert reliability(noise[0]) < 0.5
    assert np.isnan(bootstrap_spearman(*noise)[1])
    exact = np.tile(np.arange(12.0), (40, 1))
    assert reliability(exact) == 1
    rho, low, high = bootstrap_spearman(exact, exact)
    assert rho == high == 1
    assert low < 1  # no width of 0
    assert np.isnan(bootstrap_spearman(exact[: MIN_UNITS - 1], exact[: MIN_UNITS - 1])[1])


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
