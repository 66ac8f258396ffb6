"""Test by betting whether a mean loss is above a limit, whatever the distribution in its bounds.

Reads losses of independent units in an order fixed before they were looked at, returns p-values and an upper
bound of the mean; knows nothing of tiers, draws nothing.

A bettor starts with capital 1 and stakes on each unit's loss to be below the limit. If the mean is at or above
the limit, no way to bet that looks only at the past makes capital grow on average, so it ever reaches 1/delta
with probability delta at most (Ville's inequality). Exact for every n; no variance has to exist or be known.

Sources: Waudby-Smith & Ramdas, JRSS B 86 (2024), the process and its predictable plug-in bets; Voracek & Orabona,
"STaR-Bets", NeurIPS 2025 (arXiv 2505.22422), bets that aim at 1/delta with the units that are left.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

BET_CAP = 0.9
"""Largest share of the capital that one unit can lose."""

CAUTION = 1.4
"""Bets are sized for this multiple of the estimated variance: jumps cost more than their variance says.

Between 1.2 and 1.7 certified shares differ by less than .5 points at 500 units, .2 at 5,000 (routellm_mmlu).
"""

MAX_STEPS = 20_000
"""Bets are revised at most so often; more units than that share one bet by twos, threes and so on."""

_CHUNK_ROWS = 1024
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """How widely losses scatter, as seen on data that the test does not read; sizes the first bets.

    A wrong belief costs power, never validity.

    Attributes:
        variance: Of a unit's weighted loss about the mean, shape (n_columns,) or (1,); positive.
        n_units: How many observed units it is worth.
    """

    variance: Vector
    n_units: float

    @classmethod
    def from_losses(cls, losses: Matrix, masses: Vector) -> Self:
        """Return what units of another split say, with half a loss more than was seen.

        Args:
            losses: As in ``p_values``, shape (n_units, n_columns).
            masses: As in ``p_values``, shape (n_units,).
        """
        means = losses.sum(axis=0) / masses.sum()
        squares = np.square(losses - means * masses[:, np.newaxis]).sum(axis=0)
        return cls(variance=(squares + 0.5 * np.square(masses).mean()) / len(masses), n_units=float(len(masses)))


def p_values(  # noqa: PLR0913  # the data, the hypothesis and what the bets may know
    losses: Matrix,
    masses: Vector,
    *,
    limit: float | Vector,
    confidence: float,
    belief: Belief | None = None,
    bound: float | None = None,
    max_steps: int = MAX_STEPS,
) -> Vector:
    """Return a p-value for each column of "the mean loss is at or above the limit".

    The mean is that of all mass: E[losses] / E[masses]. A column is rejected at ``1 - confidence`` when its
    p-value is at most that; bets aim at no more, so how far below it a p-value lies says little. With the same rows
    and belief a column that is rejected at one limit is rejected at every higher one.

    Args:
        losses: Sum of weight x loss of each unit, each loss in [-1, 1], in betting order, shape (n_units, n_columns).
        masses: Sum of weights of each unit, positive, shape (n_units,).
        limit: In [-1, 1], or one a column.
        confidence: What the bets aim at, in (0, 1); a p-value holds at any level.
        belief: From other data; ``None`` starts from one unit of variance 1/4 as Waudby-Smith & Ramdas do.
        bound: Largest mass a unit can have; ``None`` takes the largest of ``masses``.
        max_steps: See ``MAX_STEPS``.

    Raises:
        ValueError: When the shapes disagree, a loss exceeds its mass, or limit, confidence or bound is out of range.
    """
    limits = np.broadcast_to(np.asarray(limit, dtype=np.float64), losses.shape[1:])
    _check(losses, masses, limits, confidence, bound)
    if not len(masses):
        return np.ones(limits.shape)
    largest = float(masses.max()) if bound is None else bound
    start = Belief(variance=np.array([0.25]), n_units=1.0) if belief is None else belief
    units = _Units(
        losses=losses / largest, masses=masses / largest, prior=start.variance / largest**2, n_prior=start.n_units
    )
    stride = math.ceil(len(masses) / max_steps)
    best = _bet(units, limits, target=-math.log1p(-confidence), stride=stride)
    return np.exp(-best)


def mean_upper_bound(
    losses: Vector, masses: Vector, *, confidence: float, belief: Belief | None = None, bound: float | None = None
) -> float:
    """Return an upper bound of the mean loss: the least limit whose hypothesis is rejected, 1.0 when none is.

    Rejected limits form an interval up to 1, so a search among them is exact up to its step of 1e-4, upwards.

    Args:
        losses: As in ``p_values`` but for one column, shape (n_units,).
        masses: As in ``p_values``, likewise the others.
        confidence: One-sided, in (0, 1).
        belief: As in ``p_values``.
        bound: As in ``p_values``.
    """
    low, high = -1.0, 1.0
    while high - low > 1e-4:
        limits = np.linspace(low, high, 34)[1:-1]
        columns = np.repeat(np.asarray(losses, dtype=np.float64)[:, np.newaxis], limits.size, axis=1)
        p = p_values(columns, masses, limit=limits, confidence=confidence, belief=belief, bound=bound)
        n_kept = int(np.count_nonzero(p > (1.0 - confidence) * (1 + 1e-12)))
        low, high = ([low, *limits.tolist()][n_kept], [*limits.tolist(), high][n_kept])
    return high


def least_units(limit: float, confidence: float) -> int:
    """Return how many units of equal weight without any loss or win it takes to reject."""
    return math.ceil(-math.log1p(-confidence) / math.log1p(BET_CAP * limit / (1.0 - limit)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Units:
    """Scaled so that no mass exceeds 1."""

    losses: Matrix
    masses: Vector
    prior: Vector
    n_prior: float

    def chunks(self) -> Iterator[tuple[Matrix, Vector, Matrix]]:
        """Yield losses, masses and, before each row, the variance as the rows above it show it."""
        n_columns = self.losses.shape[1]
        past = np.zeros((5, n_columns))
        for start in range(0, len(self.masses), _CHUNK_ROWS):
            losses = self.losses[start : start + _CHUNK_ROWS]
            masses = self.masses[start : start + _CHUNK_ROWS]
            column = np.broadcast_to(masses[:, np.newaxis], losses.shape)
            terms = np.stack([losses, column, losses * losses, losses * column, column * column])
            after = past[:, np.newaxis] + np.cumsum(terms, axis=1)
            before = np.concatenate([past[:, np.newaxis], after[:, :-1]], axis=1)
            past = after[:, -1]
            yield losses, masses, self._variance(before, start + np.arange(len(masses)))

    def _variance(self, sums: NDArray[np.float64], n_before: NDArray[np.intp]) -> Matrix:
        """Return the variance of loss - mean x mass, which needs no limit: bets then grow with the limit alone."""
        loss, mass, loss2, loss_mass, mass2 = sums
        mean = loss / np.maximum(mass, _LEAST_VARIANCE)
        squares = np.maximum(loss2 - 2 * mean * loss_mass + mean * mean * mass2, 0.0)
        total = self.n_prior * self.prior + squares
        return np.asarray(np.maximum(total / (self.n_prior + n_before)[:, np.newaxis], _LEAST_VARIANCE))


def _bet(units: _Units, limits: Vector, *, target: float, stride: int) -> Vector:
    """Return the largest log capital of each column."""
    n_units = len(units.masses)
    caps = BET_CAP / np.maximum(1.0 - limits, _LEAST_VARIANCE)
    log_capital, best = np.zeros(limits.shape), np.zeros(limits.shape)
    start = 0
    for losses, masses, variance in units.chunks():
        wins = masses[:, np.newaxis] * limits - losses
        n_left = n_units - start - np.arange(len(masses))
        scales = 1.0 / (CAUTION * variance * n_left[:, np.newaxis])
        floors = np.square(2.0 * stride * scales)
        for row in range(0, len(masses), stride):
            bets = np.minimum(_size_bets(target - log_capital, scales[row], floors[row]), caps)
            path = log_capital + np.cumsum(np.log1p(bets * wins[row : row + stride]), axis=0)
            log_capital = path[-1]
            np.maximum(best, path.max(axis=0), out=best)
        start += len(masses)
    return best


def _size_bets(room: Vector, scale: Vector, floor: Vector) -> Vector:
    """Return the bets that reach ``room`` more log capital with the least mean gain a unit.

    With variance v and r units left, betting b on a gain of m a unit brings r (b m - b^2 v / 2): for a given room
    the least m that is enough has b = sqrt(2 room / (r v)), and ``scale`` is 1 / (r v). The floor keeps more capital
    better than less after any outcome (the bet's slope against log capital stays above -1 / (2 stride)), which makes
    the decision monotone in the limit; it counts only when few units are left.
    """
    return np.asarray(np.sqrt(np.maximum(2.0 * room, 0.0) * scale + floor))


def _check(losses: Matrix, masses: Vector, limits: Vector, confidence: float, bound: float | None) -> None:
    if losses.ndim != 2 or masses.shape != losses.shape[:1]:
        raise ValueError(f"losses must be units x columns and masses units, got {losses.shape} and {masses.shape}")
    if not 0.0 < confidence < 1.0 or not bool(np.all(np.abs(limits) <= 1.0)):
        raise ValueError(f"confidence must lie in (0, 1) and limits in [-1, 1], got {confidence} and {limits}")
    if not bool(np.all(masses > 0.0)) or not bool(np.all(np.abs(losses) <= masses[:, np.newaxis] * (1 + 1e-9))):
        raise ValueError("masses must be positive and no loss may exceed its unit's mass")
    if bound is not None and len(masses) and not masses.max() <= bound:
        raise ValueError(f"a unit has mass {masses.max():g}, the bound says at most {bound:g}")
