"""Intervals of figures that are ratios of sums over groups of rows.

Shapes: G groups, S sums kept of each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES, LEVEL = 1000, 0.95
DRAWS_AT_ONCE = 4_000_000


def interval(
    sums_GS: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of `statistic` (sums (..., S) -> (...)) over groups (Efron 1979).

    Each resample draws as many groups as there are, with replacement, and adds up their sums. One group says nothing
    about how groups differ: None. The same seed draws the same groups, whatever the statistic.
    """
    groups = len(sums_GS)
    if groups < 2:
        return None
    random, values = np.random.default_rng(seed), []
    at_once = max(1, DRAWS_AT_ONCE // groups)
    for first in range(0, resamples, at_once):
        n = min(at_once, resamples - first)
        drawn = random.integers(0, groups, (n, groups)) + groups * np.arange(n)[:, None]
        times = np.bincount(drawn.ravel(), minlength=n * groups).reshape(n, groups)
        values.append(statistic(times @ sums_GS))
    low, high = np.quantile(np.concatenate(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
