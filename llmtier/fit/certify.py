"""The largest gap whose mean loss is proven to be within the limit, on labels that chose nothing else.

Reads the fit split (for the path and for the first bets) and the calibration split (for the tests); returns what
is certified. Fixed-sequence testing: the candidates are tested from "almost all on the reference" on, each at the
full level, and the first that is not rejected ends the walk; the first candidate that breaks the limit is then
passed with probability delta at most, whatever comes after it. "All on the reference" needs no test.

What is proven speaks of prompts drawn as the labelled ones were and of decisions of an unloaded system.
Source: Angelopoulos et al., "Learn then Test" (Annals of Applied Statistics 19, 2025).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmtier.fit.path import Evidence, Vector, Walk, make_gaps, walk
from llmtier.fit.shortfall import WORTH_HAVING, Goal, forecast_labels
from llmtier.fit.units import Units, sum_units
from llmtier.stats.betting import Belief, least_units, p_values


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What is to hold.

    Attributes:
        epsilon: Highest mean of (reference score - routed score), in [0, 1).
        confidence: Probability, over the draw of the calibration split, that it does.

    Raises:
        ValueError: When one is out of range.
    """

    epsilon: float
    confidence: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.epsilon < 1.0 or not 0.0 < self.confidence < 1.0:
            raise ValueError(
                f"epsilon must lie in [0, 1) and confidence in (0, 1), got {self.epsilon} and {self.confidence}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """What the calibration split proves.

    Attributes:
        gap: The largest certified gap; ``None`` for "all on the reference".
        gaps: Every candidate, ascending.
        p_values: Of "this candidate loses more than epsilon", one a gap. Bets aim at the level, so how far below
            it one lies says little.
        shares: Share of the calibration traffic that leaves the reference, one a gap.
        losses: Mean loss seen on the calibration split, one a gap; an estimate, not a bound.
        n_units: Independent units of the calibration split.
        n_labels: Rows of it.
        epsilon: Of the promise.
        confidence: At which every gap up to ``gap`` is certified; after a split over domains, that of this domain.
        labels_needed: Calibration labels in all with which half of the refits would certify 5 % of the traffic;
            ``None`` when that is beyond the forecast's reach or was not asked for.
    """

    gap: float | None
    gaps: tuple[float, ...]
    p_values: tuple[float, ...]
    shares: tuple[float, ...]
    losses: tuple[float, ...]
    n_units: int
    n_labels: int
    epsilon: float
    confidence: float
    labels_needed: int | None = None

    @property
    def share(self) -> float:
        """Return the share of the traffic that the certified rule sends away from the reference."""
        return 0.0 if self.gap is None else self.shares[self.gaps.index(self.gap)]


def certify(  # noqa: PLR0913  # two splits and what is asked of them
    fit: Evidence,
    calibration: Evidence,
    promise: Promise,
    *,
    reference_column: int,
    seed: int,
    bound: float | None = None,
    has_forecast: bool = True,
) -> Certified:
    """Return the largest gap that the calibration split certifies.

    Args:
        fit: Fixes the path and the first bets; its probabilities must be out of fold.
        calibration: Shares no unit with ``fit``.
        promise: What is to hold.
        reference_column: Index of the reference among the tiers.
        seed: Of the betting order and the forecast; to be fixed before the labels are looked at.
        bound: Largest summed weight a unit can have, where the sampling plan says; ``None`` takes the largest seen
            in both splits.
        has_forecast: Whether to forecast ``labels_needed``, about a second's work.
    """
    gaps = make_gaps(fit.probabilities, reference_column, weights=fit.weights)
    fit_walk, tested = (walk(split, reference_column, gaps) for split in (fit, calibration))
    fit_units = sum_units(fit_walk.losses, fit.weights, fit.groups)
    units = sum_units(tested.losses, calibration.weights, calibration.groups)
    p = _test_path(units.shuffled(seed), fit_units, promise, bound=bound)
    n_passed = count_passed(p, promise.confidence)
    return Certified(
        gap=gaps[n_passed - 1] if n_passed else None,
        gaps=gaps,
        p_values=tuple(p.tolist()),
        shares=tuple(tested.shares.tolist()),
        losses=tuple((units.losses.sum(axis=0) / max(float(units.masses.sum()), 1e-300)).tolist()),
        n_units=len(units),
        n_labels=len(calibration),
        epsilon=promise.epsilon,
        confidence=promise.confidence,
        labels_needed=_forecast(fit_units, fit_walk, promise, n_labels=len(fit), seed=seed) if has_forecast else None,
    )


def count_passed(p: Vector, confidence: float) -> int:
    """Return how many candidates are rejected before the first that is not."""
    is_open = p > (1.0 - confidence) * (1 + 1e-9)
    return int(np.argmax(is_open)) if is_open.any() else len(p)


def certify_domains(  # noqa: PLR0913  # as ``certify``, by domain
    fit: Evidence,
    calibration: Evidence,
    promise: Promise,
    *,
    domains: tuple[Sequence[str], Sequence[str]],
    reference_column: int,
    seed: int,
    bound: float | None = None,
) -> Mapping[str, Certified]:
    """Return what is certified in each domain, such that all of it holds at once with ``promise.confidence``.

    Delta is split evenly over the domains that have enough units to certify anything without luck; how many units
    there are says nothing of their losses. A domain that is not in the result goes to the reference.

    Args:
        fit: As in ``certify``, likewise the others.
        calibration: As in ``certify``.
        promise: What is to hold in each domain, jointly.
        domains: Of each row of ``fit`` and of ``calibration``.
        reference_column: As in ``certify``.
        seed: As in ``certify``.
        bound: As in ``certify``.
    """
    of_fit, of_calibration = (np.array(list(names), dtype=object) for names in domains)
    known = sorted(set(domains[0]))
    sizes = {name: len(np.unique(calibration.groups[of_calibration == name])) for name in known}
    chosen = _find_large(sizes, promise)
    if not chosen:
        return {}
    share = Promise(epsilon=promise.epsilon, confidence=1.0 - (1.0 - promise.confidence) / len(chosen))
    return {
        name: certify(
            fit.where(of_fit == name),
            calibration.where(of_calibration == name),
            share,
            reference_column=reference_column,
            seed=seed,
            bound=bound,
            has_forecast=False,
        )
        for name in chosen
    }


def _find_large(sizes: Mapping[str, int], promise: Promise) -> tuple[str, ...]:
    """Return the most domains such that each has enough units for its share of delta."""
    by_size = sorted(sizes, key=lambda name: (-sizes[name], name))
    for count in range(len(by_size), 0, -1):
        confidence = 1.0 - (1.0 - promise.confidence) / count
        if promise.epsilon > 0 and sizes[by_size[count - 1]] >= least_units(promise.epsilon, confidence):
            return tuple(sorted(by_size[:count]))
    return ()


def _test_path(units: Units, fit_units: Units, promise: Promise, *, bound: float | None) -> Vector:
    """Return one p-value a candidate."""
    if not len(units) or not len(fit_units):
        return np.ones(units.losses.shape[1])
    largest = max(float(units.masses.max()), float(fit_units.masses.max())) if bound is None else bound
    return p_values(
        units.losses,
        units.masses,
        limit=promise.epsilon,
        confidence=promise.confidence,
        belief=Belief.from_losses(fit_units.losses, fit_units.masses),
        bound=largest,
    )


def _forecast(fit_units: Units, fit_walk: Walk, promise: Promise, *, n_labels: int, seed: int) -> int | None:
    """Return the labels needed for the first candidate that moves a share worth having."""
    reached = np.flatnonzero(fit_walk.shares >= WORTH_HAVING - 1e-9)
    if not reached.size or promise.epsilon == 0.0:
        return None
    last = int(reached[0])
    goal = Goal(
        epsilon=promise.epsilon,
        confidence=promise.confidence,
        predicted_loss=float(fit_walk.predicted[last]),
        labels_per_unit=n_labels / len(fit_units),
    )
    return forecast_labels(Units(losses=fit_units.losses[:, : last + 1], masses=fit_units.masses), goal, seed=seed)
