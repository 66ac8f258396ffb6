"""One head of a ``learned`` model, laid out so that a request takes few calls into numpy.

Reads features and gives a logit a tier. Fits nothing: ``score.blocks`` says what the weights are weights of, and a test
holds the two together. The words' weights are kept in single precision: logits differ by about 1e-7. Sums take one number
after another and cosines are the C library's, so that the same prompt has the same logits on every machine, in C or not.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
from llmtier.score.native import find_native

if TYPE_CHECKING:
    from llmtier.score._native import Head as NativeHead

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
    first: Matrix
    second: Matrix
    embedding: Floats | None
    native: "NativeHead | None" = field(default=None, repr=False, compare=False)

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
        table, inverses = _make_table(preparation.idf, text), 1.0 / preparation.deviations
        return cls(
            table=table,
            means=tuple(preparation.means.tolist()),
            inverse_deviations=tuple(inverses.tolist()),
            first=first,
            second=second,
            embedding=None if embedding is None else embedding.astype(np.float32),
            native=_make_native(table, preparation.means, inverses, first, second),
        )

    def outputs(self, text: TextFeatures, embedding: Floats | None) -> list[float]:
        """Return a logit a tier."""
        if self.native is None:
            outputs = self.outputs_in_numpy(text)
        else:
            outputs = self.native.outputs(text.buckets, text.counts, text.numeric)
        if self.embedding is not None and embedding is not None:
            stacked = embedding.dot(self.embedding).tolist()
            outputs = [output + more for output, more in zip(outputs, stacked, strict=True)]
        return outputs

    def outputs_in_numpy(self, text: TextFeatures) -> list[float]:
        """Return the same without the embedding; what the C does, too."""
        hidden = _multiply(np.array(self._standardise(text.numeric)), self.first)
        hidden[:N_CURVES] = [math.cos(angle) for angle in hidden[:N_CURVES].tolist()]
        outputs: list[float] = _multiply(hidden, self.second).tolist()
        if not text.buckets.size:
            return outputs
        logs = text.values
        weighted = self.table.take(text.buckets, axis=0) * logs[:, np.newaxis]
        weighted[:, 0] *= logs
        squares, *sums = np.add.accumulate(weighted, axis=0)[-1].tolist()
        norm = math.sqrt(squares)
        return [dense + words / norm for dense, words in zip(outputs, sums, strict=False)] if squares > 0 else outputs

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


def _multiply(row: Matrix, matrix: Matrix) -> Matrix:
    """Return their product, one row of the matrix added after another; ``dot`` adds as the processor likes."""
    products: Matrix = np.add.accumulate(matrix * row[:, np.newaxis], axis=0)[-1]
    return products


def _make_native(table: Floats, means: Matrix, inverses: Matrix, first: Matrix, second: Matrix) -> "NativeHead | None":
    if not find_native().is_native:
        return None
    from llmtier.score._native import Head as NativeHead

    return NativeHead(table, LOG_COUNTS, means, inverses, first, second, MAX_DEVIATIONS)


def _make_table(idf: Floats, weights: Matrix) -> Floats:
    n_columns = 1 + weights.shape[1]
    width = next((columns for columns in _COLUMNS if columns >= n_columns), n_columns)
    table: NDArray[np.float32] = np.zeros((idf.size, width), dtype=np.float32)
    table[:, 0] = np.square(idf)
    table[:, 1:n_columns] = idf[:, np.newaxis] * weights
    return table
