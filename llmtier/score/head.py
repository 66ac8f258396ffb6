"""One head of a ``learned`` model, laid out so that a request takes few calls into numpy.

Reads features and gives a logit a tier. Fits nothing: ``score.blocks`` says what the weights are weights of, and a test
holds the two together. Single precision: against double, logits differ by about 1e-6.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.score.blocks import (
    CURVE_WEIGHT,
    LENGTH_SCALE,
    MAX_DEVIATIONS,
    N_CURVES,
    N_DENSE,
    NUMERIC_SCALE,
    Floats,
    Matrix,
    Preparation,
    curves,
)
from llmtier.score.features import LOG_COUNTS, N_NUMERIC, TextFeatures

_LOGS_AND_SQUARES: Floats = np.stack([LOG_COUNTS, np.square(LOG_COUNTS)]).astype(np.float32)
_COLUMNS = (2, 4, 8)  # of 32-bit numbers, for which numpy looks rows up twice as fast as for three, five or seven


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One logit a tier.

    Attributes:
        table: By bucket: idf squared, then a tier's weight times idf, then zeros, shape (N_BUCKETS, >= 1 + n_tiers).
        means: Of the eleven counts over the fit rows; likewise the inverse ``deviations``.
        first: From the counts, log length and 1 to the curves' angles and the tiers, shape (13, N_CURVES + n_tiers).
        second: From curves and tiers to tiers, shape (N_CURVES + n_tiers, n_tiers).
        embedding: Shape (n_dimensions, n_tiers); ``None`` without an embedder.
    """

    table: Floats
    means: tuple[float, ...]
    inverse_deviations: tuple[float, ...]
    first: Floats
    second: Floats
    embedding: Floats | None

    @classmethod
    def make(
        cls, preparation: Preparation, text: Matrix, dense: Matrix, intercepts: Matrix, embedding: Matrix | None
    ) -> "Head":
        """Lay out the weights of the blocks, each of shape (n_columns, n_tiers)."""
        n_tiers = intercepts.size
        first = np.zeros((N_NUMERIC + 2, N_CURVES + n_tiers))
        directions, phases = curves()
        first[:N_NUMERIC, :N_CURVES] = directions
        first[-1, :N_CURVES] = phases
        first[:N_NUMERIC, N_CURVES:] = dense[:N_NUMERIC] * NUMERIC_SCALE
        first[N_NUMERIC, N_CURVES:] = dense[N_NUMERIC] * LENGTH_SCALE
        first[-1, N_CURVES:] = intercepts
        second = np.concatenate([dense[N_DENSE - N_CURVES :] * CURVE_WEIGHT, np.eye(n_tiers)])
        return cls(
            table=_make_table(preparation.idf, text),
            means=tuple(preparation.means.tolist()),
            inverse_deviations=tuple((1.0 / preparation.deviations).tolist()),
            first=first.astype(np.float32),
            second=second.astype(np.float32),
            embedding=None if embedding is None else embedding.astype(np.float32),
        )

    def outputs(self, text: TextFeatures, embedding: Floats | None) -> list[float]:
        """Return a logit a tier."""
        dense = np.array(self._standardise(text.numeric), dtype=np.float32).dot(self.first)
        angles = dense[:N_CURVES]
        np.cos(angles, out=angles)
        outputs: list[float] = dense.dot(self.second).tolist()
        sums, (squares, *_) = (
            _LOGS_AND_SQUARES.take(text.counts, axis=1).dot(self.table.take(text.buckets, axis=0)).tolist()
        )
        if squares > 0:
            norm = squares**0.5
            outputs = [dense + words / norm for dense, words in zip(outputs, sums[1:], strict=False)]
        if self.embedding is not None and embedding is not None:
            stacked = embedding.dot(self.embedding).tolist()
            outputs = [output + more for output, more in zip(outputs, stacked, strict=True)]
        return outputs

    def _standardise(self, numeric: tuple[float, ...]) -> list[float]:
        """Return the counts in deviations, clipped, then the log length in deviations, and 1; 13 numbers."""
        standard = [
            (number - mean) * inverse
            for number, mean, inverse in zip(numeric, self.means, self.inverse_deviations, strict=True)
        ]
        length, most = standard[0], MAX_DEVIATIONS
        if max(standard) > most or min(standard) < -most:
            # Calls of min and max for each would cost 2 us, a tenth of all that is not hashing.
            standard = [number if -most <= number <= most else math.copysign(most, number) for number in standard]
        return [*standard, length, 1.0]


def _make_table(idf: Floats, weights: Matrix) -> Floats:
    n_columns = 1 + weights.shape[1]
    width = next((columns for columns in _COLUMNS if columns >= n_columns), n_columns)
    table: NDArray[np.float32] = np.zeros((idf.size, width), dtype=np.float32)
    table[:, 0] = np.square(idf)
    table[:, 1:n_columns] = idf[:, np.newaxis] * weights
    return table
