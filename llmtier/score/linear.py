"""A logistic regression per tier on a few standardised scalars, for the scalar scorers.

Reads rows of scalars and scores; holds means, deviations and weights. Extracts nothing itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from llmtier.score.recipe import Matrix, as_matrix, decode_state, fit_tiers


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    means: list[float]
    deviations: list[float]
    weights: list[list[float]]
    intercepts: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearModel:
    """Logits linear in standardised scalars.

    Attributes:
        means: Of the fit rows, shape (n_scalars,); likewise ``deviations``.
        weights: Shape (n_tiers, n_scalars).
        intercepts: Shape (n_tiers,).
    """

    means: Matrix
    deviations: Matrix
    weights: Matrix
    intercepts: Matrix

    def logits(self, features: Matrix) -> Matrix:
        """Return shape (n_tiers,) from scalars of shape (n_scalars,)."""
        return np.asarray(self.weights @ ((features - self.means) / self.deviations) + self.intercepts)

    def to_bytes(self) -> bytes:
        """Return the model as JSON."""
        state = _State(
            means=self.means.tolist(),
            deviations=self.deviations.tolist(),
            weights=self.weights.tolist(),
            intercepts=self.intercepts.tolist(),
        )
        return msgspec.json.encode(state)


def fit_linear(rows: Sequence[Matrix], scores: Matrix, _seed: int) -> LinearModel:
    """Standardise the rows and fit each tier."""
    table = np.stack(rows)
    means, deviations = standardisation(table)
    fits = fit_tiers((table - means) / deviations, scores)
    return LinearModel(
        means=means,
        deviations=deviations,
        weights=np.stack([fit.weights for fit in fits]),
        intercepts=np.array([fit.intercept for fit in fits]),
    )


def load_linear(state: bytes) -> LinearModel:
    """Read what ``LinearModel.to_bytes`` wrote.

    Raises:
        InputFileError: When it is malformed.
    """
    stored = decode_state(state, _State)
    n_scalars, n_tiers = len(stored.means), len(stored.intercepts)
    return LinearModel(
        means=as_matrix(stored.means, (n_scalars,)),
        deviations=as_matrix(stored.deviations, (n_scalars,)),
        weights=as_matrix(stored.weights, (n_tiers, n_scalars)),
        intercepts=as_matrix(stored.intercepts, (n_tiers,)),
    )


def standardisation(table: Matrix) -> tuple[Matrix, Matrix]:
    """Return column means and deviations of shape (n_columns,); a constant column's deviation is 1."""
    deviations = table.std(axis=0)
    return table.mean(axis=0), np.where(deviations > 1e-12, deviations, 1.0)
