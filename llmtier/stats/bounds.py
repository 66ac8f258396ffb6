"""Bounds that hold for a quantile whatever the distribution, and intervals of autocorrelated series.

Reads values, returns bounds; ``None`` where n is too small to have one. ``upper_quantile_bound`` and
``early_stopping_bound`` take the values to be independent; ``series_quantile_bound`` and
``series_interval`` take them in time order and pay for their autocorrelation.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmtier.core.interval import Interval
from llmtier.stats.series import Correlation, correlation

Values = Sequence[float] | NDArray[np.float64]

_TIME_CONFIDENCE = 0.8
_ROUNDING = 1e-9


def min_samples(q: float, confidence: float) -> int:
    """Return the least n of which the largest value bounds the quantile ``q``: 59 for p95, 299 for p99 at 95 %."""
    _check(q, confidence)
    return math.ceil(math.log1p(-confidence) / math.log(q))


def upper_quantile_bound(values: Values, q: float, confidence: float = 0.95) -> float | None:
    """Return the least order statistic that is at least the quantile ``q`` with ``confidence``; ``None`` if none is.

    Independent values of any distribution. The r-th of n is too low with the probability that at
    least r of n values lie below the quantile, which is binomial.
    """
    numbers = _sorted(values)
    rank = _bound_rank(numbers.size, q, confidence)
    return None if rank is None else float(numbers[rank - 1])


def early_stopping_bound(values: Values, q: float, confidence: float = 0.99, tolerance: float = 0.0) -> float | None:
    """Return MLPerf's conservative estimate of the quantile ``q``; ``None`` below its least n (662 for p99 at 99 %).

    The t-th largest of n, t the most over-latency requests with which n still pass the early-stopping
    test of the quantile ``q - tolerance``. One rank more careful than ``upper_quantile_bound``.
    Source: MLPerf LoadGen, early stopping; the search there is the binomial tail here.
    """
    _check(q - tolerance, confidence)
    from scipy.special import bdtr

    numbers = _sorted(values)
    n = numbers.size
    n_over = np.arange(1, n + 1)
    passing = np.flatnonzero(bdtr(n_over, n, 1.0 - q + tolerance) <= 1.0 - confidence)
    return float(numbers[n - int(n_over[passing[-1]])]) if passing.size else None


def effective_n(values: Values, q: float) -> float:
    """Return how many independent values, at most n, a series is surely worth for its quantile ``q``.

    The most careful of three looks: at which values exceed the quantile, at which exceed the median
    (long spells of load show there even when few exceed the quantile) and at the ranks. The
    correlation time counts with its own upper bound at 80 %.

    Raises:
        ValueError: Fewer than 2 values, or one that is not finite.
    """
    from scipy.special import chdtri

    numbers = np.asarray(values, dtype=np.float64)
    if np.ptp(numbers) <= _ROUNDING * np.abs(numbers).max():  # the order of equal values means nothing
        return float(numbers.size)
    looks = (_exceedance(numbers, q), _exceedance(numbers, 0.5), correlation(_ranks(numbers)))
    freedom = min(look.freedom for look in looks)
    time = max(look.time for look in looks) * freedom / float(chdtri(freedom, _TIME_CONFIDENCE))
    return numbers.size / max(time, 1.0)


def series_quantile_bound(
    values: Values, q: float, confidence: float = 0.95, *, least_time: float = 1.0
) -> float | None:
    """Return an upper bound of the quantile ``q`` of what a series in time order is drawn from.

    The level that ``upper_quantile_bound`` would take for as many independent values as the series is
    worth. ``None`` where it is worth too little.

    Args:
        values: In time order.
        q: In (0, 1).
        confidence: In (0, 1).
        least_time: How many neighbours count as one at least. Without it a bound is given to just those
            short series that by chance saw no busy spell, and is then too low more often than it says.
    """
    _check(q, confidence)
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size < min_samples(q, confidence):
        return None
    n_effective = math.floor(min(effective_n(numbers, q), numbers.size / max(least_time, 1.0)))
    rank = _bound_rank(n_effective, q, confidence)
    if rank is None:
        return None
    place = math.ceil(rank / n_effective * numbers.size - 1e-9)
    return float(np.sort(numbers)[place - 1])


def series_interval(values: Values, statistic: Literal["mean"] | float, confidence: float = 0.95) -> Interval | None:
    """Return the two-sided interval of the mean, or of the quantile ``statistic``, behind a series in time order.

    Student's t with the variance and the degrees of freedom that the autocorrelation leaves; a mean's is
    corrected for skewness (Willink, Communications in Statistics: Theory and Methods 34, 2005), a
    quantile's is that of the share of values below it, read off the sorted values (Woodruff, JASA 47,
    1952). ``None`` where the values can not bound it on both sides.
    """
    _check(0.5, confidence)
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size < 2:
        return None
    return (
        _mean_interval(numbers, confidence)
        if statistic == "mean"
        else _quantile_interval(numbers, statistic, confidence)
    )


def _mean_interval(numbers: NDArray[np.float64], confidence: float) -> Interval:
    from scipy.special import stdtrit

    found, mean = correlation(numbers), float(numbers.mean())
    error = float(numbers.std(ddof=1)) * math.sqrt(found.time / numbers.size)
    t = float(stdtrit(found.freedom, (1 + confidence) / 2))
    low, high = (mean - error * _unskew(sign * t, found.skewness / 6) for sign in (1, -1))
    return Interval(low=low, high=high, confidence=confidence)


def _unskew(t: float, share: float) -> float:
    """Return Willink's transform of a Student's t; ``share`` is a sixth of the mean's own skewness."""
    return t if abs(share) < 1e-3 else (math.cbrt(1 + 6 * share * (t - share)) - 1) / (2 * share)


def _quantile_interval(numbers: NDArray[np.float64], q: float, confidence: float) -> Interval | None:
    _check(q, confidence)
    from scipy.special import stdtrit

    found = _exceedance(numbers, q)
    half = float(stdtrit(found.freedom, (1 + confidence) / 2)) * math.sqrt(q * (1 - q) * found.time / numbers.size)
    low, high = (math.ceil((q + sign * half) * numbers.size) for sign in (-1, 1))
    if low < 1 or high > numbers.size:
        return None
    ascending = np.sort(numbers)
    return Interval(low=float(ascending[low - 1]), high=float(ascending[high - 1]), confidence=confidence)


def _ranks(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value; equal ones share the middle of theirs."""
    _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - counts / 2.0)[place], dtype=np.float64)


def _exceedance(numbers: NDArray[np.float64], q: float) -> Correlation:
    return correlation((numbers > np.quantile(numbers, q)).astype(np.float64))


def _bound_rank(n: int, q: float, confidence: float) -> int | None:
    """Return the least r (from 1) with P(Binomial(n, q) < r) >= confidence."""
    _check(q, confidence)
    from scipy.special import bdtr

    ranks = np.arange(1, n + 1)
    high_enough = np.flatnonzero(bdtr(ranks - 1, n, q) >= confidence)
    return int(ranks[high_enough[0]]) if high_enough.size else None


def _sorted(values: Values) -> NDArray[np.float64]:
    numbers = np.sort(np.asarray(values, dtype=np.float64))
    if bool(np.isnan(numbers).any()):
        raise ValueError("a quantile of NaN is not defined; leave absent values out")
    return numbers


def _check(q: float, confidence: float) -> None:
    if not (0.0 < q < 1.0 and 0.0 < confidence < 1.0):
        raise ValueError(f"quantile and confidence must lie in (0, 1), got {q} and {confidence}")
