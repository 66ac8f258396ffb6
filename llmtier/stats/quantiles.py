"""The one definition of a quantile. Reads numbers, returns one; a quantile of nothing is ``None``."""

from collections.abc import Sequence

import numpy as np


def quantile(values: Sequence[float], q: float) -> float | None:
    """Return numpy's ``linear`` quantile, ``None`` for no values.

    Raises:
        ValueError: When ``q`` lies outside [0, 1] or a value is NaN.
    """
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"q must lie in [0, 1], got {q}")
    if len(values) == 0:
        return None
    numbers = np.asarray(values, dtype=np.float64)
    if bool(np.isnan(numbers).any()):
        raise ValueError("a quantile of NaN is not defined; leave absent values out")
    return float(np.quantile(numbers, q))
