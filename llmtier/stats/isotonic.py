"""The best non-decreasing curve through points. Reads numbers, returns numbers; extrapolates nothing."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[np.float64]


def isotonic(x: Values, y: Values, weights: Values | None = None) -> NDArray[np.float64]:
    """Return the non-decreasing least-squares fit of ``y`` over ``x``, in the order given.

    Points of equal ``x`` get one value.

    Args:
        x: Shape (n,), in any order.
        y: Shape (n,).
        weights: Shape (n,), each > 0; ``None`` weighs all alike.

    Raises:
        ValueError: Shapes differ, a weight is not positive, or a number is not finite.
    """
    places, heights = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    mass = np.ones_like(places) if weights is None else np.asarray(weights, dtype=np.float64)
    if not places.shape == heights.shape == mass.shape or places.ndim != 1:
        raise ValueError(
            f"isotonic needs one y and one weight per x, got {places.shape}, {heights.shape}, {mass.shape}"
        )
    if not bool(np.isfinite([places, heights, mass]).all() and (mass > 0).all()):
        raise ValueError("isotonic needs finite numbers and positive weights")
    if places.size == 0:
        return heights
    from scipy.optimize import isotonic_regression

    _, group = np.unique(places, return_inverse=True)
    pooled_mass = np.bincount(group, weights=mass)
    pooled = np.bincount(group, weights=mass * heights) / pooled_mass
    return np.asarray(isotonic_regression(pooled, weights=pooled_mass).x[group], dtype=np.float64)
