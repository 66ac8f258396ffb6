"""Find on the fit rows which tiers and which gap serve a goal best, and the path that leads there.

Reads out-of-fold probabilities, scores and costs as arrays; returns the tiers and the gap. The
gap is the one knob: a tier may serve a prompt while its P(correct) is at most that far below the
reference tier's; where utilities decide there is none. ``FitTable.route`` is ``route.decide`` for
all rows at once; tests hold the two equal. Reads no prompt, judges and certifies nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.fit.rows import equal_weights
from llmtier.fit.utility import Utilities
from llmtier.stats.intervals import upper_mean_bound

Matrix = NDArray[np.float64]

N_GAPS = 201
"""Gaps tried for each set of tiers: 0 and the quantiles of the predicted differences."""

NO_GAP = 1.0
"""The gap that bars no tier, which a policy names where utilities decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitTable:
    """What the search reads: one row a prompt, one column a tier.

    Attributes:
        tiers: Names of the columns, ascending by (mean cost, name), the order ``decide`` takes them in.
        usd: Cost of each row on each tier, shape (n, n_tiers).
        probabilities: P(correct), out of fold, shape (n, n_tiers).
        scores: In [0, 1], shape (n, n_tiers).
        reference: One of ``tiers``.
        baseline: What a row's score is compared with, shape (n,): the reference's score, or an accuracy asked for.
        weights: How many prompts of the traffic each row stands for, shape (n,).
        utilities: What decides in place of a gap; ``None`` where a gap does.
    """

    tiers: tuple[str, ...]
    usd: Matrix
    probabilities: Matrix
    scores: Matrix
    reference: str
    baseline: Matrix
    weights: Matrix
    utilities: Utilities | None = None

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
            baseline=self.baseline,
            weights=self.weights,
            utilities=None if self.utilities is None else self.utilities.only(columns),
        )

    def route(self, gap: float) -> NDArray[np.intp]:
        """Return the column that serves each row: at a gap, or of the highest utility where that decides."""
        if self.utilities is not None:
            return np.asarray(np.argmax(self.utilities.predicted, axis=1), dtype=np.intp)  # of equals the cheapest
        return choose_columns(self.probabilities, self.tiers.index(self.reference), gap)

    def losses_at(self, columns: NDArray[np.intp]) -> Matrix:
        """Return baseline less score of each row when it goes to the tier of its column, shape (n,)."""
        return np.asarray(self.baseline - self.scores[np.arange(len(columns)), columns], dtype=np.float64)

    def mean(self, values: Matrix) -> float:
        """Return the mean over the traffic that the rows stand for."""
        return float(np.einsum("i,i->", values, self.weights) / self.weights.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One rule and how it does on the fit rows.

    Attributes:
        tiers: Ascending by cost; contains the reference.
        gap: ``Policy.max_accuracy_gap``.
        usd_per_request: Mean cost.
        loss: Mean of baseline less score; ``loss_bound`` is an upper bound of it.
        share_off_reference: Of the traffic that other tiers serve.
    """

    tiers: tuple[str, ...]
    gap: float
    usd_per_request: float
    loss: float
    loss_bound: float
    share_off_reference: float


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
    fallback = next(walk_gaps(table.only((table.reference,)), confidence=confidence))
    found = [
        candidate
        for tiers in sets
        for candidate in walk_gaps(table.only(tiers), confidence=confidence)
        if candidate.loss_bound <= max_loss and candidate.usd_per_request < fallback.usd_per_request
    ]
    return min(found, key=_rank, default=fallback)


def walk_gaps(table: FitTable, *, confidence: float) -> Iterator[Candidate]:
    """Yield the rule at each gap of the grid, by ascending gap."""
    for gap in gap_grid(table.probabilities, table.tiers.index(table.reference)):
        yield _measure(table, gap, confidence=confidence)


def _measure(table: FitTable, gap: float, *, confidence: float) -> Candidate:
    reference_column = table.tiers.index(table.reference)
    columns = table.route(gap)
    losses = table.losses_at(columns)
    bound = upper_mean_bound(equal_weights(losses, table.weights), confidence=confidence)
    return Candidate(
        tiers=table.tiers,
        gap=gap,
        usd_per_request=table.mean(table.usd[np.arange(len(columns)), columns]),
        loss=table.mean(losses),
        loss_bound=bound if losses.any() or (columns != reference_column).any() else 0.0,  # 0: nothing moved
        share_off_reference=table.mean((columns != reference_column).astype(np.float64)),
    )


def find_highest_utility(table: FitTable, sets: Iterable[tuple[str, ...]]) -> Candidate:
    """Return the set of tiers whose mean realised utility is highest when each row goes where the predicted one is.

    Equal means go to fewer tiers, then to the names.
    """

    def rank(tiers: tuple[str, ...]) -> tuple[float, int, tuple[str, ...]]:
        return (-mean_utility(table.only(tiers)), len(tiers), tiers)

    best = min(sets, key=rank)
    return _measure(table.only(best), NO_GAP, confidence=0.5)


def mean_utility(table: FitTable) -> float:
    """Return the mean realised utility of a table whose utilities decide.

    Raises:
        ValueError: A gap decides there.
    """
    if table.utilities is None:
        raise ValueError("the table holds no utilities")
    columns = table.route(NO_GAP)
    return table.mean(table.utilities.realised[np.arange(len(columns)), columns])


def find_most_accurate(table: FitTable, sets: Iterable[tuple[str, ...]], *, max_usd: float) -> Candidate | None:
    """Return the candidate of the least loss whose mean cost is at most ``max_usd``; ``None`` when none is."""
    found = [
        candidate
        for tiers in sets
        for candidate in walk_gaps(table.only(tiers), confidence=0.5)
        if candidate.usd_per_request <= max_usd
    ]
    return min(found, key=lambda candidate: (candidate.loss, *_rank(candidate)), default=None)


def find_nearest_shares(table: FitTable, shares: Mapping[str, float]) -> Candidate:
    """Return the candidate over all tiers whose shares of the traffic differ least in sum from those asked for."""

    def distance(candidate: Candidate) -> float:
        columns = table.route(candidate.gap)
        reached = [table.mean((columns == column).astype(np.float64)) for column in range(len(table.tiers))]
        return sum(abs(share - shares.get(tier, 0.0)) for tier, share in zip(table.tiers, reached, strict=True))

    return min(walk_gaps(table, confidence=0.5), key=lambda candidate: (distance(candidate), candidate.gap))


def make_path(table: FitTable, *, step: float = 0.02) -> tuple[Candidate, ...]:
    """Return the rules of one set of tiers from "all on the reference" on, each sending ``step`` more of the traffic away."""
    path: list[Candidate] = []
    for candidate in walk_gaps(table, confidence=0.5):
        if not path or candidate.share_off_reference >= path[-1].share_off_reference + step:
            path.append(candidate)
    return tuple(path)


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
