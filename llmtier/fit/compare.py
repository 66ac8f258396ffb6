"""What else could have been done with the judged prompts: single tiers, controls, the oracle.

Reads labelled rows and where the policy sent them; returns a small table for people. Fits nothing:
the controls spend exactly what the policy spends, with its shares of the tiers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.fit.judge import Routed
from llmtier.fit.rows import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One way to answer the judged prompts.

    Attributes:
        name: A tier's name (everything on it), ``policy``, ``random``, ``length`` or ``oracle``.
        accuracy: Mean score.
        usd_per_request: Mean cost.
    """

    name: str
    accuracy: float
    usd_per_request: float


def compare(rows: Rows, routed: Routed, *, usd: Mapping[str, float]) -> tuple[Comparison, ...]:
    """Return single tiers by ascending cost, the policy, ``random``, ``length`` and the oracle.

    ``random`` is the expectation of sending prompts at random with the policy's shares;
    ``length`` sends the shortest prompts to the cheapest tier, with the same shares; the oracle
    sends each prompt to the cheapest tier that scores no less than the reference.
    """
    by_cost = sorted(rows.tiers, key=lambda tier: (usd[tier], tier))
    singles = [
        Comparison(name=tier, accuracy=float(rows.scores_of(tier).mean()), usd_per_request=usd[tier])
        for tier in by_cost
    ]
    mean_usd = float(routed.usd.mean())
    at_random = sum(routed.share(tier) * float(rows.scores_of(tier).mean()) for tier in by_cost)
    by_length = _scores_by_length(rows, routed, by_cost)
    return (
        *singles,
        Comparison(name="policy", accuracy=float(routed.scores.mean()), usd_per_request=mean_usd),
        Comparison(name="random", accuracy=at_random, usd_per_request=mean_usd),
        Comparison(name="length", accuracy=float(by_length.mean()), usd_per_request=mean_usd),
        _oracle(rows, by_cost, routed.reference, usd),
    )


def _scores_by_length(rows: Rows, routed: Routed, by_cost: list[str]) -> NDArray[np.float64]:
    tiers = sorted(routed.tiers, key=by_cost.index)
    lengths = [len(item.prompt.last_user_text) for item in rows.labelled]
    shortest_first = np.argsort(lengths, kind="stable").tolist()
    chosen = zip(shortest_first, tiers, strict=True)
    return np.array([rows.labelled[row].scores[tier] for row, tier in chosen], dtype=np.float64)


def _oracle(rows: Rows, by_cost: list[str], reference: str, usd: Mapping[str, float]) -> Comparison:
    scores = np.stack([rows.scores_of(tier) for tier in by_cost], axis=1)
    chosen = np.argmax(scores >= rows.scores_of(reference)[:, np.newaxis], axis=1)
    prices = np.array([usd[tier] for tier in by_cost])
    return Comparison(
        name="oracle",
        accuracy=float(scores[np.arange(len(rows)), chosen].mean()),
        usd_per_request=float(prices[chosen].mean()),
    )
