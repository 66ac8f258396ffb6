"""How many labels it takes to certify anything worth having: a forecast, no part of the guarantee.

Reads the losses of the fit split; simulates the test on draws from them. Reads no calibration label.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.fit.units import Units
from llmtier.stats.betting import Belief, least_units, p_values

WORTH_HAVING = 0.05
"""Share of the traffic away from the reference that a forecast is about."""

MAX_LABELS = 50_000
"""Beyond this a forecast is a guess."""

_TRUST_IN_MODEL = 2 / 3
"""Weight of the loss that the scorer predicts, against the one seen on the fit split.

At 5 % of routellm_mmlu and 1,500 labels the former is off by .0039, the latter by .0056 (standard deviations).
"""

_N_DRAWS = 40
_MAX_STEPS = 500
_LARGEST_TILT = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is to be certified.

    Attributes:
        epsilon: Limit of the mean loss.
        confidence: Of the test.
        predicted_loss: Mean loss of the last candidate as the scorer predicts it.
        labels_per_unit: Rows a unit has on average.
    """

    epsilon: float
    confidence: float
    predicted_loss: float
    labels_per_unit: float = 1.0


def forecast_labels(units: Units, goal: Goal, *, seed: int) -> int | None:
    """Return how many calibration labels certify every candidate in half of the draws; ``None`` beyond the limit.

    Args:
        units: Of the fit split, with the candidates up to the one worth having, by ascending gap.
        goal: What is to be certified.
        seed: Of the draws.
    """
    if not len(units) or not units.losses.shape[1]:
        return None
    seen = float(units.losses[:, -1].sum() / units.masses.sum())
    target = _TRUST_IN_MODEL * goal.predicted_loss + (1 - _TRUST_IN_MODEL) * seen
    odds = tilt(units.losses[:, -1], units.masses, target=target)
    low, high = 0, max(least_units(goal.epsilon, goal.confidence) // 8, 8)
    while _power(units, odds, goal, n_units=high, seed=seed) < 0.5:
        low, high = high, 2 * high
        if high * goal.labels_per_unit > MAX_LABELS:
            return None
    while high - low > max(0.04 * high, 1.0):
        middle = (low + high) // 2
        is_enough = _power(units, odds, goal, n_units=middle, seed=seed) >= 0.5
        low, high = (low, middle) if is_enough else (middle, high)
    return math.ceil(high * goal.labels_per_unit)


def tilt(losses: NDArray[np.float64], masses: NDArray[np.float64], *, target: float) -> NDArray[np.float64]:
    """Return the probabilities nearest to equal ones, in relative entropy, with which the mean loss is ``target``.

    As near to it as factors of e^8 can bring it. Source: exponential tilting.
    """
    low, high = -_LARGEST_TILT, _LARGEST_TILT
    excess = (losses - target * masses) / masses.max()
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if float((np.exp(middle * excess) * excess).sum()) < 0 else (low, middle)
    odds = np.exp(high * (excess - excess.max()))
    return np.asarray(odds / odds.sum())


def _power(units: Units, odds: NDArray[np.float64], goal: Goal, *, n_units: int, seed: int) -> float:
    """Return the share of draws of ``n_units`` units in which every candidate is rejected."""
    rng = np.random.default_rng((seed, n_units))
    places = rng.choice(len(units), size=n_units * _N_DRAWS, p=odds).reshape(_N_DRAWS, n_units)
    if np.ptp(units.masses) == 0:
        drawn = units.losses[places].transpose(1, 0, 2).reshape(n_units, -1)
        p = _test(drawn, units.masses[places[0]], units, goal).reshape(_N_DRAWS, -1)
    else:
        p = np.stack([_test(units.losses[row], units.masses[row], units, goal) for row in places])
    return float(np.mean(np.all(p <= (1 - goal.confidence) * (1 + 1e-9), axis=1)))


def _test(losses: NDArray[np.float64], masses: NDArray[np.float64], units: Units, goal: Goal) -> NDArray[np.float64]:
    belief = Belief.from_losses(units.losses, units.masses)
    n_repeats = losses.shape[1] // len(belief.variance)
    return p_values(
        losses,
        masses,
        limit=goal.epsilon,
        confidence=goal.confidence,
        belief=Belief(variance=np.tile(belief.variance, n_repeats), n_units=belief.n_units),
        max_steps=_MAX_STEPS,
    )
