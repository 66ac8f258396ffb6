"""L2 logistic regression with soft targets, and Platt's calibration of its logits.

Reads design matrices (dense or sparse) and targets in [0, 1]; returns weights. Knows nothing of
prompts. The penalty is ``0.5 * l2 * |w|^2`` on the *sum* of losses, so on rows of unit norm
``l2`` acts as a prior and needs no tuning with the number of rows.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

Vector = NDArray[np.float64]

# Weight of "the slope is 1" in Platt's calibration: 10 to 30 instead of 1 rank 200 labels .005 APGR better, and
# neither ranking nor calibration of 500 or more moves (docs/log.md).
_SLOPE_PRIOR = 20.0

Design: TypeAlias = "NDArray[np.float64] | csr_array[np.float64] | csc_array[np.float64]"


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

    def apply_one(self, logit: float) -> float:
        """Return one probability, without numpy's cost of a call."""
        return 0.5 * (1.0 + math.tanh(0.5 * (self.slope * logit + self.offset)))


def sigmoid(logits: Vector) -> Vector:
    """Return ``1 / (1 + exp(-logits))`` without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float64)


def fit_logistic(design: Design, targets: Vector, *, l2: float = 2.0, max_steps: int = 30) -> LogisticFit:
    """Fit weights and a free intercept by Newton's method, each step solved by conjugate gradients.

    Only sparse products and einsum, no BLAS: on a busy machine the threads of BLAS wait for each
    other, and L-BFGS of scipy then takes 25 times as long for 1,500 prompts.

    Args:
        design: Shape (n_rows, n_columns), dense or sparse.
        targets: Shape (n_rows,), each in [0, 1].
        l2: Strength of the penalty, > 0; the intercept carries none.
        max_steps: Most Newton steps.

    Raises:
        ValueError: When there is no row, or a target lies outside [0, 1].
    """
    if targets.size == 0 or not bool(np.all((targets >= 0) & (targets <= 1))):
        raise ValueError("logistic regression needs rows with targets in [0, 1]")
    problem = _Problem(design=design, transposed=design.T, targets=targets, l2=l2)
    parameters = np.zeros(design.shape[1] + 1)
    parameters[-1] = _logit_of_mean(targets)
    loss = problem.loss(parameters)
    for _ in range(max_steps):
        step = problem.newton_step(parameters)
        moved, moved_loss = _line_search(problem, parameters, step, loss)
        gain, parameters, loss = loss - moved_loss, moved, moved_loss
        if gain <= 1e-7 * max(1.0, abs(loss)):
            break
    return LogisticFit(weights=parameters[:-1], intercept=float(parameters[-1]))


def platt(logits: Vector, targets: Vector) -> Platt:
    """Calibrate logits of rows that did not fit them.

    Targets are pulled in by Platt's (n + 1) / (n + 2), so a tier that was always right gets no
    certainty; a prior holds the slope near 1 where rows are few, and it is never negative.
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
        lean = _SLOPE_PRIOR * (parameters[0] - 1.0)
        value = np.logaddexp(0.0, scaled).sum() - pulled @ scaled + 0.5 * lean * (parameters[0] - 1.0)
        return float(value), np.array([residuals @ logits + lean, residuals.sum()])

    found = minimize(
        loss,
        np.array([1.0, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None), (None, None)],
        options={"ftol": 1e-14, "gtol": 1e-9},  # or the result depends on the order of the rows in its third digit
    )
    return Platt(slope=float(found.x[0]), offset=float(found.x[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """Penalised logistic loss over parameters of shape (n_columns + 1,), the intercept last."""

    design: Design
    transposed: Design
    targets: Vector
    l2: float

    def loss(self, parameters: Vector) -> float:
        logits, weights = self._logits(parameters), parameters[:-1]
        return float((np.logaddexp(0.0, logits) - self.targets * logits).sum()) + 0.5 * self.l2 * _dot(weights, weights)

    def newton_step(self, parameters: Vector, *, max_iterations: int = 40) -> Vector:
        """Return the conjugate-gradient solution of ``Hessian @ step = -gradient``, to a tenth."""
        probabilities = sigmoid(self._logits(parameters))
        # The floor keeps the Hessian invertible where every probability has saturated.
        curvature = np.maximum(probabilities * (1.0 - probabilities), 1e-12)
        residual = -self._gradient(probabilities, parameters)
        step, direction = np.zeros_like(residual), residual.copy()
        size = first_size = _dot(residual, residual)
        for _ in range(max_iterations):
            if size <= 0.01 * first_size:
                break
            bent = self._hessian_product(curvature, direction)
            length = size / _dot(direction, bent)
            step += length * direction
            residual -= length * bent
            size, previous = _dot(residual, residual), size
            direction = residual + size / previous * direction
        return step

    def _logits(self, parameters: Vector) -> Vector:
        return np.asarray(self.design @ parameters[:-1] + parameters[-1], dtype=np.float64)

    def _gradient(self, probabilities: Vector, parameters: Vector) -> Vector:
        misses = probabilities - self.targets
        return np.append(self.transposed @ misses + self.l2 * parameters[:-1], misses.sum())

    def _hessian_product(self, curvature: Vector, direction: Vector) -> Vector:
        bent = curvature * self._logits(direction)
        return np.append(self.transposed @ bent + self.l2 * direction[:-1], bent.sum())


def _line_search(problem: _Problem, parameters: Vector, step: Vector, loss: float) -> tuple[Vector, float]:
    """Halve the step until the loss falls; return the parameters as they were when it never does."""
    for _ in range(30):
        moved = parameters + step
        moved_loss = problem.loss(moved)
        if moved_loss < loss:
            return moved, moved_loss
        step = 0.5 * step
    return parameters, loss


def _dot(a: Vector, b: Vector) -> float:
    return float(np.einsum("i,i->", a, b))


def _logit_of_mean(targets: Vector) -> float:
    mean = (float(targets.sum()) + 0.5) / (targets.size + 1.0)
    return float(np.log(mean / (1.0 - mean)))
