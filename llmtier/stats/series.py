"""How much a series in time order repeats itself: requests that share an engine share its load.

Reads numbers, returns how many independent values they are worth. What a request's own length adds
to its latency is independent noise and hides the slow swing of the load from autocorrelations of
single values; in means of long batches the swing is what is left. So: batch means, and because
batches that are long enough to be independent would be too few, their own first-order
autocorrelation is paid for. Source: batch means with a correlation adjustment as in Steiger et al.,
ASAP3, ACM TOMACS 15 (2005), here the inflation of a first-order autoregression; Kendall, Biometrika
41 (1954), the bias of its coefficient.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[np.float64]

# Of 10 to 50 batches, 20 of them make intervals cover best in short series of simulated queues, 40 in long ones.
_BATCHES = (20, 40)
_PER_BATCH = 100
_HIGHEST = 0.9  # autocorrelation of batches: beyond, the series is too short to know it


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """How far a series is from independent.

    Attributes:
        time: n over the number of independent values whose mean is as uncertain; about 1 when independent,
            below 1 when neighbours make up for each other.
        freedom: Degrees of freedom with which ``time`` is known.
        skewness: Of the mean of the series.
    """

    time: float
    freedom: float
    skewness: float = 0.0


def correlation(values: Values) -> Correlation:
    """Return the integrated autocorrelation time of a series; 1 when no two values differ.

    Raises:
        ValueError: Fewer than 2 values, or one that is not finite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    n = numbers.size
    if n < 2 or not bool(np.isfinite(numbers).all()):
        raise ValueError("the correlation of a series needs two finite values or more")
    spread = float(np.square(numbers - numbers.mean()).sum()) / (n - 1)
    if spread <= (1e-12 * float(np.abs(numbers).max())) ** 2:
        return Correlation(time=1.0, freedom=float(n - 1))
    n_batches = min(max(n // _PER_BATCH, _BATCHES[0]), _BATCHES[1], n)
    length = n // n_batches
    means = numbers[n - n_batches * length :].reshape(n_batches, length).mean(axis=1)
    return _judge(means - means.mean(), length / spread)


def _judge(errors: NDArray[np.float64], scale: float) -> Correlation:
    """Return the correlation from batch means less their mean; ``scale`` turns their variance into a time."""
    k = errors.size
    squares = float(errors @ errors)
    repeat = float(errors[1:] @ errors[:-1]) / squares if squares > 0 else 0.0
    repeat = min(max(repeat + (1 + 3 * repeat) / k, 0.0), _HIGHEST)
    inflation = (1 + repeat) / (1 - repeat)
    variance = squares / max(k - inflation, 1.0)  # correlated values lie closer to their mean
    return Correlation(
        time=variance * inflation * scale,
        freedom=max(k / inflation - 1.0, 2.0),
        skewness=_skewness(errors) * math.sqrt(inflation / k),
    )


def _skewness(errors: NDArray[np.float64]) -> float:
    k, squares = errors.size, float(errors @ errors)
    if k < 3 or squares <= 0:
        return 0.0
    return k / ((k - 1) * (k - 2)) * float((errors**3).sum()) / math.pow(squares / (k - 1), 1.5)
