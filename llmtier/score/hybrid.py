"""The ``hybrid`` scorer: two scorers' logits in a weighted sum, one of the text and one from elsewhere.

The first member is ``semantic`` where the rows have embeddings, else ``learned``; the second is ``self_assess`` where
they have ratings, else ``entropy``. The weights start at 0.6 and 0.4 and are fitted, per tier, on logits of rows that
the members did not see; a prior as strong as a few hundred labels holds them near the start, and none is negative.

Both logits enter as deviations from the tier's base rate, so that a member which knows nothing of a prompt can be left
out: the other then speaks alone. That is how a rating asked for only near the threshold is used.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import InputFileError
from llmtier.core.prompt import Prompt
from llmtier.score.entropy import ENTROPY
from llmtier.score.learned import LEARNED
from llmtier.score.recipe import Matrix, Model, Recipe, as_matrix, decode_state, logit, mean_scores
from llmtier.score.self_assess import SELF_ASSESS
from llmtier.score.semantic import SEMANTIC
from llmtier.score.signals import Signal, Signals
from llmtier.score.text import scored_text
from llmtier.stats.logistic import sigmoid

START_WEIGHTS = (0.6, 0.4)
PRIOR_STRENGTH = 20.0  # a row's curvature is about p(1 - p) * deviation^2 = 0.1: some 200 labels weigh as much
N_FOLDS = 4
ENOUGH_SIGNALS = 50
"""A member that needs a signal takes part when this many rows carry it, or half of them where rows are few."""

_MEMBERS: dict[str, Recipe[Any]] = {recipe.kind: recipe for recipe in (SEMANTIC, LEARNED, SELF_ASSESS, ENTROPY)}


class HybridFeatures:
    """One prompt and its signals, from which each member extracts its own when it is first asked.

    Args:
        prompt: What is scored.
        signals: What is known of it.
    """

    def __init__(self, prompt: Prompt, signals: Signals) -> None:
        self._prompt = prompt
        self._signals = signals
        self._is_kept = False
        self._extracted: dict[str, Any] = {}

    def of(self, kind: str) -> Any:  # noqa: ANN401 - each member has its own type
        """Return the features of the member called ``kind``."""
        if kind not in self._extracted:
            extracted = _MEMBERS[kind].extract(self._prompt, self._signals)
            self._extracted[kind] = _MEMBERS[kind].pack(extracted) if self._is_kept else extracted
        return self._extracted[kind]

    def packed(self) -> "HybridFeatures":
        """Return itself, from now on to keep its members' features in little memory."""
        self._is_kept = True
        return self

    def knows(self, kind: str) -> bool:
        """Return whether the member called ``kind`` has what it reads."""
        has = {Signal.EMBEDDING: self._signals.embedding is not None, Signal.RATING: self._signals.rating is not None}
        return all(has[signal] for signal in _MEMBERS[kind].reads)

    @cached_property
    def text_digest(self) -> int:
        """A hash of the text that is scored; the same in every process."""
        text = scored_text(self._prompt).encode(errors="surrogatepass")
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


class _MemberState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    model: msgspec.Raw


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    members: tuple[_MemberState, _MemberState]
    base: list[float]
    weights: list[list[float]]
    offsets: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridModel:
    """A weighted sum of two members' logits.

    Attributes:
        kinds: The members' names, first and second.
        models: Theirs.
        base: Logits of the tiers' mean scores, shape (n_tiers,).
        weights: Of the members' deviations from it, shape (n_tiers, 2).
        offsets: Added where both speak, shape (n_tiers,).
    """

    kinds: tuple[str, str]
    models: tuple[Model[Any], Model[Any]]
    base: Matrix
    weights: Matrix
    offsets: Matrix

    @property
    def reads(self) -> frozenset[Signal]:
        """The signals that its members read; fewer than the recipe may, once fitted."""
        return _MEMBERS[self.kinds[0]].reads | _MEMBERS[self.kinds[1]].reads

    def logits(self, features: HybridFeatures) -> Matrix:
        """Return shape (n_tiers,)."""
        speaks = [features.knows(kind) for kind in self.kinds]
        if not any(speaks):
            return self.base
        if not all(speaks):
            alone = speaks.index(True)
            return self.models[alone].logits(features.of(self.kinds[alone]))
        deviations = [
            model.logits(features.of(kind)) - self.base for kind, model in zip(self.kinds, self.models, strict=True)
        ]
        combined = self.weights[:, 0] * deviations[0] + self.weights[:, 1] * deviations[1]
        return np.asarray(self.base + self.offsets + combined, dtype=np.float64)

    def to_bytes(self) -> bytes:
        """Return the model as JSON, its members inside."""
        first, second = (
            _MemberState(kind=kind, model=msgspec.Raw(model.to_bytes()))
            for kind, model in zip(self.kinds, self.models, strict=True)
        )
        state = _State(
            members=(first, second),
            base=self.base.tolist(),
            weights=self.weights.tolist(),
            offsets=self.offsets.tolist(),
        )
        return msgspec.json.encode(state)


def fit_hybrid(rows: Sequence[HybridFeatures], scores: Matrix, seed: int) -> HybridModel:
    """Choose and fit the members, then their weights; ``scores`` has shape (n, n_tiers), NaN where unknown."""
    kinds = choose_members(rows)
    base = logit(mean_scores(scores))
    folds = assign_inner_folds(rows)
    logits = np.stack([_member_out_of_fold(kind, rows, scores, folds, seed) for kind in kinds], axis=-1)
    is_told = np.array([all(row.knows(kind) for kind in kinds) for row in rows])
    fits = [
        fit_weights(logits[is_told, tier] - base[tier], scores[is_told, tier], base=float(base[tier]))
        for tier in range(scores.shape[1])
    ]
    first, second = (_fit_member(kind, rows, scores, seed) for kind in kinds)
    return HybridModel(
        kinds=kinds,
        models=(first, second),
        base=base,
        weights=np.stack([fit[:2] for fit in fits]),
        offsets=np.array([fit[2] for fit in fits]),
    )


def choose_members(rows: Sequence[HybridFeatures]) -> tuple[str, str]:
    """Return the kinds of the two members for which the rows carry enough signals."""
    enough = max(1, min(ENOUGH_SIGNALS, len(rows) // 2))
    n_embedded = sum(row.knows(SEMANTIC.kind) for row in rows)
    n_rated = sum(row.knows(SELF_ASSESS.kind) for row in rows)
    first = SEMANTIC if n_embedded >= enough else LEARNED
    return first.kind, (SELF_ASSESS if n_rated >= enough else ENTROPY).kind


def assign_inner_folds(rows: Sequence[HybridFeatures]) -> NDArray[np.intp]:
    """Return a fold for each row, shape (n,): the same for the same text, whatever the order of the rows."""
    digests = [row.text_digest for row in rows]
    ranks = {digest: rank for rank, digest in enumerate(sorted(set(digests)))}
    return np.array([ranks[digest] % N_FOLDS for digest in digests], dtype=np.intp)


def fit_weights(deviations: Matrix, targets: Matrix, *, base: float) -> Matrix:
    """Fit one tier's two weights and its offset; return shape (3,).

    Minimises the logistic loss plus ``PRIOR_STRENGTH / 2`` times the squared distance from the start; the offset has a
    prior at 0 of strength 1.

    Args:
        deviations: Members' logits less ``base``, out of fold, shape (n, 2).
        targets: Scores in [0, 1], NaN where unknown, shape (n,).
        base: Logit of the tier's mean score.
    """
    from scipy.optimize import minimize

    start = np.array([*START_WEIGHTS, 0.0])
    strength = np.array([PRIOR_STRENGTH, PRIOR_STRENGTH, 1.0])
    known = ~np.isnan(targets)
    if not known.any():
        return start
    design = np.column_stack([deviations[known], np.ones(int(known.sum()))])
    wanted = targets[known]

    def loss(parameters: Matrix) -> tuple[float, Matrix]:
        logits = design @ parameters + base
        lean = parameters - start
        value = float(np.logaddexp(0.0, logits).sum() - wanted @ logits + 0.5 * (strength * lean) @ lean)
        return value, (sigmoid(logits) - wanted) @ design + strength * lean

    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None), (0.0, None), (None, None)])
    return np.asarray(found.x, dtype=np.float64)


def load_hybrid(state: bytes) -> HybridModel:
    """Read what ``HybridModel.to_bytes`` wrote.

    Raises:
        InputFileError: When it is malformed.
    """
    stored = decode_state(state, _State)
    first, second = stored.members
    n_tiers = len(stored.base)
    return HybridModel(
        kinds=(first.kind, second.kind),
        models=(_load_member(first), _load_member(second)),
        base=as_matrix(stored.base, (n_tiers,)),
        weights=as_matrix(stored.weights, (n_tiers, 2)),
        offsets=as_matrix(stored.offsets, (n_tiers,)),
    )


def _load_member(member: _MemberState) -> Model[Any]:
    if member.kind not in _MEMBERS:
        raise InputFileError(f"not a scorer: unknown member {member.kind!r}; run 'llmtier fit-thresholds' again")
    return _MEMBERS[member.kind].load(bytes(member.model))


def _fit_member(kind: str, rows: Sequence[HybridFeatures], scores: Matrix, seed: int) -> Model[Any]:
    return _MEMBERS[kind].fit([row.of(kind) for row in rows], scores, seed)


def _member_out_of_fold(
    kind: str, rows: Sequence[HybridFeatures], scores: Matrix, folds: NDArray[np.intp], seed: int
) -> Matrix:
    """Return logits of rows that the member was not fitted on, shape (n, n_tiers); zeros where all texts are one."""
    logits = np.zeros_like(scores)
    for fold in np.unique(folds).tolist():
        is_held_out = folds == fold
        if is_held_out.all():
            break
        kept = [row for row, is_out in zip(rows, is_held_out, strict=True) if not is_out]
        model = _fit_member(kind, kept, scores[~is_held_out], seed)
        held_out = [row for row, is_out in zip(rows, is_held_out, strict=True) if is_out]
        logits[is_held_out] = [model.logits(row.of(kind)) for row in held_out]
    return logits


HYBRID: Recipe[HybridFeatures] = Recipe(
    kind="hybrid",
    extract=HybridFeatures,
    fit=fit_hybrid,
    load=load_hybrid,
    pack=HybridFeatures.packed,
    reads=frozenset({Signal.EMBEDDING, Signal.RATING}),
    lacks=lambda model, features: not all(features.knows(kind) for kind in model.kinds),
)
