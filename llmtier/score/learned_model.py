"""A fitted ``learned`` model: features to logits a tier, and its stored form.

Two heads, without and with the domain; ``score.learned`` fits it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np

from llmtier.core.errors import InputFileError
from llmtier.score.blocks import N_DENSE, Floats, Preparation
from llmtier.score.domain import N_COARSE, DomainGuess, DomainModel
from llmtier.score.features import N_BUCKETS, N_NUMERIC, TextFeatures
from llmtier.score.recipe import Matrix, as_matrix, decode_state

_DOMAIN_SHARE = 2 / 3  # of the head that knows the domain: 1/2 cost 0.002 to 0.004 APGR on MMLU (docs/log.md)
_GUESS_SHARE = 1 / 2  # of it where the domain is a guess


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFeatures:
    """What the learned scorer reads of a prompt; ``embedding`` has unit norm and is ``None`` without an embedder."""

    text: TextFeatures
    domain: str | None
    embedding: Floats | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedModel:
    """Two heads of logits a tier; ``n_outputs`` is n_tiers x n_heads, head without domain first.

    Attributes:
        preparation: Features to rows.
        text_weights: Shape (N_BUCKETS, n_outputs); zero for buckets that no fit row had.
        dense_weights: Shape (N_DENSE, n_outputs).
        intercepts: Shape (n_outputs,).
        domain_weights: Effect of each domain, shape (n_tiers,); empty without domains, and then there is one head.
        guesser: Of a domain that is not named; ``None`` with fewer than two.
        embedding_weights: Shape (n_dimensions, n_outputs); ``None`` without an embedder.
    """

    preparation: Preparation
    text_weights: Floats
    dense_weights: Matrix
    intercepts: Matrix
    domain_weights: Mapping[str, Matrix]
    guesser: DomainModel | None = None
    embedding_weights: Floats | None = None
    _mixes: dict[float, "_Head"] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def n_tiers(self) -> int:
        """Number of tiers."""
        return self.intercepts.size // (2 if self.domain_weights else 1)

    def logits(self, features: PromptFeatures) -> Matrix:
        """Return shape (n_tiers,)."""
        known = None if features.domain is None else self.domain_weights.get(features.domain)
        if known is not None:
            return self._mix(_DOMAIN_SHARE).outputs(self.preparation, features) + _DOMAIN_SHARE * known
        if self.guesser is None:
            return self._mix(0.0).outputs(self.preparation, features)
        effects = np.stack([self.domain_weights[domain] for domain in self.guesser.domains])
        guessed = self.guesser.posterior(features.text) @ effects
        return self._mix(_GUESS_SHARE).outputs(self.preparation, features) + _GUESS_SHARE * guessed

    def _mix(self, share: float) -> "_Head":
        """Return both heads as one, ``share`` of it the head that knows the domain; made once."""
        if share not in self._mixes:
            self._mixes[share] = _Head.mix(self, share)
        return self._mixes[share]

    def guess_domain(self, features: PromptFeatures) -> DomainGuess | None:
        """Return the domain that the text seems to be of; ``None`` when it is named, or nothing can be guessed."""
        is_known = features.domain is not None and features.domain in self.domain_weights
        return None if is_known or self.guesser is None else self.guesser.guess(features.text)

    def to_bytes(self) -> bytes:
        """Return the model as JSON; only buckets that carry a weight are stored."""
        idf = self.preparation.idf
        active = np.flatnonzero(np.any(self.text_weights != 0, axis=1) | (idf != idf.max()))
        state = _State(
            buckets=active.astype("<u2").tobytes(),
            idf=idf[active].astype("<f4").tobytes(),
            idf_unseen=float(idf.max()),
            text_weights=self.text_weights[active].astype("<f4").tobytes(),
            means=self.preparation.means.tolist(),
            deviations=self.preparation.deviations.tolist(),
            dense_weights=self.dense_weights.tolist(),
            intercepts=self.intercepts.tolist(),
            domain_weights={domain: weights.tolist() for domain, weights in self.domain_weights.items()},
            guesser=None if self.guesser is None else _pack_guesser(self.guesser),
            embedding_weights=b"" if self.embedding_weights is None else self.embedding_weights.astype("<f4").tobytes(),
        )
        return msgspec.json.encode(state)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """One head of logits a tier.

    Attributes:
        table: idf and weights of each bucket side by side, so that a request's buckets are looked up once, shape
            (N_BUCKETS, 1 + n_tiers).
        dense: Shape (N_DENSE, n_tiers); likewise ``intercepts`` (n_tiers,).
        embedding: Shape (n_dimensions, n_tiers); ``None`` without an embedder.
    """

    table: Floats
    dense: Matrix
    intercepts: Matrix
    embedding: Floats | None

    @classmethod
    def mix(cls, model: LearnedModel, share: float) -> "_Head":
        """Return the model's heads weighted: ``share`` for the one with the domain."""
        k = model.n_tiers

        def mixed(values: Matrix | Floats) -> Matrix:
            if not model.domain_weights:
                return np.asarray(values, dtype=np.float64)
            return np.asarray((1.0 - share) * values[..., :k] + share * values[..., k:], dtype=np.float64)

        table = np.column_stack([model.preparation.idf, mixed(model.text_weights)]).astype(np.float32)
        embedding = None if model.embedding_weights is None else mixed(model.embedding_weights).astype(np.float32)
        return cls(
            table=table, dense=mixed(model.dense_weights), intercepts=mixed(model.intercepts), embedding=embedding
        )

    def outputs(self, preparation: Preparation, features: PromptFeatures) -> Matrix:
        """Return shape (n_tiers,), without the domain's own effect."""
        rows = self.table.take(features.text.buckets, axis=0)
        weighted = features.text.values * rows[:, 0]
        norm = float(weighted @ weighted) ** 0.5
        outputs = preparation.dense_row(features.text.numeric) @ self.dense + self.intercepts
        if norm > 0:
            outputs += (weighted @ rows[:, 1:]) / norm
        if self.embedding is not None and features.embedding is not None:
            outputs += features.embedding @ self.embedding
        return np.asarray(outputs, dtype=np.float64)


class _Guesser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    domains: tuple[str, ...]
    evidence: bytes
    prior: list[float]


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
    guesser: _Guesser | None
    embedding_weights: bytes


def load_model(state: bytes) -> LearnedModel:
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
    idf[active] = _floats(stored.idf, (active.size,))
    text_weights[active] = _floats(stored.text_weights, (active.size, n_outputs))
    means = as_matrix(stored.means, (N_NUMERIC,))
    deviations = as_matrix(stored.deviations, (N_NUMERIC,))
    return LearnedModel(
        preparation=Preparation(idf=idf, means=means, deviations=deviations),
        text_weights=text_weights,
        dense_weights=as_matrix(stored.dense_weights, (N_DENSE, n_outputs)),
        intercepts=as_matrix(stored.intercepts, (n_outputs,)),
        domain_weights={name: as_matrix(values, (n_tiers,)) for name, values in stored.domain_weights.items()},
        guesser=None if stored.guesser is None else _unpack_guesser(stored.guesser, stored.domain_weights),
        embedding_weights=_floats(stored.embedding_weights, (-1, n_outputs)) if stored.embedding_weights else None,
    )


def _pack_guesser(guesser: DomainModel) -> _Guesser:
    # Half precision: the evidence is tempered to a few units, and a guess needs no more.
    evidence = guesser.evidence.astype("<f2").tobytes()
    return _Guesser(domains=guesser.domains, evidence=evidence, prior=guesser.prior.tolist())


def _unpack_guesser(stored: _Guesser, known: Mapping[str, object]) -> DomainModel:
    n_domains = len(stored.domains)
    if not set(stored.domains) <= known.keys():
        raise InputFileError("not a scorer: it guesses domains that it has no weights of; run 'llmtier fit-thresholds'")
    return DomainModel(
        domains=stored.domains,
        evidence=_floats(stored.evidence, (N_COARSE, n_domains), kind="<f2"),
        prior=as_matrix(stored.prior, (n_domains,)),
    )


def _floats(data: bytes, shape: tuple[int, ...], *, kind: str = "<f4") -> Floats:
    """Return stored numbers as an array of ``shape``.

    Raises:
        InputFileError: When they do not fill it.
    """
    try:
        return np.frombuffer(data, dtype=kind).reshape(shape).astype(np.float32)
    except ValueError as exc:
        raise InputFileError("not a scorer: its weights are cut; run 'llmtier fit-thresholds' again") from exc
