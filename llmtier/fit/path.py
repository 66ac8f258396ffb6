"""The path: rules from "a few prompts leave the reference" to "all that can do", fixed before labels are tested.

Reads P(correct) of prompts of the fit split or without labels; returns ascending gaps, and what the rule at each
gap would have lost. The rule is that of ``search.choose_columns``: a tier may serve a prompt while its P(correct)
is at most the gap below the reference's. Certifies nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.fit.search import choose_columns

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

N_STEPS = 50
"""Steps of 2 % of the traffic. Each is one more test that can stop the walk; finer ones bought nothing."""

_GAP_UNIT = 1e-6
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One split: what a scorer predicts of its prompts and what the tiers scored.

    Attributes:
        probabilities: P(correct), of a model that did not see the row, columns by ascending cost, shape (n, n_tiers).
        scores: In [0, 1], shape (n, n_tiers).
        weights: Inverse inclusion probabilities, shape (n,).
        groups: Unit of each row, as ``units.group_rows`` gives it, shape (n,).
    """

    probabilities: Matrix
    scores: Matrix
    weights: Vector
    groups: NDArray[np.intp]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.weights)

    def where(self, is_kept: NDArray[np.bool_]) -> "Evidence":
        """Return the rows that are kept, their units numbered anew."""
        return Evidence(
            probabilities=self.probabilities[is_kept],
            scores=self.scores[is_kept],
            weights=self.weights[is_kept],
            groups=np.unique(self.groups[is_kept], return_inverse=True)[1].astype(np.intp),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """What each candidate of a path does with the rows of one split.

    Attributes:
        losses: Reference score - routed score, in [-1, 1], shape (n, n_gaps).
        shares: Share of the weight that leaves the reference, shape (n_gaps,).
        predicted: Mean loss as the probabilities have it, shape (n_gaps,).
    """

    losses: Matrix
    shares: Vector
    predicted: Vector


def make_gaps(
    probabilities: Matrix, reference_column: int, *, weights: Vector | None = None, n_steps: int = N_STEPS
) -> tuple[float, ...]:
    """Return ascending gaps in [0, 1] at which equal steps of the traffic leave the reference.

    Fewer than ``n_steps`` where prompts tie; none where no tier comes before the reference.

    Args:
        probabilities: P(correct) of prompts whose labels no test reads, columns by (cost, name), shape (n, n_tiers).
        reference_column: Index of the reference.
        weights: As in ``Evidence``; ``None`` counts each prompt once.
        n_steps: How many.
    """
    if reference_column == 0 or not len(probabilities):
        return ()
    cheaper = probabilities[:, :reference_column]
    needed = np.maximum(probabilities[:, [reference_column]] - cheaper, 0.0).min(axis=1)
    order = np.argsort(needed, kind="stable")
    mass = np.ones(len(needed)) if weights is None else weights[order]
    covered = np.cumsum(mass) / mass.sum()
    steps = np.arange(1, n_steps + 1) / n_steps
    places = np.minimum(np.searchsorted(covered, steps - 1e-9), len(order) - 1)
    reached = needed[order][places]
    # Rounded up, so that a policy file is readable and a gap still admits the row it came from.
    rounded = np.ceil((reached + _ROUNDING) / _GAP_UNIT) * _GAP_UNIT
    return tuple(np.unique(np.where(reached == 0, 0.0, np.minimum(rounded.round(6), 1.0))).tolist())


def walk(evidence: Evidence, reference_column: int, gaps: tuple[float, ...]) -> Walk:
    """Return what the rule at each gap loses on a split, and how much of the traffic it moves."""
    rows = np.arange(len(evidence))
    weights = evidence.weights / max(float(evidence.weights.sum()), np.finfo(np.float64).tiny)
    losses = np.empty((len(evidence), len(gaps)))
    shares, predicted = np.empty(len(gaps)), np.empty(len(gaps))
    for place, gap in enumerate(gaps):
        columns = choose_columns(evidence.probabilities, reference_column, gap)
        losses[:, place] = evidence.scores[:, reference_column] - evidence.scores[rows, columns]
        shares[place] = weights @ (columns != reference_column)
        predicted[place] = weights @ (
            evidence.probabilities[:, reference_column] - evidence.probabilities[rows, columns]
        )
    return Walk(losses=losses, shares=shares, predicted=predicted)
