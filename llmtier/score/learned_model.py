"""A fitted ``learned`` model: features to logits a tier, and its stored form.

Two heads, without and with the domain; ``score.learned`` fits it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from llmtier.core.errors import InputFileError
from llmtier.score.blocks import N_DENSE, Floats, Preparation
from llmtier.score.domain import N_COARSE, DomainGuess, DomainModel
from llmtier.score.features import N_NUMERIC, TextFeatures
from llmtier.score.head import Head
from llmtier.score.recipe import Matrix, as_matrix, decode_state
from llmtier.score.words import N_BUCKETS, native_reader, wide_tables

if TYPE_CHECKING:
    from llmtier.score._native import Guesser

_DOMAIN_SHARE = 2 / 3  # of the head that knows the domain: 1/2 cost 0.002 to 0.004 APGR on MMLU (docs/log.md)
_GUESS_SHARE = 1 / 2  # of it where the domain is a guess


class PromptFeatures(NamedTuple):
    """What the learned scorer reads of a prompt; ``embedding`` has unit norm and is ``None`` without an embedder."""

    text: TextFeatures
    domain: str | None
    embedding: Floats | None = None

    def packed(self) -> "PromptFeatures":
        """Return the same in less memory."""
        return self._replace(text=self.text.packed())


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
    _mixes: dict[float, "_Mix"] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def n_tiers(self) -> int:
        """Number of tiers."""
        return self.intercepts.size // (2 if self.domain_weights else 1)

    def logits(self, features: PromptFeatures) -> Matrix:
        """Return shape (n_tiers,)."""
        if features.domain is not None and features.domain in self.domain_weights:
            mix = self._mix(_DOMAIN_SHARE)
            effects = mix.effects[features.domain]
        elif self.guesser is None:
            return np.array(self._mix(0.0).head.outputs(features.text, features.embedding))
        else:
            mix = self._mix(_GUESS_SHARE)
            effects = mix.guess_effects(self.guesser, features.text)
        outputs = mix.head.outputs(features.text, features.embedding)
        return np.array([output + effect for output, effect in zip(outputs, effects, strict=True)])

    def warm(self) -> None:
        """Lay out now what the first requests would have to wait for: some 20 ms."""
        wide_tables()
        for is_ascii in (True, False):
            native_reader(is_ascii=is_ascii)
        self._mix(0.0 if self.guesser is None else _GUESS_SHARE)
        if self.domain_weights:
            self._mix(_DOMAIN_SHARE)

    def _mix(self, share: float) -> "_Mix":
        """Return both heads as one, ``share`` of it the head that knows the domain; made once."""
        if share not in self._mixes:
            self._mixes[share] = _Mix.make(self, share)
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
class _Mix:
    """Both heads as one.

    Attributes:
        head: What all prompts share.
        effects: What a named domain adds, one number a tier.
        guessed_effects: The same of the domains that can be guessed, shape (n_domains, n_tiers).
        native: What takes their mean in C; ``None`` where nothing does.
    """

    head: Head
    effects: Mapping[str, list[float]]
    guessed_effects: Matrix
    native: "Guesser | None" = None

    def guess_effects(self, guesser: DomainModel, text: TextFeatures) -> list[float]:
        """Return the mean of the domains' effects under a guess from the text, one number a tier."""
        return (
            guesser.expected(text, self.guessed_effects) if self.native is None else self.native.effects(text.buckets)
        )

    @classmethod
    def make(cls, model: LearnedModel, share: float) -> "_Mix":
        """Weigh the model's heads: ``share`` for the one with the domain."""
        k = model.n_tiers

        def mixed(values: Matrix | Floats) -> Matrix:
            if not model.domain_weights:
                return np.asarray(values, dtype=np.float64)
            return np.asarray((1.0 - share) * values[..., :k] + share * values[..., k:], dtype=np.float64)

        head = Head.make(
            model.preparation,
            mixed(model.text_weights),
            mixed(model.dense_weights),
            mixed(model.intercepts),
            None if model.embedding_weights is None else mixed(model.embedding_weights),
        )
        effects = {domain: share * weights for domain, weights in model.domain_weights.items()}
        domains = () if model.guesser is None else model.guesser.domains
        guessed_effects = np.array([effects[domain] for domain in domains]).reshape(len(domains), k)
        return cls(
            head=head,
            effects={domain: values.tolist() for domain, values in effects.items()},
            guessed_effects=guessed_effects,
            native=None if model.guesser is None else model.guesser.native(guessed_effects),
        )


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
    model = LearnedModel(
        preparation=Preparation(idf=idf, means=means, deviations=deviations),
        text_weights=text_weights,
        dense_weights=as_matrix(stored.dense_weights, (N_DENSE, n_outputs)),
        intercepts=as_matrix(stored.intercepts, (n_outputs,)),
        domain_weights={name: as_matrix(values, (n_tiers,)) for name, values in stored.domain_weights.items()},
        guesser=None if stored.guesser is None else _unpack_guesser(stored.guesser, stored.domain_weights),
        embedding_weights=_floats(stored.embedding_weights, (-1, n_outputs)) if stored.embedding_weights else None,
    )
    model.warm()
    return model


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
