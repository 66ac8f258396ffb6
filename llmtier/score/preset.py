"""Scorers without a single label: thresholds on a complexity, dressed as P(correct) so that the one rule serves.

Takes a scorer whose logits fall with complexity and moves each tier's calibration so that the tier serves up to
a given complexity: its pseudo-probability there lies just ``GAP`` below the reference's, which never changes.
The numbers order prompts and promise nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmtier.core.prompt import Prompt
from llmtier.score.entropy import ENTROPY, MARKER_BITS
from llmtier.score.linear import LinearModel
from llmtier.score.recipe import Matrix
from llmtier.score.scorer import FittedScorer
from llmtier.score.signals import NO_SIGNALS, Signals
from llmtier.stats.logistic import Platt

GAP = 0.05
"""The gap of every such policy."""

_REFERENCE = 0.95  # P(correct) of the reference, made up
_PLAIN_BITS = 4.6  # entropy of a character of plain English text of some length: 4.1 to 4.5
_SPREAD_BITS = 0.5


def plain_entropy(tiers: Sequence[str]) -> FittedScorer[Matrix]:
    """Return the field's recipe as it is: complexity is the entropy of the characters plus a weight for each marker.

    The cheapest tier serves plain text, the next one text with one marker (code, JSON, mathematics), and so on;
    the last tier, the reference, serves the rest.

    Args:
        tiers: Names, cheapest first.
    """
    n = len(tiers)
    model = LinearModel(
        means=np.array([_PLAIN_BITS, 0.0, 0.0, 0.0]),
        deviations=np.array([_SPREAD_BITS, 1.0, 1.0, 1.0]),
        weights=np.tile([-1.0, 0.0, 0.0, 0.0], (n, 1)),
        intercepts=np.zeros(n),
    )
    calibration = tuple(_serving_down_to(-index * MARKER_BITS / _SPREAD_BITS) for index in range(n - 1))
    return FittedScorer(recipe=ENTROPY, model=model, tiers=tuple(tiers), calibration=(*calibration, _constant()))


def meet_shares(
    scorer: FittedScorer[Any],
    prompts: Sequence[Prompt],
    shares: Mapping[str, float],
    signals: Sequence[Signals] | None = None,
) -> FittedScorer[Any]:
    """Return the scorer calibrated so that its tiers, cheapest first and the reference last, serve these shares.

    Args:
        scorer: Logits of all tiers fall with complexity.
        prompts: Traffic like that to be served; never empty.
        shares: Of each tier; one that is absent gets none.
        signals: Of each prompt; ``None`` for none.
    """
    given = [NO_SIGNALS] * len(prompts) if signals is None else signals
    rows = [scorer.recipe.extract(prompt, one) for prompt, one in zip(prompts, given, strict=True)]
    logits = np.stack([scorer.model.logits(row) for row in rows])
    reached = np.cumsum([shares.get(tier, 0.0) for tier in scorer.tiers])
    calibration = tuple(
        _serving_down_to(_threshold(logits[:, index], float(reached[index]))) for index in range(len(scorer.tiers) - 1)
    )
    return replace(scorer, calibration=(*calibration, _constant()))


def _threshold(logits: Matrix, share: float) -> float:
    """Return the logit that ``share`` of the prompts reach; between two prompts, so that rounding moves none."""
    ordered = np.sort(logits)[::-1]
    n_served = round(min(max(share, 0.0), 1.0) * ordered.size)
    if n_served == 0:
        return float(ordered[0]) + 1.0
    if n_served == ordered.size:
        return float(ordered[-1]) - 1.0
    return float(ordered[n_served - 1] + ordered[n_served]) / 2


def _serving_down_to(logit: float) -> Platt:
    least = _REFERENCE - GAP
    return Platt(slope=1.0, offset=math.log(least / (1.0 - least)) - logit)


def _constant() -> Platt:
    return Platt(slope=0.0, offset=math.log(_REFERENCE / (1.0 - _REFERENCE)))
