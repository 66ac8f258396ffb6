"""The ``learned`` scorer: logistic regression per tier on hashed words, counts and domain.

Four blocks, each scaled to its share of the prior: text (words and word pairs, tf-idf, unit norm),
eleven counts, log length, domain (one-hot, which is a shrunken domain mean fitted jointly with the
text). Two heads are fitted, with and without the domain block, and their logits averaged; a prompt
without a known domain is scored by the second head alone. No setting is tuned to the data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import InputFileError
from llmtier.core.prompt import Prompt
from llmtier.score.features import N_BUCKETS, N_NUMERIC, TextFeatures, extract_text
from llmtier.score.linear import standardisation
from llmtier.score.recipe import Matrix, Recipe, as_matrix, decode_state, fit_tiers
from llmtier.score.signals import Signals
from llmtier.stats.logistic import LogisticFit

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Scales of the blocks, measured over several public outcome sets from 200 to 11,000 labels.
NUMERIC_SCALE = (0.3 / N_NUMERIC) ** 0.5
LENGTH_SCALE = 0.1**0.5
DOMAIN_SCALE = 0.25**0.5
N_DENSE = N_NUMERIC + 1
MAX_DEVIATIONS = 3.0

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFeatures:
    """What the learned scorer reads of a prompt."""

    text: TextFeatures
    domain: str | None


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
        norm = float(np.sqrt(weighted @ weighted))
        return weighted / norm if norm > 0 else weighted

    def dense_row(self, numeric: Matrix) -> Matrix:
        """Return the scaled counts and the scaled log length, shape (N_DENSE,)."""
        standard = (numeric - self.means) / self.deviations
        clipped = np.clip(standard, -MAX_DEVIATIONS, MAX_DEVIATIONS) * NUMERIC_SCALE
        return np.append(clipped, standard[0] * LENGTH_SCALE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedModel:
    """Two heads of logits a tier; ``n_outputs`` is n_tiers x n_heads, head without domain first.

    Attributes:
        preparation: Features to rows.
        text_weights: Shape (N_BUCKETS, n_outputs); zero for buckets that no fit row had.
        dense_weights: Shape (N_DENSE, n_outputs).
        intercepts: Shape (n_outputs,).
        domain_weights: Scaled weights of each domain, shape (n_tiers,); empty without domains, and
            then there is one head.
    """

    preparation: Preparation
    text_weights: Floats
    dense_weights: Matrix
    intercepts: Matrix
    domain_weights: Mapping[str, Matrix]

    @property
    def n_tiers(self) -> int:
        """Number of tiers."""
        return self.intercepts.size // (2 if self.domain_weights else 1)

    def logits(self, features: PromptFeatures) -> Matrix:
        """Return shape (n_tiers,)."""
        text = self.preparation.text_row(features.text) @ self.text_weights[features.text.buckets]
        outputs = text + self.preparation.dense_row(features.text.numeric) @ self.dense_weights + self.intercepts
        without_domain = np.asarray(outputs[: self.n_tiers], dtype=np.float64)
        domain = None if features.domain is None else self.domain_weights.get(features.domain)
        if domain is None:
            return without_domain
        return np.asarray((without_domain + outputs[self.n_tiers :] + domain) / 2, dtype=np.float64)

    def to_bytes(self) -> bytes:
        """Return the model as JSON; only buckets that carry a weight are stored."""
        idf = self.preparation.idf
        unseen = float(idf.max())
        active = np.flatnonzero(np.any(self.text_weights != 0, axis=1) | (idf != idf.max()))
        state = _State(
            buckets=active.astype("<u2").tobytes(),
            idf=idf[active].astype("<f4").tobytes(),
            idf_unseen=unseen,
            text_weights=self.text_weights[active].astype("<f4").tobytes(),
            means=self.preparation.means.tolist(),
            deviations=self.preparation.deviations.tolist(),
            dense_weights=self.dense_weights.tolist(),
            intercepts=self.intercepts.tolist(),
            domain_weights={domain: weights.tolist() for domain, weights in self.domain_weights.items()},
        )
        return msgspec.json.encode(state)


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    buckets: bytes
    idf: bytes
    idf_unseen: float
    text_weights: bytes
    means: list[float]
    deviations: list[float]
    dense_weights: list[list[float]]
    intercepts: list[float]
    domain_weights: dict[str, list[float]]


def extract_prompt(prompt: Prompt, _signals: Signals) -> PromptFeatures:
    """Read the last user turn and the domain."""
    return PromptFeatures(text=extract_text(prompt.last_user_text), domain=prompt.domain)


def fit_learned(rows: Sequence[PromptFeatures], scores: Matrix, _seed: int) -> LearnedModel:
    """Fit both heads; ``scores`` has shape (n, n_tiers), NaN where unknown."""
    from scipy.sparse import csr_array, hstack

    preparation = _prepare(rows)
    active, text = _text_design(rows, preparation)
    dense = np.stack([preparation.dense_row(row.text.numeric) for row in rows])
    plain = csr_array(hstack([text, csr_array(dense)], format="csr"))
    domains = sorted({row.domain for row in rows if row.domain is not None})
    fits = fit_tiers(plain, scores)
    domain_weights: dict[str, Matrix] = {}
    if domains:
        with_domain = csr_array(hstack([plain, _domain_design(rows, domains)], format="csr"))
        domain_fits = fit_tiers(with_domain, scores)
        table = np.stack([fit.weights[plain.shape[1] :] for fit in domain_fits], axis=1) * DOMAIN_SCALE
        domain_weights = dict(zip(domains, table, strict=True))
        fits += domain_fits
    return _assemble(preparation, active, fits, domain_weights)


def load_learned(state: bytes) -> LearnedModel:
    """Read what ``LearnedModel.to_bytes`` wrote.

    Raises:
        InputFileError: When it is malformed.
    """
    stored = decode_state(state, _State)
    n_outputs = len(stored.intercepts)
    n_tiers = n_outputs // (2 if stored.domain_weights else 1)
    active = np.frombuffer(stored.buckets, dtype="<u2").astype(np.intp)
    idf = np.full(N_BUCKETS, stored.idf_unseen, dtype=np.float32)
    text_weights = np.zeros((N_BUCKETS, n_outputs), dtype=np.float32)
    try:
        idf[active] = np.frombuffer(stored.idf, dtype="<f4")
        text_weights[active] = np.frombuffer(stored.text_weights, dtype="<f4").reshape(active.size, n_outputs)
    except ValueError as exc:
        raise InputFileError("not a scorer: its weights are cut; run 'llmtier fit-thresholds' again") from exc
    return LearnedModel(
        preparation=Preparation(
            idf=idf,
            means=as_matrix(stored.means, (N_NUMERIC,)),
            deviations=as_matrix(stored.deviations, (N_NUMERIC,)),
        ),
        text_weights=text_weights,
        dense_weights=as_matrix(stored.dense_weights, (N_DENSE, n_outputs)),
        intercepts=as_matrix(stored.intercepts, (n_outputs,)),
        domain_weights={name: as_matrix(values, (n_tiers,)) for name, values in stored.domain_weights.items()},
    )


def _prepare(rows: Sequence[PromptFeatures]) -> Preparation:
    document_counts = np.bincount(np.concatenate([row.text.buckets for row in rows]), minlength=N_BUCKETS)
    idf = np.log((1.0 + len(rows)) / (1.0 + document_counts)) + 1.0
    means, deviations = standardisation(np.stack([row.text.numeric for row in rows]))
    return Preparation(idf=idf.astype(np.float32), means=means, deviations=deviations)


def _text_design(
    rows: Sequence[PromptFeatures], preparation: Preparation
) -> tuple[NDArray[np.intp], "csr_array[np.float64]"]:
    """Return the active buckets and their matrix, shape (n_rows, n_active)."""
    from scipy.sparse import csr_array

    buckets = np.concatenate([row.text.buckets for row in rows])
    values = np.concatenate([preparation.text_row(row.text) for row in rows])
    starts = np.cumsum([0, *(row.text.buckets.size for row in rows)])
    active, columns = np.unique(buckets, return_inverse=True)
    return active, csr_array((values, columns, starts), shape=(len(rows), active.size))


def _domain_design(rows: Sequence[PromptFeatures], domains: Sequence[str]) -> "csr_array[np.float64]":
    from scipy.sparse import csr_array

    columns = {domain: column for column, domain in enumerate(domains)}
    cells = [(row, columns[item.domain]) for row, item in enumerate(rows) if item.domain is not None]
    values = np.full(len(cells), DOMAIN_SCALE)
    row_indices, column_indices = zip(*cells, strict=True)
    return csr_array((values, (row_indices, column_indices)), shape=(len(rows), len(domains)))


def _assemble(
    preparation: Preparation,
    active: NDArray[np.intp],
    fits: Sequence[LogisticFit],
    domain_weights: Mapping[str, Matrix],
) -> LearnedModel:
    n_text = active.size
    text_weights = np.zeros((N_BUCKETS, len(fits)), dtype=np.float32)
    text_weights[active] = np.stack([fit.weights[:n_text] for fit in fits], axis=1)
    return LearnedModel(
        preparation=preparation,
        text_weights=text_weights,
        dense_weights=np.stack([fit.weights[n_text : n_text + N_DENSE] for fit in fits], axis=1),
        intercepts=np.array([fit.intercept for fit in fits]),
        domain_weights=domain_weights,
    )


LEARNED: Recipe[PromptFeatures] = Recipe(kind="learned", extract=extract_prompt, fit=fit_learned, load=load_learned)
