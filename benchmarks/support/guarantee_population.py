"""A population whose true losses are known: public outcomes, routed by a scorer that was fitted on other rows.

Reads the rows of ``routellm_mmlu.parquet``; returns the path of a fitted scorer and what every row of the rest
loses at each of its gaps. Certifies nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmtier.core.prompt import LabelledPrompt
from llmtier.fit.path import Evidence, Walk, make_gaps, walk
from llmtier.fit.units import Units, sum_units
from llmtier.score.scorer import fit_out_of_fold, score_matrix
from llmtier.stats.betting import Belief

DATA_FILE = "routellm_mmlu.parquet"
TIERS = ("mixtral-8x7b", "gpt-4")
REFERENCE_COLUMN = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """One scorer and everybody it was not fitted on.

    Attributes:
        fit: The rows it was fitted on, predicted out of fold.
        rest: All other rows.
        gaps: The path, fixed on ``fit``.
        walk: Of ``rest`` along the path; its shares are those of the population.
        fit_units: Of ``fit`` along the path.
    """

    fit: Evidence
    rest: Evidence
    gaps: tuple[float, ...]
    walk: Walk
    fit_units: Units

    @property
    def losses(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Return the true mean loss at each gap."""
        return np.asarray(self.walk.losses.mean(axis=0))

    @property
    def belief(self) -> Belief:
        """Return what the fit split says of the scatter."""
        return Belief.from_losses(self.fit_units.losses, self.fit_units.masses)


def draw_population(rows: Sequence[LabelledPrompt], *, n_labels: int, seed: int) -> Population:
    """Fit a scorer on random labels and route everybody else by it."""
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    labelled, others = [rows[row] for row in order[:n_labels]], [rows[row] for row in order[n_labels:]]
    scorer, out_of_fold = fit_out_of_fold("learned", labelled, TIERS, seed=seed)
    predicted = [scorer.probabilities(row.prompt) for row in others]
    fit = make_evidence(labelled, out_of_fold)
    rest = make_evidence(others, np.array([[row[tier] for tier in TIERS] for row in predicted]))
    gaps = make_gaps(fit.probabilities, REFERENCE_COLUMN)
    fit_losses = walk(fit, REFERENCE_COLUMN, gaps).losses
    return Population(
        fit=fit,
        rest=rest,
        gaps=gaps,
        walk=walk(rest, REFERENCE_COLUMN, gaps),
        fit_units=sum_units(fit_losses, fit.weights, fit.groups),
    )


def make_evidence(
    rows: Sequence[LabelledPrompt], probabilities: np.ndarray[tuple[int, int], np.dtype[np.float64]]
) -> Evidence:
    """Return rows that are each a unit of their own."""
    return Evidence(
        probabilities=probabilities,
        scores=score_matrix(rows, TIERS),
        weights=np.ones(len(rows)),
        groups=np.arange(len(rows), dtype=np.intp),
    )


def take(evidence: Evidence, places: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Evidence:
    """Return a draw with replacement; each draw is a unit of its own, since the draws are independent."""
    return Evidence(
        probabilities=evidence.probabilities[places],
        scores=evidence.scores[places],
        weights=np.ones(len(places)),
        groups=np.arange(len(places), dtype=np.intp),
    )
