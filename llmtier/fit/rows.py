"""Labelled prompts as rows: complete ones only, in a fixed order, split into fit and judge.

Reads ``LabelledPrompt``s in any order; the result depends on their contents and the seed alone.
Scores nothing and chooses nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import InputFileError
from llmtier.core.profile import TierProfile
from llmtier.core.prompt import LabelledPrompt
from llmtier.route.predict import request_usd
from llmtier.score.scorer import score_matrix, text_digest

FIT_SHARE = 0.7
MIN_ROWS = 20
"""Fewest complete rows: 14 fit, 6 judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Prompts with a score on every tier.

    Attributes:
        labelled: The rows.
        tiers: Names of the columns of ``scores``.
        scores: Shape (n, n_tiers), each in [0, 1].
        usd: What each row cost, or would have cost, on each tier, shape (n, n_tiers).
    """

    labelled: tuple[LabelledPrompt, ...]
    tiers: tuple[str, ...]
    scores: NDArray[np.float64]
    usd: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labelled)

    def scores_of(self, tier: str) -> NDArray[np.float64]:
        """Return one tier's scores, shape (n,)."""
        return self.scores[:, self.tiers.index(tier)]

    def usd_of(self, tier: str) -> NDArray[np.float64]:
        """Return one tier's costs, shape (n,)."""
        return self.usd[:, self.tiers.index(tier)]


def select_rows(
    labelled: Sequence[LabelledPrompt], tiers: Sequence[str], profiles: Mapping[str, TierProfile]
) -> tuple[Rows, int]:
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
    return make_rows(complete, tiers, profiles), len(labelled) - len(complete)


def make_rows(labelled: Sequence[LabelledPrompt], tiers: Sequence[str], profiles: Mapping[str, TierProfile]) -> Rows:
    """Return complete rows as a table; every profile has a cost."""
    costs = [[request_usd(profiles[tier], item.output_tokens.get(tier)) for tier in tiers] for item in labelled]
    usd = np.array(costs, dtype=np.float64).reshape(len(labelled), len(tiers))
    return Rows(labelled=tuple(labelled), tiers=tuple(tiers), scores=score_matrix(labelled, tiers), usd=usd)


def split_rows(rows: Rows, *, seed: int) -> tuple[Rows, Rows]:
    """Split into about 70 % to fit and the rest to judge, near-identical texts on one side.

    Raises:
        InputFileError: When all prompts are near-identical, so that one side would be empty.
    """
    keys = [text_digest(normalise(item.prompt.last_user_text), seed) for item in rows.labelled]
    order = sorted(range(len(rows)), key=lambda row: (keys[row], _identity(rows.labelled[row])))
    cut = round(FIT_SHARE * len(rows))
    # Move the cut to the nearest place where the text changes.
    borders = [place for place in range(1, len(order)) if keys[order[place - 1]] != keys[order[place]]]
    if not borders:
        raise InputFileError(
            f"all {len(rows)} prompts are the same but for digits and spaces; a fit needs different ones"
        )
    cut = min(borders, key=lambda place: abs(place - cut))
    return _take(rows, order[:cut]), _take(rows, order[cut:])


def _take(rows: Rows, places: Sequence[int]) -> Rows:
    labelled = tuple(rows.labelled[place] for place in places)
    index = np.array(places, dtype=np.intp)
    return Rows(labelled=labelled, tiers=rows.tiers, scores=rows.scores[index], usd=rows.usd[index])


def normalise(text: str) -> str:
    """Return ``text`` with every digit as 0 and every run of white space as one space."""
    return re.sub(r"\s+", " ", re.sub(r"\d", "0", text)).strip()


def _identity(item: LabelledPrompt) -> tuple[str, str, str, str]:
    """Return what orders rows of one text, so that the order they were read in does not matter."""
    prompt = item.prompt
    return (prompt.last_user_text, prompt.domain or "", prompt.id, repr(sorted(item.scores.items())))
