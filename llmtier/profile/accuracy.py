"""Turn scored answers into accuracy per domain, with bounds. Pure."""

from collections.abc import Iterable, Sequence

from llmtier.core.interval import Interval
from llmtier.core.profile import AccuracyEstimate
from llmtier.core.prompt import Outcome, Prompt
from llmtier.stats.intervals import mean_interval, wilson
from llmtier.store.profiles import AccuracyItem

ALL_DOMAINS = "all"


def to_items(prompts: Iterable[Prompt], outcomes: Iterable[Outcome]) -> list[AccuracyItem]:
    """Return one item per labelled prompt; ``outcomes`` belong to ``prompts`` in order.

    A failed request scores 0: it gave its user no right answer.
    """
    return [
        AccuracyItem(
            prompt_id=prompt.id,
            domain=prompt.domain,
            scorer=prompt.scorer.value,
            expected=prompt.answer,
            text=outcome.text,
            score=outcome.score if outcome.score is not None else 0.0,
            error=outcome.error,
        )
        for prompt, outcome in zip(prompts, outcomes, strict=True)
        if prompt.answer is not None
    ]


def estimate_accuracy(items: Sequence[AccuracyItem]) -> tuple[AccuracyEstimate, ...]:
    """Return the estimate of all items, then of each domain by name; nothing without items."""
    if not items:
        return ()
    domains = sorted({item.domain for item in items if item.domain is not None})
    by_domain = [_estimate(domain, [item for item in items if item.domain == domain]) for domain in domains]
    return (_estimate(ALL_DOMAINS, items), *by_domain)


def _estimate(domain: str, items: Sequence[AccuracyItem]) -> AccuracyEstimate:
    scores = [item.score for item in items]
    return AccuracyEstimate(
        domain=domain,
        n=len(scores),
        n_failed=sum(item.error is not None for item in items),
        accuracy=sum(scores) / len(scores),
        interval=_interval(scores),
    )


def _interval(scores: Sequence[float]) -> Interval:
    """Wilson's for right-or-wrong scores, else Student's t."""
    if all(score in {0.0, 1.0} for score in scores):
        return wilson(sum(scores), len(scores))
    return mean_interval(scores)
