"""The ``semantic`` scorer: P(correct) per tier from a text's embedding.

A logistic regression per tier on three blocks, each scaled to its share of the prior: which of some prototypes
(centroids of the fit rows) the text lies near, the embedding itself, and log length, which a unit vector does not tell.
Prototypes act as domains that nobody had to name. ``docs/scorers.md`` has the figures against centroids of right and
wrong prompts and against a plain regression. A prompt without an embedding gets base rates.

Without any outcome the same kind of scorer is made of seed sentences: ``seeds.py``.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import InputFileError
from llmtier.score.embedding import (
    Embedding,
    EmbeddingFeatures,
    check_dimensions,
    extract_embedding,
    log_lengths_of,
    pack,
    stack_embeddings,
    unpack,
)
from llmtier.score.linear import standardisation
from llmtier.score.prototypes import find_prototypes, nearness
from llmtier.score.recipe import Matrix, Recipe, as_matrix, decode_state, fit_tiers, logit, mean_scores
from llmtier.score.seeds import SeedModel, load_seeds
from llmtier.score.signals import Signal

# Measured on public outcomes from 200 to 11,000 labels; near each value the figures differ less than between splits.
EMBEDDING_SCALE = 0.5
LENGTH_SCALE = 0.1**0.5
ROWS_PER_PROTOTYPE = 20
MIN_PROTOTYPES, MAX_PROTOTYPES = 2, 128

MAX_FIT_ROWS = 100_000
"""Of more rows a seeded sample is fitted: the embeddings of a million take gigabytes."""


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    form: Literal["fitted"]
    base: list[float]
    intercepts: list[float]
    centre: bytes
    prototypes: bytes
    weights: bytes
    length_mean: float
    length_deviation: float


class _Form(msgspec.Struct, frozen=True):
    form: Literal["fitted", "seeds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticModel:
    """Logits linear in nearness to prototypes, embedding and log length.

    Attributes:
        base: Logits without an embedding, shape (n_tiers,).
        intercepts: Shape (n_tiers,).
        centre: Mean embedding of the fit rows, shape (d,); empty when no row had one.
        prototypes: Unit norm, shape (n_prototypes, d).
        weights: Of nearness, embedding and length, shape (n_tiers, n_prototypes + d + 1).
        length_mean: Of the fit rows' log lengths; likewise ``length_deviation``.
    """

    base: Matrix
    intercepts: Matrix
    centre: Embedding
    prototypes: Embedding
    weights: Embedding
    length_mean: float
    length_deviation: float

    def logits(self, features: EmbeddingFeatures) -> Matrix:
        """Return shape (n_tiers,).

        Raises:
            InputFileError: The embedding is another model's.
        """
        if features.embedding is None or not self.centre.size:
            return self.base
        check_dimensions(features.embedding.size, self.centre.size)
        row = self.design(features.embedding[np.newaxis], np.array([features.log_length]))[0]
        return np.asarray(self.weights @ row + self.intercepts, dtype=np.float64)

    def design(self, embeddings: Embedding, log_lengths: Matrix) -> Matrix:
        """Return rows of shape (n, n_prototypes + d + 1)."""
        lengths = LENGTH_SCALE * (log_lengths - self.length_mean) / self.length_deviation
        moved = EMBEDDING_SCALE * (embeddings - self.centre)
        return np.hstack([nearness(embeddings, self.prototypes), moved, lengths[:, np.newaxis]])

    def to_bytes(self) -> bytes:
        """Return the model as JSON."""
        state = _State(
            form="fitted",
            base=self.base.tolist(),
            intercepts=self.intercepts.tolist(),
            centre=pack(self.centre),
            prototypes=pack(self.prototypes),
            weights=pack(self.weights),
            length_mean=self.length_mean,
            length_deviation=self.length_deviation,
        )
        return msgspec.json.encode(state)


def fit_semantic(rows: Sequence[EmbeddingFeatures], scores: Matrix, seed: int) -> SemanticModel:
    """Fit on the rows with an embedding; ``scores`` has shape (n, n_tiers), NaN where unknown.

    Raises:
        InputFileError: No row has an embedding, or embeddings are of several models.
    """
    base = logit(mean_scores(scores))
    chosen = choose_rows(rows, seed)
    used, targets = [rows[row] for row in chosen.tolist()], scores[chosen]
    embeddings = stack_embeddings([row.embedding for row in used if row.embedding is not None])
    blank = prepare(base, embeddings, log_lengths_of(used), seed=seed)
    if not used:
        raise InputFileError(
            f"no embedding of any of the {len(rows)} prompts; name an embedder (see 'llmtier embedder export'), "
            "or use the scorer 'learned'"
        )
    fits = fit_tiers(blank.design(embeddings, log_lengths_of(used)), targets)
    is_known = ~np.isnan(targets).all(axis=0)  # a tier without a score among these rows keeps its base rate
    return dataclasses.replace(
        blank,
        weights=np.stack([fit.weights for fit in fits]).astype(np.float32),
        intercepts=np.where(is_known, [fit.intercept for fit in fits], base),
    )


def choose_rows(rows: Sequence[EmbeddingFeatures], seed: int) -> NDArray[np.intp]:
    """Return the indices of the rows with an embedding, ascending; a seeded sample when they are many."""
    found = np.flatnonzero([row.embedding is not None for row in rows])
    if found.size <= MAX_FIT_ROWS:
        return found
    return np.sort(np.random.default_rng(seed).choice(found, MAX_FIT_ROWS, replace=False))


def prepare(base: Matrix, embeddings: Embedding, log_lengths: Matrix, *, seed: int) -> SemanticModel:
    """Return a model with prototypes and means and without weights; an empty one when there are no rows."""
    if not len(embeddings):
        none = np.zeros((0, 0), dtype=np.float32)
        centre, weights = np.zeros(0, dtype=np.float32), np.zeros((base.size, 1), dtype=np.float32)
        mean, deviation, prototypes = 0.0, 1.0, none
    else:
        n_prototypes = min(max(len(embeddings) // ROWS_PER_PROTOTYPE, MIN_PROTOTYPES), MAX_PROTOTYPES)
        prototypes = find_prototypes(embeddings, n_prototypes, seed=seed)
        means, deviations = standardisation(log_lengths[:, np.newaxis])
        mean, deviation = float(means[0]), float(deviations[0])
        centre = embeddings.mean(axis=0)
        weights = np.zeros((base.size, len(prototypes) + centre.size + 1), dtype=np.float32)
    return SemanticModel(
        base=base,
        intercepts=base,
        centre=centre,
        prototypes=prototypes,
        weights=weights,
        length_mean=mean,
        length_deviation=deviation,
    )


def load_semantic(state: bytes) -> SemanticModel | SeedModel:
    """Read what ``to_bytes`` of either model wrote.

    Raises:
        InputFileError: When it is malformed.
    """
    return load_seeds(state) if decode_state(state, _Form).form == "seeds" else load_fitted(state)


def load_fitted(state: bytes) -> SemanticModel:
    """Read what ``SemanticModel.to_bytes`` wrote.

    Raises:
        InputFileError: When it is malformed.
    """
    stored = decode_state(state, _State)
    n_tiers = len(stored.base)
    centre = unpack(stored.centre, (-1,))
    prototypes = unpack(stored.prototypes, (-1, centre.size) if centre.size else (0, 0))
    return SemanticModel(
        base=as_matrix(stored.base, (n_tiers,)),
        intercepts=as_matrix(stored.intercepts, (n_tiers,)),
        centre=centre,
        prototypes=prototypes,
        weights=unpack(stored.weights, (n_tiers, len(prototypes) + centre.size + 1)),
        length_mean=stored.length_mean,
        length_deviation=stored.length_deviation,
    )


SEMANTIC: Recipe[EmbeddingFeatures] = Recipe(
    kind="semantic",
    extract=extract_embedding,
    fit=fit_semantic,
    load=load_semantic,
    reads=frozenset({Signal.EMBEDDING}),
    lacks=lambda _model, features: features.embedding is None,
)
