"""Find the cheapest rule whose accuracy loss stays in bounds on the fit rows.

Reads out-of-fold probabilities, scores and costs as arrays; returns the tiers and the gap. The
gap is the one knob: a tier may serve a prompt while its P(correct) is at most that far below the
reference tier's. ``choose_columns`` is ``route.decide`` for all rows at once; a test holds the two
equal. Reads no prompt and judges nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.stats.intervals import upper_mean_bound

Matrix = NDArray[np.float64]

N_GAPS = 201
"""Gaps tried for each set of tiers: 0 and the quantiles of the predicted differences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitTable:
    """What the search reads: one row a prompt, one column a tier.

    Attributes:
        tiers: Names of the columns, ascending by (mean cost, name), the order ``decide`` takes them in.
        usd: Cost of each row on each tier, shape (n, n_tiers).
        probabilities: P(correct), out of fold, shape (n, n_tiers).
        scores: In [0, 1], shape (n, n_tiers).
        reference: One of ``tiers``.
    """

    tiers: tuple[str, ...]
    usd: Matrix
    probabilities: Matrix
    scores: Matrix
    reference: str

    def only(self, tiers: Iterable[str]) -> "FitTable":
        """Return the table of some of its tiers."""
        wanted = set(tiers)
        columns = [column for column, tier in enumerate(self.tiers) if tier in wanted]
        return FitTable(
            tiers=tuple(self.tiers[column] for column in columns),
            usd=self.usd[:, columns],
            probabilities=self.probabilities[:, columns],
            scores=self.scores[:, columns],
            reference=self.reference,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One rule and how it does on the fit rows.

    Attributes:
        tiers: Ascending by cost; contains the reference.
        gap: ``Policy.max_accuracy_gap``.
        usd_per_request: Mean cost.
        loss_bound: Upper bound of the mean paired loss.
    """

    tiers: tuple[str, ...]
    gap: float
    usd_per_request: float
    loss_bound: float


def choose_columns(probabilities: Matrix, reference_column: int, gap: float) -> NDArray[np.intp]:
    """Return, for each row, the first column whose P(correct) is at most ``gap`` below the reference's.

    Args:
        probabilities: Shape (n, n_tiers), columns ascending by (cost, name).
        reference_column: Index of the reference tier.
        gap: In [0, 1].
    """
    needs = np.maximum(probabilities[:, reference_column] - gap, 0.0)
    return np.asarray(np.argmax(probabilities >= needs[:, np.newaxis], axis=1), dtype=np.intp)


def find_cheapest(table: FitTable, sets: Iterable[tuple[str, ...]], *, max_loss: float, confidence: float) -> Candidate:
    """Return the cheapest candidate within ``max_loss``, everything on the reference when there is none.

    Equal costs go to fewer tiers, then to the smaller gap.
    """
    alone = table.only((table.reference,))
    fallback = Candidate(tiers=alone.tiers, gap=0.0, usd_per_request=float(alone.usd.mean()), loss_bound=0.0)
    found = [
        candidate
        for tiers in sets
        for candidate in walk_gaps(table.only(tiers), confidence=confidence)
        if candidate.loss_bound <= max_loss and candidate.usd_per_request < fallback.usd_per_request
    ]
    return min(found, key=_rank, default=fallback)


def walk_gaps(table: FitTable, *, confidence: float) -> Iterator[Candidate]:
    """Yield the rule at each gap of the grid, by ascending gap."""
    reference_column = table.tiers.index(table.reference)
    rows = np.arange(len(table.scores))
    reference_scores = table.scores[:, reference_column]
    for gap in gap_grid(table.probabilities, reference_column):
        columns = choose_columns(table.probabilities, reference_column, gap)
        losses = reference_scores - table.scores[rows, columns]
        yield Candidate(
            tiers=table.tiers,
            gap=gap,
            usd_per_request=float(table.usd[rows, columns].mean()),
            loss_bound=upper_mean_bound(losses, confidence=confidence),
        )


def gap_grid(probabilities: Matrix, reference_column: int) -> list[float]:
    """Return ascending gaps in [0, 1]: 0 and quantiles of how far each tier is below the reference."""
    below = probabilities[:, [reference_column]] - np.delete(probabilities, reference_column, axis=1)
    positive = below[below > 0]
    if positive.size == 0:
        return [0.0]
    quantiles = np.quantile(positive, np.linspace(0.0, 1.0, N_GAPS))
    # Rounded up to 1e-6, so that a policy file is readable and a gap still admits the row it came from.
    rounded = np.minimum(np.ceil(quantiles * 1e6) / 1e6, 1.0)
    return [0.0, *np.unique(rounded).tolist()]


def _rank(candidate: Candidate) -> tuple[float, int, float, tuple[str, ...]]:
    return (candidate.usd_per_request, len(candidate.tiers), candidate.gap, candidate.tiers)
