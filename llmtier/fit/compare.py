"""What else could have been done with the judged prompts: single tiers, controls, the oracle.

Reads labelled rows and where the policy sent them; returns a small table for people. Fits nothing:
the controls spend exactly what the policy spends, with its shares of the tiers.
"""

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


def compare(rows: Rows, routed: Routed) -> tuple[Comparison, ...]:
    """Return single tiers by ascending cost, the policy, ``random``, ``length`` and the oracle.

    ``random`` is the expectation of sending prompts at random with the policy's shares;
    ``length`` sends the shortest prompts to the cheapest tier, with the same shares; the oracle
    sends each prompt to its cheapest tier among those that score no less than the reference.
    """
    by_cost = sorted(rows.tiers, key=lambda tier: (routed.mean(rows.usd_of(tier)), tier))
    singles = {tier: _pick(tier, rows, routed, np.full(len(rows), rows.tiers.index(tier))) for tier in by_cost}
    return (
        *singles.values(),
        Comparison(name="policy", accuracy=routed.mean(routed.scores), usd_per_request=routed.mean(routed.usd)),
        Comparison(
            name="random",
            accuracy=sum(routed.share(tier) * single.accuracy for tier, single in singles.items()),
            usd_per_request=sum(routed.share(tier) * single.usd_per_request for tier, single in singles.items()),
        ),
        _pick("length", rows, routed, _by_length(rows, routed, by_cost)),
        _pick("oracle", rows, routed, _best(rows, routed.reference)),
    )


def _pick(name: str, rows: Rows, routed: Routed, columns: NDArray[np.intp]) -> Comparison:
    """Return how the rows do when each goes to the tier of its column."""
    places = (np.arange(len(rows)), columns)
    return Comparison(
        name=name, accuracy=routed.mean(rows.scores[places]), usd_per_request=routed.mean(rows.usd[places])
    )


def _by_length(rows: Rows, routed: Routed, by_cost: list[str]) -> NDArray[np.intp]:
    """Return the columns when the shortest prompts go to the cheapest tier, with the policy's shares."""
    lengths = [len(item.prompt.last_user_text) for item in rows.labelled]
    columns = np.empty(len(rows), dtype=np.intp)
    columns[np.argsort(lengths, kind="stable")] = [
        rows.tiers.index(tier) for tier in sorted(routed.tiers, key=by_cost.index)
    ]
    return columns


def _best(rows: Rows, reference: str) -> NDArray[np.intp]:
    """Return the cheapest column of each row that scores no less than the reference."""
    is_good = rows.scores >= rows.scores_of(reference)[:, np.newaxis]
    return np.asarray(np.argmin(np.where(is_good, rows.usd, np.inf), axis=1), dtype=np.intp)
