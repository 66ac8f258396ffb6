"""A policy from a log that nobody labelled: shares of the traffic, or the field's default thresholds; no guarantee.

Reads prompts, a scorer whose probabilities are made up, and prices; promises nothing and says so.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from llmtier.core.errors import InputFileError, UsageError
from llmtier.core.policy import GoalKind, Policy, PolicyTier, ScorerRef
from llmtier.core.prompt import Prompt
from llmtier.fit.judge import Rule
from llmtier.fit.prices import Prices
from llmtier.fit.settings import FitSettings, FittedPolicy
from llmtier.score.preset import GAP, meet_shares, plain_entropy
from llmtier.score.scorer import FittedScorer
from llmtier.score.signals import NO_SIGNALS, Signals

METHOD = "thresholds on complexity; no guarantee: nothing in the log says which answers were right"


def fit_unlabelled(
    prompts: Sequence[Prompt],
    prices: Prices,
    settings: FitSettings,
    *,
    scorer: FittedScorer[Any] | None = None,
    signals: Sequence[Signals] | None = None,
) -> FittedPolicy:
    """Return a policy of all tiers, the reference being the dearest unless another is named.

    Args:
        prompts: Traffic like that to be served; never empty.
        prices: Of the tiers.
        settings: The goal is a share of the traffic for each tier, or the default thresholds.
        scorer: Made of seed sentences; its tiers are ``tiers_of(prices, settings)``. ``None`` takes plain entropy.
        signals: Of each prompt.

    Raises:
        InputFileError: The goal needs labels.
        UsageError: A share is asked for a tier that is not there.
    """
    goal = settings.goal
    if goal.kind not in {GoalKind.TARGET_SHARES, GoalKind.DEFAULT_THRESHOLDS}:
        raise InputFileError(
            f"none of the {len(prompts)} prompts has a score, so no {goal.describe()} can be promised; ask the tiers "
            "first: 'llmtier replay LOG -o outcomes.parquet', then give its output; or set --target-shares, "
            "which promise nothing"
        )
    tiers = tiers_of(prices, settings)
    check_shares(settings, tiers)
    fitted: FittedScorer[Any] = plain_entropy(tiers) if scorer is None else scorer
    if goal.kind is GoalKind.TARGET_SHARES:
        fitted = meet_shares(fitted, prompts, goal.shares, signals)
    given = [NO_SIGNALS] * len(prompts) if signals is None else signals
    rule = Rule(prices=prices, reference=tiers[-1], gap=GAP, fallback=settings.fallback)
    served = [
        rule.choose(fitted.probabilities(prompt, one), domain=prompt.domain)
        for prompt, one in zip(prompts, given, strict=True)
    ]
    return FittedPolicy(policy=_make_policy(rule, fitted, served, settings), scorer=fitted)


def _make_policy(rule: Rule, fitted: FittedScorer[Any], served: Sequence[str], settings: FitSettings) -> Policy:
    prices = rule.prices
    return Policy(
        tiers=tuple(
            PolicyTier(
                name=tier,
                checkpoint_digest=prices.profiles[tier].checkpoint_digest if tier in prices.profiles else None,
                usd_per_request=prices.usd[tier],
                accuracy=None,
                share=served.count(tier) / len(served),
                profile_digest=settings.profile_digests.get(tier),
            )
            for tier in prices.by_cost
        ),
        reference=rule.reference,
        scorer=ScorerRef(
            kind=fitted.kind,
            file="policy.scorer.json",
            sha256=hashlib.sha256(fitted.to_bytes()).hexdigest(),
            embedder=settings.embedder,
        ),
        max_accuracy_gap=GAP,
        goal=settings.goal,
        fallback=settings.fallback,
        judgement=None,
        inputs=dict(settings.inputs),
        warnings=(METHOD,),
    )


def tiers_of(prices: Prices, settings: FitSettings) -> tuple[str, ...]:
    """Return the tiers, cheapest first and the reference last.

    Raises:
        UsageError: The reference is none of them.
    """
    by_cost = prices.by_cost
    reference = by_cost[-1] if settings.reference is None else settings.reference
    if reference not in by_cost:
        raise UsageError(f"reference tier {reference} is not among the tiers to fit: {', '.join(by_cost)}")
    return (*(tier for tier in by_cost if tier != reference), reference)


def check_shares(settings: FitSettings, tiers: Sequence[str]) -> None:
    """Refuse shares of tiers that are not there.

    Raises:
        UsageError: Names them.
    """
    unknown = [tier for tier in settings.goal.shares if tier not in tiers]
    if unknown:
        raise UsageError(f"--target-shares names {', '.join(unknown)}; the tiers to fit are {', '.join(tiers)}")
