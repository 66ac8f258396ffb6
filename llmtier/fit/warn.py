"""What is odd about a fit: tiers that nothing reaches, domains without data, a log whose halves differ.

Reads the judged rows; decides nothing. Each warning is one line that says what to do.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from llmtier.core.policy import Policy, PolicyTier
from llmtier.fit.rows import Rows

MIN_DOMAIN_ROWS = 20
_DRIFT_Z = 3.0  # standard errors: a warning in one log of 370 that does not drift


def find_warnings(tiers: Sequence[PolicyTier], rows: Rows, *, reference: str) -> tuple[str, ...]:
    """Return a line for each thing that a user should know."""
    return (*_dead_tiers(tiers, reference), *_thin_domains(rows), *_drift(rows, reference))


def lacking_labels(policy: Policy) -> str | None:
    """Return how many labels would probably allow a cheaper policy; ``None`` when that is not the point."""
    if policy.labels_needed is None:
        return None
    judged = policy.judgement
    n = 0 if judged is None else judged.n_fit + judged.n_judge
    if policy.labels_needed <= n:
        return None
    return (
        f"about {policy.labels_needed:,} labelled prompts, {n:,} are there, would probably allow 5 % of the traffic "
        "on a cheaper tier; score more with 'llmtier replay'"
    )


def _dead_tiers(tiers: Sequence[PolicyTier], reference: str) -> Iterator[str]:
    for tier in tiers:
        if tier.share == 0.0 and tier.name != reference:
            yield f"{tier.name} serves none of the judged prompts: the rule never takes it; leave it out with --tiers"


def _thin_domains(rows: Rows) -> Iterator[str]:
    counts = Counter(item.prompt.domain for item in rows.labelled if item.prompt.domain is not None)
    thin = sorted(domain for domain, count in counts.items() if count < MIN_DOMAIN_ROWS)
    if thin:
        named = ", ".join(thin[:3]) + (f" and {len(thin) - 3} more" if len(thin) > 3 else "")
        yield f"{len(thin)} of {len(counts)} domains have fewer than {MIN_DOMAIN_ROWS} judged prompts: {named}"
    n_without = sum(item.prompt.domain is None for item in rows.labelled)
    if counts and n_without:
        yield f"{n_without} of {len(rows)} judged prompts name no domain; theirs is guessed from the text"


def _drift(rows: Rows, reference: str) -> Iterator[str]:
    """Compare the earlier half of the log with the later, where it tells the time."""
    arrivals = [item.prompt.arrival_s for item in rows.labelled]
    known = np.array([math.nan if arrival is None else arrival for arrival in arrivals])
    if len(rows) < 2 * MIN_DOMAIN_ROWS or np.isnan(known).any() or known.min() == known.max():
        return
    is_late = known > np.median(known)
    for tier in rows.tiers:
        values = rows.scores_of(tier) if tier == reference else rows.scores_of(reference) - rows.scores_of(tier)
        early, late = values[~is_late], values[is_late]
        spread = math.sqrt(float(early.var()) / max(early.size, 1) + float(late.var()) / max(late.size, 1))
        shift = float(late.mean() - early.mean())
        if spread > 0 and abs(shift) > _DRIFT_Z * spread:
            what = f"accuracy of {tier}" if tier == reference else f"what {tier} loses against {reference}"
            yield (
                f"the log drifts: {what} moved by {shift:+.3f} between its halves; "
                "a promise speaks of traffic like all of it, so fit on the latest part"
            )
