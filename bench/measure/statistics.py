"""Numbers out of samples: percentiles, jitter, and ratios with bootstrap confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = (50, 90, 99)
RESAMPLES = 2000
CONFIDENCE = 0.95


def distribution(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p90, p99, max, mean and jitter of at least one value.

    Percentiles are interpolated linearly. Jitter is the standard deviation of the values.
    """
    array = np.asarray(values, dtype=np.float64)
    found = {f"p{q}": float(np.percentile(array, q)) for q in PERCENTILES}
    return found | {
        "max": float(array.max()),
        "mean": float(array.mean()),
        "jitter": float(array.std()),
    }


@dataclass(frozen=True)
class Ratio:
    """How many times larger the second of two samples' medians is, with its interval."""

    value: float
    low: float
    high: float


def median_ratio(before: Sequence[float], after: Sequence[float], seed: int = 0) -> Ratio:
    """Return ``median(after) / median(before)`` with its 95 % percentile-bootstrap interval.

    The interval speaks of the samples' own spread: what differs from run to run (clocks,
    temperature) is not in it.

    Args:
        before, after: at least one positive value each.
    """
    rng = np.random.default_rng(seed)
    ratios = _resampled_medians(after, rng) / _resampled_medians(before, rng)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Ratio(float(np.median(after) / np.median(before)), float(low), float(high))


def _resampled_medians(values: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return np.median(array[rng.integers(0, len(array), (RESAMPLES, len(array)))], axis=1)
