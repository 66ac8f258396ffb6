"""Other bounds for the same walk, recomputed beside llmtier's: what is usual, and what it costs or breaks.

Each reads losses in [-1, 1] of shape (n, n_columns) and a limit, and returns p-values of "the mean is above it".
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

DELTA = 0.05


def hoeffding(losses: Matrix, limit: float) -> Vector:
    """Hoeffding (1963) on [-1, 1]: valid, blind to the variance."""
    gain = np.maximum(limit - losses.mean(axis=0), 0.0)
    return np.asarray(np.exp(-len(losses) * gain * gain / 2))


def normal(losses: Matrix, limit: float) -> Vector:
    """Return the central limit theorem's p-value: not valid when few losses were seen."""
    spread = losses.std(axis=0, ddof=1) / math.sqrt(len(losses))
    gain = limit - losses.mean(axis=0)
    return np.asarray(np.where(spread > 0, ndtr(-gain / np.maximum(spread, 1e-12)), (gain <= 0).astype(float)))


def no_margin(losses: Matrix, limit: float) -> Vector:
    """Take the mean seen for the true one, as the field's thresholds do."""
    return np.asarray((losses.mean(axis=0) > limit).astype(float))


def empirical_bernstein(losses: Matrix, limit: float) -> Vector:
    """Maurer & Pontil (2009) at the level ``DELTA``; returns 0 or 1."""
    n = len(losses)
    log = math.log(2 / DELTA)
    bound = losses.mean(axis=0) + np.sqrt(2 * losses.var(axis=0, ddof=1) * log / n) + 14 * log / (3 * (n - 1))
    return np.asarray((bound > limit).astype(float))


def plug_in(losses: Matrix, limit: float) -> Vector:
    """Waudby-Smith & Ramdas (2024): predictable plug-in bets at the level ``DELTA``, capped at .9."""
    n_before = np.arange(len(losses))[:, np.newaxis]
    means = (_sums_before(losses) + 0.0) / (n_before + 1)
    squares = _sums_before(np.square(losses - means))
    bets = np.sqrt(2 * math.log(1 / DELTA) / (len(losses) * (0.25 + squares) / (n_before + 1)))
    growth = np.log1p(np.minimum(bets, 0.9 / (1 - limit)) * (limit - losses))
    return np.asarray(np.exp(-np.maximum(np.cumsum(growth, axis=0).max(axis=0), 0.0)))


def _sums_before(values: Matrix) -> Matrix:
    return np.asarray(np.cumsum(values, axis=0) - values)


PEERS: Mapping[str, Callable[[Matrix, float], Vector]] = {
    "no margin": no_margin,
    "normal approximation": normal,
    "Hoeffding": hoeffding,
    "Maurer-Pontil": empirical_bernstein,
    "betting, plug-in bets": plug_in,
}
