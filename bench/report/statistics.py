"""Statistics of repetitions: medians, quartiles, bootstrap intervals, speed-ups of pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy

NOISY = 0.10  # of the median: an IQR above it marks the case
CONFIDENCE = 0.95
FEWEST = 6  # values for an interval: with fewer a percentile bootstrap covers far less than it says


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """Returns the median's percentile bootstrap interval (95 %, seeded); NaN below `FEWEST` values."""
    if len(values) < FEWEST:
        return math.nan, math.nan
    found = scipy.stats.bootstrap(
        (np.asarray(values, dtype=float),),
        np.median,
        confidence_level=CONFIDENCE,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns median, IQR, the median's interval and whether IQR / median > `NOISY`; NaN without values."""
    if not values:
        return {"median_s": math.nan, "iqr_s": math.nan, "low_s": math.nan, "high_s": math.nan, "noisy": None}
    lower, median, upper = (float(value) for value in np.percentile(values, (25, 50, 75)))
    low, high = interval_of_median(values)
    noisy = (upper - lower) > NOISY * median
    return {"median_s": median, "iqr_s": upper - lower, "low_s": low, "high_s": high, "noisy": noisy}


def speedup(reference: Sequence[float | None], values: Sequence[float | None]) -> dict[str, float]:
    """Returns the median of reference / value over complete pairs, with its interval."""
    ratios = [a / b for a, b in zip(reference, values, strict=True) if a is not None and b]
    low, high = interval_of_median(ratios)
    median = float(np.median(ratios)) if ratios else math.nan
    return {"speedup": median, "speedup_low": low, "speedup_high": high}


def quotient_of_medians(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Returns median(above) / median(below) and its bootstrap interval, each side drawn separately.

    The interval is NaN if one of them has fewer than `FEWEST` values. All is NaN if one of them has none.
    """
    if not len(above) or not len(below):
        return math.nan, math.nan, math.nan
    value = float(np.median(above) / np.median(below))
    if min(len(above), len(below)) < FEWEST:
        return value, math.nan, math.nan
    found = scipy.stats.bootstrap(
        (np.asarray(above, dtype=float), np.asarray(below, dtype=float)),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        confidence_level=CONFIDENCE,
        n_resamples=9999,
        method="percentile",
        paired=False,
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return value, float(found.low), float(found.high)
