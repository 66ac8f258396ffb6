"""What each labelled prompt would be worth on each tier: as predicted before the answer, and as it came out.

Reads weights, prices, predictions and scores; returns arrays for the search. The first array holds, number by number, what
``UtilityWeights.value`` gives the rule that serves; a test holds the two equal. Chooses nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.core.decision import Offer
from llmtier.core.errors import PlanError
from llmtier.core.utility import UtilityWeights
from llmtier.fit.prices import Prices
from llmtier.fit.rows import Rows

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilities:
    """Utility of each row on each tier, shape (n, n_tiers).

    Attributes:
        predicted: By P(correct), and latency and cost of an idle tier: what decides.
        realised: By the score, the same latency, and what the row itself cost: what it led to.
    """

    predicted: Matrix
    realised: Matrix

    def only(self, columns: Sequence[int]) -> "Utilities":
        """Return those of some of the tiers."""
        return Utilities(predicted=self.predicted[:, columns], realised=self.realised[:, columns])


def make_utilities(weights: UtilityWeights, rows: Rows, probabilities: Matrix, prices: Prices) -> Utilities:
    """Return the utilities of ``rows``, whose tiers are the columns of ``probabilities``.

    Raises:
        PlanError: Latency or cost counts, and that of a tier is unknown.
    """
    offers = [prices.offer(tier, accuracy=None) for tier in rows.tiers]
    burdens = [weights.burden(e2el_s=offer.e2el_s, usd=offer.usd) for offer in offers]
    _check_known(offers, burdens)
    waiting = [weights.burden(e2el_s=offer.e2el_s, usd=0.0) for offer in offers]
    return Utilities(
        predicted=weights.accuracy * probabilities - np.array(burdens, dtype=np.float64),
        realised=weights.accuracy * rows.scores
        - np.array(waiting, dtype=np.float64)
        - weights.cost_per_usd_1k * 1000 * rows.usd,
    )


def _check_known(offers: Sequence[Offer], burdens: Sequence[float | None]) -> None:
    unknown = [offer.tier for offer, burden in zip(offers, burdens, strict=True) if burden is None]
    if unknown:
        raise PlanError(
            f"--weights counts latency or cost, and no profile tells those of {', '.join(unknown)}: run 'llmtier profile', "
            "name other tiers, or leave that weight out (--costs tells no latency)"
        )
