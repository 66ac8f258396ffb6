"""L2 logistic regression with soft targets, and Platt's calibration of its logits.

Reads design matrices (dense or sparse) and targets in [0, 1]; returns weights. Knows nothing of
prompts. The penalty is ``0.5 * l2 * |w|^2`` on the *sum* of losses, so on rows of unit norm
``l2`` acts as a prior and needs no tuning with the number of rows.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Vector = NDArray[np.float64]
Design: TypeAlias = "NDArray[np.float64] | csr_array[np.float64]"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogisticFit:
    """A fitted logit: ``design @ weights + intercept``; ``weights`` has shape (n_columns,)."""

    weights: Vector
    intercept: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Platt:
    """A calibrated probability: ``sigmoid(slope * logit + offset)``; ``slope`` >= 0 keeps the order."""

    slope: float = 1.0
    offset: float = 0.0

    def apply(self, logits: Vector) -> Vector:
        """Return probabilities in [0, 1], of the logits' shape."""
        return sigmoid(self.slope * logits + self.offset)


def sigmoid(logits: Vector) -> Vector:
    """Return ``1 / (1 + exp(-logits))`` without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float64)


def fit_logistic(design: Design, targets: Vector, *, l2: float = 2.0, max_steps: int = 50) -> LogisticFit:
    """Fit weights and a free intercept by L-BFGS.

    Args:
        design: Shape (n_rows, n_columns), dense or sparse.
        targets: Shape (n_rows,), each in [0, 1].
        l2: Strength of the penalty; the intercept carries none.
        max_steps: Most iterations.

    Raises:
        ValueError: When there is no row, or a target lies outside [0, 1].
    """
    from scipy.optimize import minimize

    if targets.size == 0 or not bool(np.all((targets >= 0) & (targets <= 1))):
        raise ValueError("logistic regression needs rows with targets in [0, 1]")
    transposed = design.T

    def loss(parameters: Vector) -> tuple[float, Vector]:
        weights, intercept = parameters[:-1], parameters[-1]
        logits = design @ weights + intercept
        residuals = sigmoid(logits) - targets
        value = np.logaddexp(0.0, logits).sum() - targets @ logits + 0.5 * l2 * (weights @ weights)
        return float(value), np.append(transposed @ residuals + l2 * weights, residuals.sum())

    start = np.zeros(design.shape[1] + 1)
    start[-1] = _logit_of_mean(targets)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": max_steps})
    return LogisticFit(weights=np.asarray(found.x[:-1], dtype=np.float64), intercept=float(found.x[-1]))


def platt(logits: Vector, targets: Vector) -> Platt:
    """Calibrate logits of rows that did not fit them.

    Targets are pulled in by Platt's (n + 1) / (n + 2), so a tier that was always right gets no
    certainty; a weak prior holds the slope near 1 where rows are few, and it is never negative.
    Source: Platt, Probabilistic outputs for support vector machines (1999).

    Args:
        logits: Shape (n_rows,), out of fold.
        targets: Shape (n_rows,), each in [0, 1].
    """
    from scipy.optimize import minimize

    n_right = float(targets.sum())
    n_wrong = targets.size - n_right
    pulled = targets * (n_right + 1) / (n_right + 2) + (1 - targets) / (n_wrong + 2)

    def loss(parameters: Vector) -> tuple[float, Vector]:
        scaled = parameters[0] * logits + parameters[1]
        residuals = sigmoid(scaled) - pulled
        lean = parameters[0] - 1.0
        value = np.logaddexp(0.0, scaled).sum() - pulled @ scaled + 0.5 * lean * lean
        return float(value), np.array([residuals @ logits + lean, residuals.sum()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)])
    return Platt(slope=float(found.x[0]), offset=float(found.x[1]))


def _logit_of_mean(targets: Vector) -> float:
    mean = (float(targets.sum()) + 0.5) / (targets.size + 1.0)
    return float(np.log(mean / (1.0 - mean)))
