"""Least squares whose coefficients can not be negative, with how sure each one is.

Reads a design matrix and a target in seconds; returns coefficients. Knows nothing of engines.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NonnegativeFit:
    """A fit of ``design @ coefficients`` to the target.

    Attributes:
        coefficients: Shape (k,), each >= 0.
        residual_s: Weighted root mean square of target minus fit.
        covariance: Shape (k, k), of the coefficients that are not held at 0, whose rows and columns are 0;
            ``None`` when those columns do not determine them or no degree of freedom is left.
        condition: Of the weighted design after scaling each column to unit length; large when the points
            can not tell two columns apart, infinite when a column is empty.
    """

    coefficients: Array
    residual_s: float
    covariance: Array | None
    condition: float


def fit_nonnegative(design: Array, target: Array, weights: Array | None = None) -> NonnegativeFit:
    """Minimise the weighted squared error over coefficients >= 0.

    Columns are scaled first: KV tokens and a constant differ by six orders of magnitude.

    Args:
        design: Shape (n, k).
        target: Shape (n,).
        weights: Shape (n,), each >= 0 and not all 0, of the squared errors; ``None`` weighs all alike.

    Raises:
        ValueError: No row, shapes differ, or a number is not finite.
    """
    from scipy.optimize import nnls

    mass = np.ones(len(target)) if weights is None else weights
    _check(design, target, mass)
    root = np.sqrt(mass)
    weighted, aim = design * root[:, None], target * root
    scale = np.sqrt(np.square(weighted).sum(axis=0))
    used = scale > 0
    scaled = weighted / np.where(used, scale, 1.0)
    solution = np.asarray(nnls(scaled, aim)[0], dtype=np.float64)
    errors = aim - scaled @ solution
    covariance = _covariance(scaled, errors, solution > 0, int((mass > 0).sum()))
    outer = np.outer(np.where(used, scale, 1.0), np.where(used, scale, 1.0))
    return NonnegativeFit(
        coefficients=np.where(used, solution / np.where(used, scale, 1.0), 0.0),
        residual_s=float(np.sqrt(np.square(errors).sum() / mass.sum())),
        covariance=None if covariance is None else covariance / outer,
        condition=float(np.linalg.cond(scaled)) if bool(used.all()) else float("inf"),
    )


def _covariance(design: Array, errors: Array, free: NDArray[np.bool_], n: int) -> Array | None:
    """Return the covariance of the free coefficients as if the others had never been there."""
    k = int(free.sum())
    if n <= k:
        return None
    active = design[:, free]
    if k and int(np.linalg.matrix_rank(active)) < k:
        return None
    variance = float(np.square(errors).sum()) / (n - k)
    full = np.zeros((free.size, free.size))
    full[np.ix_(free, free)] = variance * np.linalg.inv(active.T @ active)
    return full


def _check(design: Array, target: Array, mass: Array) -> None:
    if design.ndim != 2 or design.shape[0] == 0 or not design.shape[:1] == target.shape == mass.shape:
        raise ValueError(f"the fit needs one target per row, got {design.shape}, {target.shape} and {mass.shape}")
    if not all(bool(np.isfinite(part).all()) for part in (design, target, mass)):
        raise ValueError("the fit needs finite numbers")
    if bool((mass < 0).any()) or not bool((mass > 0).any()):
        raise ValueError("the fit needs weights >= 0, not all 0")
