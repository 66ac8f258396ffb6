"""From a goal to the rule that is kept and what is promised of it.

Reads the fit split, which fixes the path of thresholds, and the other split, which tests it; returns the gap, its
guarantee and what each threshold of the path would have done. Fits nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmtier.core.decision import Objective
from llmtier.core.errors import NegativeAnswerError
from llmtier.core.policy import GoalKind, Guarantee
from llmtier.fit.certify import Certified, Promise, certify, certify_domains, count_passed
from llmtier.fit.path import Evidence, make_gaps
from llmtier.fit.rows import Rows
from llmtier.fit.search import Candidate, FitTable
from llmtier.fit.settings import FitSettings, PathStep
from llmtier.fit.units import Units, group_rows, sum_units
from llmtier.stats.betting import Belief, mean_upper_bound, p_values

Matrix = NDArray[np.float64]

POPULATION = (
    "the decisions of an unloaded system on traffic like the labelled prompts, one prompt like another; "
    "what the gateway decides otherwise under load, and by users' rules, is counted, not promised"
)
METHOD = "fixed-sequence test by betting on the paired loss (Learn-then-Test), on prompts that fitted nothing"
METHOD_ONE = "upper bound by betting on the paired loss, at a threshold fixed on other prompts"
"""Where the threshold follows from a budget or from shares, there is one test and no sequence."""
METHOD_UTILITY = "upper bound by betting on the paired loss, of a rule fixed on other prompts"
POPULATION_UTILITY = f"{POPULATION}; it takes every prompt to be as long as those profiled, since longer ones wait longer and may go elsewhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The rule that is kept.

    Attributes:
        tiers: That serve; the reference alone where nothing cheaper is certain enough.
        gap: Of all domains without one of their own; ``None`` leaves those on the reference.
        gap_by_domain: Of domains that have their own.
        guarantee: What holds with confidence; ``None`` when nothing does.
        method: How it was found, in one line.
        labels_needed: See ``Policy.labels_needed``.
        steps: What each threshold would cost and buy.
    """

    tiers: tuple[str, ...]
    gap: float | None
    guarantee: Guarantee | None
    method: str
    gap_by_domain: Mapping[str, float] = field(default_factory=dict)
    labels_needed: int | None = None
    steps: tuple[PathStep, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Both halves of the labels, of the chosen tiers.

    Attributes:
        fit: The fit rows, predicted out of fold.
        judged: The other rows.
        fit_rows: The fit rows themselves, for units and domains; likewise ``judged_rows``.
    """

    fit: FitTable
    judged: FitTable
    fit_rows: Rows
    judged_rows: Rows

    @property
    def reference_column(self) -> int:
        """Index of the reference among the chosen tiers."""
        return self.fit.tiers.index(self.fit.reference)

    @property
    def gaps(self) -> tuple[float, ...]:
        """The path: gaps at even steps of the fit split's traffic."""
        return make_gaps(self.fit.probabilities, self.reference_column, weights=self.fit.weights)


def hold(chosen: Candidate, splits: Splits, *, settings: FitSettings) -> Held:
    """Return the rule that serves the goal, certified on the judged rows.

    Raises:
        NegativeAnswerError: The accuracy asked for cannot be certified even by the reference.
    """
    match settings.goal.kind:
        case GoalKind.MAX_ACCURACY_LOSS:
            return _hold_domains(splits, settings) if settings.per_domain else _hold_loss(splits, settings)
        case GoalKind.MIN_ACCURACY:
            return _hold_floor(splits, settings)
        case _:
            return _hold_at(chosen, splits, settings)


def _hold_loss(splits: Splits, settings: FitSettings) -> Held:
    """Walk the path while the loss is certified."""
    limit = settings.goal.value or 0.0
    found = certify(
        _evidence(splits.fit, splits.fit_rows),
        _evidence(splits.judged, splits.judged_rows),
        _asked(settings),
        reference_column=splits.reference_column,
        seed=settings.seed,
    )
    passed = [gap for gap in found.gaps if found.gap is not None and gap <= found.gap]
    return Held(
        tiers=splits.fit.tiers if passed else (splits.fit.reference,),
        gap=0.0 if found.gap is None else found.gap,
        guarantee=_guarantee(_loss_statement(limit, settings), splits, found.n_units, settings, max_loss=limit),
        method=METHOD,
        labels_needed=_labels_in_all(found, splits),
        steps=_steps(splits.judged, found.gaps, certified=passed, is_tested=True),
    )


def _hold_domains(splits: Splits, settings: FitSettings) -> Held:
    """Walk the path in each domain; one without enough prompts stays on the reference."""
    limit = settings.goal.value or 0.0
    names = (_domains(splits.fit_rows), _domains(splits.judged_rows))
    found = certify_domains(
        _evidence(splits.fit, splits.fit_rows),
        _evidence(splits.judged, splits.judged_rows),
        _asked(settings),
        domains=names,
        reference_column=splits.reference_column,
        seed=settings.seed,
    )
    own = {name: one.gap for name, one in found.items() if one.gap is not None}
    named = {name: gap for name, gap in own.items() if name}
    statement = f"{_loss_statement(limit, settings)}, in each of {len(found)} domains at once"
    n_units = sum(one.n_units for one in found.values())
    return Held(
        tiers=splits.fit.tiers if own else (splits.fit.reference,),
        gap=own.get(""),
        gap_by_domain=named,
        guarantee=_guarantee(statement, splits, n_units, settings, max_loss=limit),
        method=METHOD,
        steps=_steps(splits.judged, splits.gaps, certified=(), is_tested=False),
    )


def _hold_floor(splits: Splits, settings: FitSettings) -> Held:
    """Walk the path from "all on the reference" on while the mean score is certified to be above the floor."""
    floor = settings.goal.value or 0.0
    gaps = splits.gaps
    fit_units, units = (
        sum_units(_losses(table, gaps), table.weights, group_rows(rows.labelled))
        for table, rows in ((splits.fit, splits.fit_rows), (splits.judged, splits.judged_rows))
    )
    order = units.shuffled(settings.seed)
    p = p_values(
        order.losses,
        order.masses,
        limit=0.0,
        confidence=settings.confidence,
        belief=Belief.from_losses(fit_units.losses, fit_units.masses),
        bound=max(float(units.masses.max()), float(fit_units.masses.max())),
    )
    n_passed = count_passed(p, settings.confidence)
    if n_passed == 0:
        raise NegativeAnswerError(_describe_reachable(splits, settings))
    passed = gaps[: n_passed - 1]
    statement = f"mean score of at least {floor:g} with {settings.confidence:.0%} confidence"
    return Held(
        tiers=splits.fit.tiers if passed else (splits.fit.reference,),
        gap=passed[-1] if passed else 0.0,
        guarantee=_guarantee(statement, splits, len(units), settings, min_accuracy=floor),
        method=METHOD,
        steps=_steps(splits.judged, gaps, certified=passed, is_tested=True),
    )


def _hold_at(chosen: Candidate, splits: Splits, settings: FitSettings) -> Held:
    """Keep the rule that budget, shares or utility ask for, and bound what it loses."""
    judged = splits.judged
    is_utility = settings.objective is Objective.UTILITY
    which = (
        "where the highest utility decides"
        if is_utility
        else f"at the threshold that {settings.goal.describe()} led to"
    )
    losses = judged.losses_at(judged.route(chosen.gap))[:, np.newaxis]
    units = sum_units(losses, judged.weights, group_rows(splits.judged_rows.labelled))
    bound = _upper_bound(units, settings) if len(chosen.tiers) > 1 else 0.0
    statement = (
        f"mean score at most {bound:.4f} below {judged.reference}'s with {settings.confidence:.0%} confidence, {which}"
    )
    is_known = bound < 1.0
    return Held(
        tiers=chosen.tiers,
        gap=chosen.gap,
        guarantee=_guarantee(statement, splits, len(units), settings, max_loss=bound) if is_known else None,
        method=_method(settings),
        steps=() if is_utility else _steps(judged, splits.gaps, certified=(), is_tested=False),
    )


def _method(settings: FitSettings) -> str:
    match settings.goal.kind:
        case GoalKind.MAX_ACCURACY_LOSS | GoalKind.MIN_ACCURACY:
            return METHOD
        case GoalKind.UTILITY:
            return METHOD_UTILITY
        case _:
            return METHOD_ONE


def _asked(settings: FitSettings) -> Promise:
    limit = settings.goal.value or 0.0
    return Promise(epsilon=min(limit, 1.0 - 1e-9), confidence=settings.confidence)  # at 1 nothing is left to test


def _evidence(table: FitTable, rows: Rows) -> Evidence:
    groups = group_rows(rows.labelled)
    return Evidence(probabilities=table.probabilities, scores=table.scores, weights=table.weights, groups=groups)


def _domains(rows: Rows) -> list[str]:
    return [item.prompt.domain or "" for item in rows.labelled]


def _upper_bound(units: Units, settings: FitSettings) -> float:
    order = units.shuffled(settings.seed)
    return mean_upper_bound(order.losses[:, 0], order.masses, confidence=settings.confidence)


def _labels_in_all(found: Certified, splits: Splits) -> int | None:
    """Return the forecast for both halves together: it speaks of the half that tests."""
    if found.labels_needed is None:
        return None
    n_all = len(splits.fit_rows) + len(splits.judged_rows)
    return round(found.labels_needed * n_all / max(len(splits.judged_rows), 1))


def _loss_statement(limit: float, settings: FitSettings) -> str:
    return f"mean score at most {limit:g} below the reference's with {settings.confidence:.0%} confidence"


def _guarantee(  # a sentence and the facts it rests on
    statement: str,
    splits: Splits,
    n_units: int,
    settings: FitSettings,
    *,
    max_loss: float | None = None,
    min_accuracy: float | None = None,
) -> Guarantee:
    is_by_length = settings.weights is not None and settings.weights.latency_per_s > 0
    return Guarantee(
        statement=statement,
        max_loss=max_loss,
        min_accuracy=min_accuracy,
        confidence=settings.confidence,
        n_labels=len(splits.judged_rows),
        n_units=n_units,
        method=_method(settings),
        population=POPULATION_UTILITY if is_by_length else POPULATION,
    )


def _losses(table: FitTable, gaps: Sequence[float]) -> Matrix:
    """Return baseline less score when all goes to the reference, then at each gap, shape (n, 1 + n_gaps)."""
    alone = np.full(len(table.scores), table.tiers.index(table.reference), dtype=np.intp)
    columns = [alone, *(table.route(gap) for gap in gaps)]
    return np.stack([table.losses_at(one) for one in columns], axis=1)


def _steps(
    judged: FitTable, gaps: Sequence[float], *, certified: Sequence[float], is_tested: bool
) -> tuple[PathStep, ...]:
    """Return what each threshold does on the judged rows."""
    column = judged.tiers.index(judged.reference)
    rows = np.arange(len(judged.scores))
    reference_score = judged.mean(judged.scores[:, column])
    steps = []
    for gap in gaps:
        columns = judged.route(gap)
        score = judged.mean(judged.scores[rows, columns])
        steps.append(
            PathStep(
                gap=gap,
                share_off_reference=judged.mean((columns != column).astype(np.float64)),
                usd_per_request=judged.mean(judged.usd[rows, columns]),
                accuracy=score,
                loss=reference_score - score,
                is_certified=(gap in certified) if is_tested else None,
            )
        )
    return tuple(steps)


def _describe_reachable(splits: Splits, settings: FitSettings) -> str:
    """Return what can be certified instead of the floor that was asked for."""
    judged = splits.judged
    scores = judged.scores[:, [judged.tiers.index(judged.reference)]]
    units = sum_units(-scores, judged.weights, group_rows(splits.judged_rows.labelled))
    reachable = max(-_upper_bound(units, settings), 0.0)
    return (
        f"an accuracy of {settings.goal.value:g} cannot be certified: {judged.reference} scores "
        f"{judged.mean(scores[:, 0]):.4f} on {len(splits.judged_rows)} prompts, which certifies {reachable:.4f} at "
        f"{settings.confidence:.0%}; ask for less, or score more prompts with 'llmtier replay'"
    )
