"""Statistics against numpy and closed forms."""

import numpy as np
import pytest

from sdrt.bench.measure.statistics import distribution, median_ratio


def test_distribution_is_numpys() -> None:
    values = np.random.default_rng(1).normal(50, 3, 501)
    found = distribution(values.tolist())
    for name, q in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert found[name] == pytest.approx(np.percentile(values, q))
    assert found["max"] == values.max()
    assert found["jitter"] == pytest.approx(np.sqrt(np.mean((values - values.mean()) ** 2)))


def test_distribution_of_an_alternating_signal() -> None:
    found = distribution([9.0, 11.0] * 10)
    assert (found["mean"], found["jitter"], found["p50"]) == (10.0, 1.0, 10.0)


def test_ratio_of_constants_is_exact() -> None:
    ratio = median_ratio([4.0] * 5, [5.0] * 7)
    assert (ratio.low, ratio.value, ratio.high) == (1.25, 1.25, 1.25)


def test_interval_covers_the_truth_at_its_rate() -> None:
    """95 % intervals of equal samples hold 1 in about 95 of 100 draws (binomial: 88 to 100)."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        before, after = rng.normal(100, 5, (2, 80))
        ratio = median_ratio(before, after)
        covered += ratio.low <= 1 <= ratio.high
    assert 88 <= covered <= 100


def test_interval_width_is_that_of_the_normal_approximation() -> None:
    """The median of n normal values has the standard error sigma sqrt(pi / 2n)."""
    rng = np.random.default_rng(3)
    before, after = rng.normal(100, 5, (2, 400))
    ratio = median_ratio(before, after)
    error = 0.05 * np.sqrt(np.pi / 800) * np.sqrt(2)
    assert ratio.high - ratio.low == pytest.approx(2 * 1.96 * error, rel=0.35)


def test_same_seed_same_interval() -> None:
    before, after = np.random.default_rng(4).normal(100, 5, (2, 50))
    assert median_ratio(before, after) == median_ratio(before, after)
