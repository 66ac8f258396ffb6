"""The blocks of the learned scorer's design matrix, each scaled to its share of the prior.

Turns the features of one text into a row: hashed words (tf-idf, unit norm), eleven counts, log length, and
cosines of random projections of the counts, which let a linear model bend (Rahimi & Recht, Random features for
large-scale kernel machines, 2007). These are the rows of a fit; ``score.head`` has the same blocks laid out for requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmtier.score.features import N_NUMERIC, TextFeatures
from llmtier.score.linear import standardisation
from llmtier.score.words import N_BUCKETS

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Matrix = NDArray[np.float64]
Floats = NDArray[np.float32]

# Scales of the blocks: the squares are shares of the prior's variance. Measured over several public outcome sets
# from 200 to 11,000 labels; between half and twice these values nothing moves by more than 0.002 APGR (docs/log.md).
NUMERIC_SCALE = (0.3 / N_NUMERIC) ** 0.5
LENGTH_SCALE = 0.1**0.5
CURVE_SCALE = 0.15**0.5
MAX_DEVIATIONS = 3.0
N_CURVES = 64
N_DENSE = N_NUMERIC + 1 + N_CURVES
CURVE_WEIGHT = CURVE_SCALE * (2.0 / N_CURVES) ** 0.5

_CURVE_WIDTH = 0.4  # of the random projections: features that bend within two to three deviations
_CURVE_SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What turns features into a row of the design matrix.

    Attributes:
        idf: Inverse document frequency of each bucket, shape (N_BUCKETS,).
        means: Of the eleven counts over the fit rows, shape (11,); likewise ``deviations``.
    """

    idf: Floats
    means: Matrix
    deviations: Matrix

    def text_row(self, text: TextFeatures) -> Matrix:
        """Return tf-idf of the active buckets with unit norm, shape (n_active,)."""
        weighted = text.values * self.idf[text.buckets]
        norm = float(weighted @ weighted) ** 0.5
        return weighted / norm if norm > 0 else weighted

    def dense_row(self, numeric: Sequence[float]) -> Matrix:
        """Return the scaled counts, log length and curves, shape (N_DENSE,)."""
        standard = (np.array(numeric) - self.means) / self.deviations
        clipped = np.minimum(np.maximum(standard, -MAX_DEVIATIONS), MAX_DEVIATIONS)
        row = np.empty(N_DENSE)
        row[:N_NUMERIC] = clipped
        row[:N_NUMERIC] *= NUMERIC_SCALE
        row[N_NUMERIC] = standard[0] * LENGTH_SCALE
        directions, phases = curves()
        np.cos(clipped @ directions + phases, out=row[N_NUMERIC + 1 :])
        row[N_NUMERIC + 1 :] *= CURVE_WEIGHT
        return row


def prepare(rows: Sequence[TextFeatures]) -> Preparation:
    """Learn idf, means and deviations from the fit rows, packed."""
    document_counts = np.bincount(np.concatenate([row.buckets for row in rows]), minlength=N_BUCKETS)
    idf = np.log((1.0 + len(rows)) / (1.0 + document_counts)) + 1.0
    means, deviations = standardisation(np.array([row.numeric for row in rows]))
    return Preparation(idf=idf.astype(np.float32), means=means, deviations=deviations)


def text_design(
    rows: Sequence[TextFeatures], preparation: Preparation
) -> tuple[NDArray[np.intp], "csr_array[np.float64]"]:
    """Return the active buckets and their matrix, shape (n_rows, n_active), of packed rows."""
    from scipy.sparse import csr_array

    buckets = np.concatenate([row.buckets for row in rows])
    values = np.concatenate([preparation.text_row(row) for row in rows])
    starts = np.cumsum([0, *(row.buckets.size for row in rows)])
    active, columns = np.unique(buckets, return_inverse=True)
    return active.astype(np.intp), csr_array((values, columns, starts), shape=(len(rows), active.size))


@cache
def curves() -> tuple[Matrix, Matrix]:
    """Return random directions of shape (11, N_CURVES) and phases of shape (N_CURVES,), always the same ones."""
    draw = np.random.default_rng(_CURVE_SEED)
    directions = draw.standard_normal((N_NUMERIC, N_CURVES)) * _CURVE_WIDTH
    return directions, draw.uniform(0.0, 2.0 * np.pi, N_CURVES)
