"""Intervals for means: of scores in [0, 1] and of paired score differences in [-1, 1].

Reads numbers, returns ``Interval``s; knows nothing of tiers or files. None of these is the proven
bound of a policy's guarantee; they say how far an estimate may be off.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from llmtier.core.interval import Interval

Values = Sequence[float] | NDArray[np.float64]


def wilson(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Return the score interval of a mean of ``n`` values in [0, 1] that sum to ``successes``.

    Exact form for 0/1 values; conservative for fractional ones, whose variance is at most
    mean x (1 - mean). ``n = 0`` gives [0, 1]. Source: Wilson, JASA 22 (1927).

    Raises:
        ValueError: Unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:  # also refuses NaN
        raise ValueError(f"wilson needs 0 <= successes <= n, got {successes} of {n}")
    if n == 0:
        return Interval(low=0.0, high=1.0, confidence=confidence)
    z = _two_sided_z(confidence)
    mean = successes / n
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    # The bounds touch the mean at 0 and at 1; rounding must not push them past it.
    low, high = min(centre - half, mean), max(centre + half, mean)
    return Interval(low=max(low, 0.0), high=min(high, 1.0), confidence=confidence)


def mean_interval(values: Values, *, confidence: float = 0.95, low: float = 0.0, high: float = 1.0) -> Interval:
    """Return Student's t interval of a mean, clipped to [low, high]; the whole of it for n < 2.

    Equal values give an interval of width zero: use ``wilson`` for 0/1 scores.

    Raises:
        ValueError: When a value lies outside [low, high] or is NaN.
    """
    from scipy.special import stdtrit  # scipy.stats would take a second to import

    numbers = _checked(values, low, high)
    if numbers.size < 2:
        return Interval(low=low, high=high, confidence=confidence)
    mean = float(numbers.mean())
    standard_error = float(numbers.std(ddof=1)) / math.sqrt(numbers.size)
    half = float(stdtrit(numbers.size - 1, (1 + confidence) / 2)) * standard_error
    return Interval(low=max(mean - half, low), high=min(mean + half, high), confidence=confidence)


def paired_interval(differences: Values, *, confidence: float = 0.95) -> Interval:
    """Return the interval of a mean paired difference, each in [-1, 1]; all of [-1, 1] for n < 2.

    Wald's interval after half a pseudo-observation of +1, half of -1 and one of 0, so that
    "no difference was seen" is no proof of "there is none". Source: Agresti & Min,
    Statistics in Medicine 24 (2005), which is the case of 0/1 scores.

    Raises:
        ValueError: When a difference lies outside [-1, 1] or is NaN.
    """
    numbers = _checked(differences, -1.0, 1.0)
    if numbers.size < 2:
        return Interval(low=-1.0, high=1.0, confidence=confidence)
    n = numbers.size + 2
    mean = float(numbers.sum()) / n
    variance = (float(np.square(numbers).sum()) + 1.0) / n - mean * mean
    half = _two_sided_z(confidence) * math.sqrt(variance / n)
    return Interval(low=max(mean - half, -1.0), high=min(mean + half, 1.0), confidence=confidence)


def upper_mean_bound(values: Values, *, confidence: float = 0.95) -> float:
    """Return a one-sided upper bound of the mean of values in [-1, 1], 1.0 when there are none.

    Normal approximation after one pseudo-observation of 1. Without it a rare loss that was not
    seen counts as impossible: at a true mean of .005 that happens in .995^150 = 47 % of samples
    of 150. Not proven: the mean can still exceed it a little more often than stated.

    Raises:
        ValueError: When a value lies outside [-1, 1] or is NaN.
    """
    numbers = np.append(_checked(values, -1.0, 1.0), 1.0)
    z = NormalDist().inv_cdf(confidence)
    return float(numbers.mean() + z * numbers.std() / math.sqrt(numbers.size))


def _checked(values: Values, low: float, high: float) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if not bool(np.all((numbers >= low) & (numbers <= high))):
        raise ValueError(f"values must lie in [{low}, {high}]")
    return numbers


def _two_sided_z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
