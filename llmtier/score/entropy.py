"""The ``entropy`` scorer: one complexity number of a text, mapped to P(correct) per tier.

The number is the characters' Shannon entropy plus a weight for each marker, the simplest router
in use. A logistic regression per tier on it and on the markers, fitted on outcomes, turns it into
P(correct) and corrects the marker weights. It reads no words and no domain.
"""

import numpy as np

from llmtier.core.prompt import Prompt
from llmtier.score.features import char_entropy_bits, find_markers
from llmtier.score.linear import fit_linear, load_linear
from llmtier.score.recipe import Matrix, Recipe
from llmtier.score.signals import Signals
from llmtier.score.text import cut_text, scored_text

MARKER_BITS = 1.0
"""What each marker adds to the complexity; a start, which the fit moves."""


def complexity(text: str) -> float:
    """Return entropy in bits a character plus ``MARKER_BITS`` for each of code, JSON and mathematics."""
    return float(_extract_text(text)[0])


def _extract(prompt: Prompt, _signals: Signals) -> Matrix:
    """Return (complexity, code, JSON, mathematics), shape (4,)."""
    return _extract_text(scored_text(prompt))


def _extract_text(text: str) -> Matrix:
    cut = cut_text(text)
    found = find_markers(cut)
    markers = [float(found.has_code), float(found.has_json), float(found.has_math)]
    return np.array([char_entropy_bits(cut) + MARKER_BITS * sum(markers), *markers], dtype=np.float64)


ENTROPY: Recipe[Matrix] = Recipe(kind="entropy", extract=_extract, fit=fit_linear, load=load_linear)
