"""Labelled prompts as rows: complete ones only, in a fixed order, split into fit and judge.

Reads ``LabelledPrompt``s in any order; the result depends on their contents and the seed alone.
Scores nothing and chooses nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import InputFileError
from llmtier.core.prompt import LabelledPrompt
from llmtier.fit.prices import Prices
from llmtier.fit.units import group_rows
from llmtier.score.scorer import score_matrix, text_digest

FIT_SHARE = 0.5  # the rest certifies: with fewer there, nothing below some thousand labels could be promised
MIN_ROWS = 20
"""Fewest complete rows: 10 fit, 10 judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Prompts with a score on every tier.

    Attributes:
        labelled: The rows.
        tiers: Names of the columns of ``scores``.
        scores: Shape (n, n_tiers), each in [0, 1].
        usd: What each row cost, or would have cost, on each tier, shape (n, n_tiers).
        weights: How many prompts of the traffic each row stands for, shape (n,).
    """

    labelled: tuple[LabelledPrompt, ...]
    tiers: tuple[str, ...]
    scores: NDArray[np.float64]
    usd: NDArray[np.float64]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labelled)

    def scores_of(self, tier: str) -> NDArray[np.float64]:
        """Return one tier's scores, shape (n,)."""
        return self.scores[:, self.tiers.index(tier)]

    def usd_of(self, tier: str) -> NDArray[np.float64]:
        """Return one tier's costs, shape (n,)."""
        return self.usd[:, self.tiers.index(tier)]


def select_rows(labelled: Sequence[LabelledPrompt], tiers: Sequence[str], prices: Prices) -> tuple[Rows, int]:
    """Return the rows with a score on every tier, and how many were left out for want of one.

    A row's cost on a tier is that of the output tokens it had there, where the outcomes tell them, else the
    profile's mean: hard prompts often have longer answers, so means would flatter the routing.

    Raises:
        InputFileError: When nothing is labelled, or too few rows are complete.
    """
    if not any(item.scores for item in labelled):
        raise InputFileError(
            f"none of the {len(labelled)} prompts has a score; ask the tiers first: "
            "'llmtier replay LOG -o outcomes.parquet', then give its output"
        )
    complete = [item for item in labelled if all(tier in item.scores for tier in tiers)]
    if len(complete) < MIN_ROWS:
        counts = ", ".join(f"{tier} {sum(tier in item.scores for item in labelled)}" for tier in tiers)
        raise InputFileError(
            f"{len(complete)} prompts have a score on every tier, at least {MIN_ROWS} are needed "
            f"(scored by tier: {counts}); score more with 'llmtier replay'"
        )
    return make_rows(complete, tiers, prices), len(labelled) - len(complete)


def make_rows(labelled: Sequence[LabelledPrompt], tiers: Sequence[str], prices: Prices) -> Rows:
    """Return complete rows as a table."""
    costs = [[prices.usd_of(tier, item.output_tokens.get(tier)) for tier in tiers] for item in labelled]
    return Rows(
        labelled=tuple(labelled),
        tiers=tuple(tiers),
        scores=score_matrix(labelled, tiers),
        usd=np.array(costs, dtype=np.float64).reshape(len(labelled), len(tiers)),
        weights=np.array([item.weight for item in labelled], dtype=np.float64),
    )


def split_rows(rows: Rows, *, seed: int) -> tuple[Rows, Rows]:
    """Split into about half to fit and the rest to judge, near-identical texts and conversations on one side.

    Raises:
        InputFileError: When all prompts are near-identical, so that one side would be empty.
    """
    keys = _unit_keys(rows, seed)
    order = sorted(range(len(rows)), key=lambda row: (keys[row], _identity(rows.labelled[row])))
    cut = round(FIT_SHARE * len(rows))
    # Move the cut to the nearest place where the unit changes.
    borders = [place for place in range(1, len(order)) if keys[order[place - 1]] != keys[order[place]]]
    if not borders:
        raise InputFileError(
            f"all {len(rows)} prompts are the same but for case and spaces; a fit needs different ones"
        )
    cut = min(borders, key=lambda place: abs(place - cut))
    return _take(rows, order[:cut]), _take(rows, order[cut:])


def _unit_keys(rows: Rows, seed: int) -> list[bytes]:
    """Return what rows of one unit have in common and their contents alone decide: the least digest of its texts."""
    groups = group_rows(rows.labelled).tolist()
    least: dict[int, bytes] = {}
    for group, item in zip(groups, rows.labelled, strict=True):
        digest = text_digest(item.prompt.last_user_text, seed)
        least[group] = min(least.get(group, digest), digest)
    return [least[group] for group in groups]


def _take(rows: Rows, places: Sequence[int]) -> Rows:
    labelled = tuple(rows.labelled[place] for place in places)
    index = np.array(places, dtype=np.intp)
    return Rows(
        labelled=labelled,
        tiers=rows.tiers,
        scores=rows.scores[index],
        usd=rows.usd[index],
        weights=rows.weights[index],
    )


def equal_weights(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return as many values of equal weight as the weighted ones are worth (Kish 1965), of nearly the same mean.

    Drawn at even steps of the summed weight.
    """
    if np.all(weights == weights[0]):
        return values
    shares = np.cumsum(weights) / weights.sum()
    n_effective = max(round(float(weights.sum() ** 2 / np.square(weights).sum())), 2)
    places = (np.arange(n_effective) + 0.5) / n_effective
    return np.asarray(values[np.minimum(np.searchsorted(shares, places), len(values) - 1)], dtype=np.float64)


def _identity(item: LabelledPrompt) -> tuple[str, str, str, str]:
    """Return what orders rows of one text, so that the order they were read in does not matter."""
    prompt = item.prompt
    return (prompt.last_user_text, prompt.domain or "", prompt.id, repr(sorted(item.scores.items())))
