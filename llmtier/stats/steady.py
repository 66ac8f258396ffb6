"""Where a series stops warming up: the MSER-5 rule.

Reads a series in time order, returns an index. Judges the mean only; a trend that goes on to the
end shows as "no steady state". Source: White, Simulation 69 (1997); White, Cobb & Spratt, WSC 2000.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BATCH = 5
_LEAST_BATCHES = 4  # fewer can not tell a start from an end


def mser5_start(values: Sequence[float] | NDArray[np.float64]) -> int | None:
    """Return the index of the first value to keep, a multiple of 5; ``None`` when there is no steady state.

    The truncation minimises the marginal standard error of what is left. Where the minimum lies at
    half of the series or beyond, no truncation is to be trusted. A remainder of fewer than 5 values
    at the end takes no part in the decision.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not bool(np.isfinite(numbers).all()):
        raise ValueError("MSER-5 needs finite values")
    n_batches = numbers.size // BATCH
    if n_batches < _LEAST_BATCHES:
        return None
    means = numbers[: n_batches * BATCH].reshape(n_batches, BATCH).mean(axis=1)
    half = n_batches // 2
    errors = _marginal_errors(means)[: half + 1]
    rounding = 1e-12 * float(errors[0]) + (1e-12 * float(np.abs(means).max())) ** 2  # equal values differ by it
    n_cut = int(np.argmax(errors <= errors.min() + rounding))  # the first of the least
    return None if n_cut == half else n_cut * BATCH


def _marginal_errors(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for each number of batches cut, the sum of squares of the rest over its squared length."""
    centred = means - means.mean()  # against cancellation; the squares do not depend on it
    n_left = np.arange(means.size, 0, -1)
    totals = np.cumsum(centred[::-1])[::-1]
    squares = np.cumsum(np.square(centred)[::-1])[::-1]
    return np.asarray(np.maximum(squares - totals**2 / n_left, 0.0) / n_left**2, dtype=np.float64)
