"""Stage 3: labelled prompts and prices to a policy, its scorer and what can be promised of it.

Reads values that ``store`` has read and returns values for ``store`` to write. One half of the prompts fits the
scorer, chooses the tiers and fixes the path of thresholds; the other half certifies a threshold and judges the policy by
``route.decide``. Nothing that certifies was looked at before.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from llmtier.core.errors import NegativeAnswerError, UsageError
from llmtier.core.policy import GoalKind, Policy, ScorerRef
from llmtier.core.prompt import LabelledPrompt
from llmtier.fit.compare import compare
from llmtier.fit.judge import Routed, Rule, describe_tiers, route_rows, summarise
from llmtier.fit.prices import Prices, find_slo_misses, only
from llmtier.fit.promise import Held, Splits, hold
from llmtier.fit.rows import Rows, select_rows, split_rows
from llmtier.fit.search import (
    Candidate,
    FitTable,
    Matrix,
    find_cheapest,
    find_highest_utility,
    find_most_accurate,
    find_nearest_shares,
)
from llmtier.fit.settings import FitSettings, FittedPolicy
from llmtier.fit.topology import subsets, tier_sets
from llmtier.fit.unlabelled import check_shares
from llmtier.fit.utility import make_utilities
from llmtier.fit.warn import find_warnings
from llmtier.score.scorer import Scorer, fit_out_of_fold
from llmtier.score.signals import NO_SIGNALS, Signals

logger = logging.getLogger(__name__)

DEFAULT_SCORER_FILE = "policy.scorer.json"
_EVEN = 0.5  # confidence at which a bound is about the mean itself


def fit_policy(
    labelled: Sequence[LabelledPrompt],
    prices: Prices,
    settings: FitSettings,
    *,
    signals: Mapping[str, Signals] | None = None,
) -> FittedPolicy:
    """Fit scorer and thresholds on one half of the prompts, certify and judge on the other.

    Args:
        labelled: Prompts with scores by tier, in any order.
        prices: Of the tiers that may serve.
        settings: What is asked for.
        signals: By prompt id; ``None`` for none.

    Raises:
        UsageError: An unknown scorer, reference or tier.
        PlanError: A device of a profile cannot be read, or utility weighs a latency that none tells.
        InputFileError: The labels are absent or too few.
        NegativeAnswerError: The floor or the budget cannot be reached.
    """
    prices = _within_slo(prices, settings)
    by_cost = prices.by_cost
    rows, n_left_out = select_rows(labelled, by_cost, prices)
    fit_rows, judge_rows = split_rows(rows, seed=settings.seed)
    reference = _find_reference(settings.reference, fit_rows, prices)
    known = {} if signals is None else signals
    scorer, out_of_fold = fit_out_of_fold(
        settings.scorer_kind, fit_rows.labelled, by_cost, seed=settings.seed, signals=_signals_of(fit_rows, known)
    )
    table = _table(fit_rows, out_of_fold, prices, reference=reference, settings=settings)
    chosen = _choose_tiers(table, prices, settings)
    predicted = _predict_all(scorer, judge_rows, known)
    judged = _table(judge_rows, as_matrix(predicted, by_cost), prices, reference=reference, settings=settings)
    splits = Splits(
        fit=table.only(chosen.tiers), judged=judged.only(chosen.tiers), fit_rows=fit_rows, judged_rows=judge_rows
    )
    held = hold(chosen, splits, settings=settings)
    rule = Rule(
        prices=only(prices, held.tiers),
        reference=reference,
        gap=held.gap,
        fallback=settings.fallback,
        gap_by_domain=held.gap_by_domain,
        objective=settings.objective,
        weights=settings.weights,
    )
    routed = route_rows(rule, judge_rows, predicted)
    policy = _make_policy(rule, routed, judge_rows, scorer, held, settings, n_fit=len(fit_rows))
    logger.info("policy fitted", extra={"tiers": held.tiers, "gap": held.gap, "left_out": n_left_out})
    return FittedPolicy(
        policy=policy, scorer=scorer, comparisons=compare(judge_rows, routed), path=held.steps, n_left_out=n_left_out
    )


def _within_slo(prices: Prices, settings: FitSettings) -> Prices:
    """Leave out tiers that cannot meet the limits even when idle.

    Raises:
        NegativeAnswerError: None is left.
    """
    missed = find_slo_misses(prices, settings.slo)
    left = [tier for tier in prices.usd if tier not in missed]
    if not left:
        reasons = "; ".join(miss.describe() for misses in missed.values() for miss in misses)
        raise NegativeAnswerError(f"no tier meets the latency limits even when idle: {reasons}")
    for tier, misses in missed.items():
        logger.warning("tier left out: %s", "; ".join(miss.describe() for miss in misses), extra={"tier": tier})
    return only(prices, left)


def _find_reference(reference: str | None, rows: Rows, prices: Prices) -> str:
    if reference is None:
        means = [float(np.average(rows.scores_of(tier), weights=rows.weights)) for tier in rows.tiers]
        return max(zip(means, (prices.usd[tier] for tier in rows.tiers), rows.tiers, strict=True))[2]
    if reference not in rows.tiers:
        raise UsageError(f"reference tier {reference} is not among the tiers to fit: {', '.join(rows.tiers)}")
    return reference


def _signals_of(rows: Rows, known: Mapping[str, Signals]) -> list[Signals]:
    return [known.get(item.prompt.id, NO_SIGNALS) for item in rows.labelled]


def _predict_all(scorer: Scorer, rows: Rows, known: Mapping[str, Signals]) -> list[dict[str, float]]:
    pairs = zip(rows.labelled, _signals_of(rows, known), strict=True)
    return [scorer.probabilities(item.prompt, signals) for item, signals in pairs]


def as_matrix(predicted: Sequence[Mapping[str, float]], tiers: Sequence[str]) -> Matrix:
    """Return predictions as shape (n, n_tiers)."""
    table = [[row[tier] for tier in tiers] for row in predicted]
    return np.array(table, dtype=np.float64).reshape(len(predicted), len(tiers))


def _table(rows: Rows, probabilities: Matrix, prices: Prices, *, reference: str, settings: FitSettings) -> FitTable:
    goal, weights = settings.goal, settings.weights
    floor = goal.value if goal.kind is GoalKind.MIN_ACCURACY else None
    return FitTable(
        tiers=rows.tiers,
        usd=rows.usd,
        probabilities=probabilities,
        scores=rows.scores,
        reference=reference,
        baseline=rows.scores_of(reference) if floor is None else np.full(len(rows), floor),
        weights=rows.weights,
        utilities=None if weights is None else make_utilities(weights, rows, probabilities, prices),
    )


def _choose_tiers(table: FitTable, prices: Prices, settings: FitSettings) -> Candidate:
    """Return the tiers and the gap that serve the goal best on the fit rows.

    Raises:
        NegativeAnswerError: Nothing stays within the budget.
        UsageError: A share is asked for a tier that is not there.
    """
    goal = settings.goal
    sets = (
        list(tier_sets(prices.profiles, table.reference)) if prices.profiles else subsets(table.tiers, table.reference)
    )
    match goal.kind:
        case GoalKind.MAX_ACCURACY_LOSS:
            return _cheapest_or_all(table, sets, max_loss=goal.value or 0.0)
        case GoalKind.MIN_ACCURACY:
            return _cheapest_or_all(table, sets, max_loss=0.0)
        case GoalKind.BUDGET_USD_PER_1K:
            return _within_budget(table, sets, max_usd=(goal.value or 0.0) / 1000)
        case GoalKind.TARGET_SHARES | GoalKind.DEFAULT_THRESHOLDS:
            check_shares(settings, table.tiers)
            return find_nearest_shares(table, goal.shares)
        case GoalKind.UTILITY:
            return find_highest_utility(table, sets)


def _cheapest_or_all(table: FitTable, sets: Sequence[tuple[str, ...]], *, max_loss: float) -> Candidate:
    """Return the cheapest candidate; where that is the reference alone, the tiers that more labels might allow."""
    found = find_cheapest(table, sets, max_loss=max_loss, confidence=_EVEN)
    return found if len(found.tiers) > 1 else find_cheapest(table, sets, max_loss=1.0, confidence=_EVEN)


def _within_budget(table: FitTable, sets: Sequence[tuple[str, ...]], *, max_usd: float) -> Candidate:
    found = find_most_accurate(table, sets, max_usd=max_usd)
    if found is not None:
        return found
    single = {tier: table.mean(table.usd[:, column]) for column, tier in enumerate(table.tiers)}
    cheapest = min(single, key=lambda tier: (single[tier], tier))
    raise NegativeAnswerError(
        f"a budget of ${1000 * max_usd:g} for 1,000 requests cannot be kept: everything on {cheapest} costs "
        f"${1000 * single[cheapest]:.4g}"
    )


def _make_policy(  # noqa: PLR0913  # the parts that a policy is put together from
    rule: Rule,
    routed: Routed,
    rows: Rows,
    scorer: Scorer,
    held: Held,
    settings: FitSettings,
    *,
    n_fit: int,
) -> Policy:
    state = scorer.to_bytes()
    tiers = describe_tiers(rule, rows, routed, settings.profile_digests)
    return Policy(
        tiers=tiers,
        reference=rule.reference,
        scorer=ScorerRef(
            kind=scorer.kind,
            file=DEFAULT_SCORER_FILE,
            sha256=hashlib.sha256(state).hexdigest(),
            embedder=settings.embedder,
        ),
        max_accuracy_gap=rule.gap,
        gap_by_domain=dict(rule.gap_by_domain),
        goal=settings.goal,
        guarantee=held.guarantee,
        fallback=settings.fallback,
        judgement=summarise(routed, n_fit=n_fit, confidence=settings.confidence, method=held.method),
        labels_needed=held.labels_needed,
        inputs=dict(settings.inputs),
        warnings=find_warnings(tiers, rows, reference=rule.reference),
        objective=rule.objective,
        weights=rule.weights,
    )
