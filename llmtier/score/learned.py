"""The ``learned`` scorer: logistic regression per tier on words, counts and domain; ``learned+semantic`` adds an embedding.

The blocks of ``score.blocks``, and for the domain a one-hot (which is a shrunken domain mean fitted jointly with the
text) and the words of its name, which domains share. Two heads are fitted, with and without the domain, and their
logits averaged, so that neither a useless label nor a missing one does harm. A request without a known domain
gets the mean of the domains' effects under a guess from its text. No setting is tuned to the data.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import InputFileError
from llmtier.core.prompt import Prompt
from llmtier.score.blocks import N_DENSE, Preparation, prepare, text_design
from llmtier.score.domain import DomainGuess, DomainModel, fit_domains
from llmtier.score.features import extract_text
from llmtier.score.learned_model import LearnedModel, PromptFeatures, load_model
from llmtier.score.recipe import Matrix, Recipe, decode_state, fit_tiers
from llmtier.score.signals import Signal, Signals
from llmtier.score.text import whole_text
from llmtier.score.words import N_BUCKETS
from llmtier.stats.logistic import LogisticFit

if TYPE_CHECKING:
    from scipy.sparse import csr_array

DOMAIN_SCALE = 0.6**0.5
NAME_SCALE = 0.3**0.5
EMBEDDING_SCALE = 1.0

_WORD = re.compile(r"[^\W\d_]+|\d+")


def extract_prompt(prompt: Prompt, signals: Signals) -> PromptFeatures:
    """Read the user's last turns, the domain and the embedding."""
    return PromptFeatures(extract_text(whole_text(prompt)), prompt.domain, signals.embedding)


def fit_learned(rows: Sequence[PromptFeatures], scores: Matrix, _seed: int) -> LearnedModel:
    """Fit both heads; ``scores`` has shape (n, n_tiers), NaN where unknown."""
    return _fit(rows, scores, None)


def _fit(rows: Sequence[PromptFeatures], scores: Matrix, embeddings: Matrix | None) -> LearnedModel:
    from scipy.sparse import csr_array, hstack

    texts = [row.text.packed() for row in rows]
    preparation = prepare(texts)
    active, text = text_design(texts, preparation)
    dense = np.stack([preparation.dense_row(row.numeric) for row in texts])
    parts = [text, csr_array(dense)]
    if embeddings is not None:
        parts.append(csr_array(embeddings * EMBEDDING_SCALE))
    plain = csr_array(hstack(parts, format="csr"))
    fits = fit_tiers(plain, scores)
    table = _DomainTable.of([row.domain for row in rows])
    domain_weights: dict[str, Matrix] = {}
    if table.domains:
        domain_fits = fit_tiers(csr_array(hstack([plain, table.design], format="csr")), scores)
        domain_weights = table.effects([fit.weights[plain.shape[1] :] for fit in domain_fits])
        fits += domain_fits
    guesser = fit_domains([(text, row.domain) for text, row in zip(texts, rows, strict=True)])
    return _assemble(preparation, active, fits, domain_weights, guesser)


@dataclass(frozen=True, slots=True, kw_only=True)
class _DomainTable:
    """The domains of the fit rows as columns.

    Attributes:
        domains: Their names, ascending.
        columns: What a domain's label puts into the domain block, shape (n_domains, n_domains + n_words).
        design: The block of the rows, shape (n_rows, n_domains + n_words).
    """

    domains: tuple[str, ...]
    columns: "csr_array[np.float64]"
    design: "csr_array[np.float64]"

    @classmethod
    def of(cls, labels: Sequence[str | None]) -> "_DomainTable":
        """Make the block of rows with these labels."""
        from scipy.sparse import csr_array, eye_array, hstack

        domains = tuple(sorted({label for label in labels if label is not None}))
        place = {domain: index for index, domain in enumerate(domains)}
        own = eye_array(len(domains), format="csr") * DOMAIN_SCALE
        columns = csr_array(hstack([own, _name_words(domains)], format="csr"))
        cells = [(row, place[label]) for row, label in enumerate(labels) if label is not None]
        indices = np.array(cells, dtype=np.intp).reshape(len(cells), 2).T
        which = csr_array((np.ones(len(cells)), (indices[0], indices[1])), shape=(len(labels), len(domains)))
        return cls(domains=domains, columns=columns, design=csr_array(which @ columns))

    def effects(self, weights: Sequence[Matrix]) -> dict[str, Matrix]:
        """Return what each domain adds to the logits, shape (n_tiers,) each, from the block's weights of each tier."""
        table = np.stack([np.asarray(self.columns @ own, dtype=np.float64) for own in weights], axis=1)
        return dict(zip(self.domains, table, strict=True))


def _name_words(domains: Sequence[str]) -> "csr_array[np.float64]":
    """Return which words the domains' names share, rows of norm ``NAME_SCALE`` at most, shape (n_domains, n_words)."""
    from scipy.sparse import csr_array

    words = [sorted(set(_WORD.findall(domain.lower()))) for domain in domains]
    shared = sorted(word for word, count in Counter(word for own in words for word in own).items() if count > 1)
    place = {word: index for index, word in enumerate(shared)}
    table = np.zeros((len(domains), len(shared)))
    for row, own in enumerate(words):
        for word in own:
            if word in place:
                table[row, place[word]] = NAME_SCALE / len(own) ** 0.5
    return csr_array(table)


def _assemble(
    preparation: Preparation,
    active: NDArray[np.intp],
    fits: Sequence[LogisticFit],
    domain_weights: Mapping[str, Matrix],
    guesser: DomainModel | None,
) -> LearnedModel:
    n_text = active.size
    weights = np.stack([fit.weights[: len(fits[0].weights)] for fit in fits], axis=1)
    text_weights = np.zeros((N_BUCKETS, len(fits)), dtype=np.float32)
    text_weights[active] = weights[:n_text]
    embedding = weights[n_text + N_DENSE :] * EMBEDDING_SCALE
    return LearnedModel(
        preparation=preparation,
        text_weights=text_weights,
        dense_weights=weights[n_text : n_text + N_DENSE],
        intercepts=np.array([fit.intercept for fit in fits]),
        domain_weights=domain_weights,
        guesser=guesser,
        embedding_weights=embedding.astype(np.float32) if embedding.size else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedModel:
    """``learned`` twice: with the embedding as one more block, and without for requests that have none."""

    joint: LearnedModel
    alone: LearnedModel

    def logits(self, features: PromptFeatures) -> Matrix:
        """Return shape (n_tiers,)."""
        return (self.alone if features.embedding is None else self.joint).logits(features)

    def guess_domain(self, features: PromptFeatures) -> DomainGuess | None:
        """Return the domain that the text seems to be of, as ``LearnedModel`` does."""
        return self.alone.guess_domain(features)

    def to_bytes(self) -> bytes:
        """Return the model as JSON."""
        state = _StackedState(joint=msgspec.Raw(self.joint.to_bytes()), alone=msgspec.Raw(self.alone.to_bytes()))
        return msgspec.json.encode(state)


class _StackedState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    joint: msgspec.Raw
    alone: msgspec.Raw


def fit_stacked(rows: Sequence[PromptFeatures], scores: Matrix, seed: int) -> StackedModel:
    """Fit with and without the embedding.

    Raises:
        InputFileError: A row has no embedding.
    """
    embeddings = [row.embedding for row in rows if row.embedding is not None]
    if len(embeddings) < len(rows):
        raise InputFileError(
            f"{len(rows) - len(embeddings)} of {len(rows)} prompts have no embedding; "
            "name an embedder (see 'llmtier embedder export'), or use the scorer 'learned'"
        )
    joint = _fit(rows, scores, np.stack(embeddings).astype(np.float64))
    return StackedModel(joint=joint, alone=fit_learned(rows, scores, seed))


def load_stacked(state: bytes) -> StackedModel:
    """Read what ``StackedModel.to_bytes`` wrote; raises as ``load_model``."""
    stored = decode_state(state, _StackedState)
    return StackedModel(joint=load_model(bytes(stored.joint)), alone=load_model(bytes(stored.alone)))


LEARNED: Recipe[PromptFeatures] = Recipe(
    kind="learned", extract=extract_prompt, fit=fit_learned, load=load_model, pack=PromptFeatures.packed
)
LEARNED_SEMANTIC: Recipe[PromptFeatures] = Recipe(
    kind="learned+semantic",
    extract=extract_prompt,
    fit=fit_stacked,
    load=load_stacked,
    pack=PromptFeatures.packed,
    reads=frozenset({Signal.EMBEDDING}),
    lacks=lambda _model, features: features.embedding is None,
)
