"""Scorers as everybody uses them: fit one, load one, ask it for P(correct | prompt, tier).

Fits a recipe on labelled prompts, calibrates each tier by Platt's method on out-of-fold logits and
stores all of it as one JSON document. Chooses no tier and touches no file.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import InputFileError, SchemaVersionError, UsageError
from llmtier.core.prompt import LabelledPrompt, Prompt
from llmtier.score.controls import DOMAIN_MEAN, LENGTH, RANDOM
from llmtier.score.domain import DomainGuess
from llmtier.score.entropy import ENTROPY
from llmtier.score.hybrid import HYBRID, HybridModel
from llmtier.score.learned import LEARNED, LEARNED_SEMANTIC, StackedModel, extract_prompt
from llmtier.score.learned_model import LearnedModel
from llmtier.score.recipe import Features, Matrix, Model, Recipe, decode_state
from llmtier.score.self_assess import SELF_ASSESS
from llmtier.score.semantic import SEMANTIC
from llmtier.score.signals import NO_SIGNALS, Signal, Signals
from llmtier.stats.logistic import Platt, platt

SCHEMA_VERSION = 1
MIN_LABELS = 10
"""Fewest scored prompts a tier, two for each of five folds."""

_RECIPES: tuple[Recipe[Any], ...] = (
    LEARNED,
    LEARNED_SEMANTIC,
    SEMANTIC,
    ENTROPY,
    SELF_ASSESS,
    HYBRID,
    LENGTH,
    DOMAIN_MEAN,
    RANDOM,
)

_AS_IS = Platt()

KINDS = tuple(recipe.kind for recipe in _RECIPES)
"""Every scorer kind; the last three are controls."""


class Scorer(Protocol):
    """Predicts P(correct) of a prompt on each tier it was fitted for."""

    @property
    def kind(self) -> str:
        """Name of the recipe."""
        ...

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers it knows, in the order of the fit."""
        ...

    @property
    def reads(self) -> frozenset[Signal]:
        """The signals it makes use of; without them it falls back."""
        ...

    def probabilities(self, prompt: Prompt, signals: Signals = NO_SIGNALS) -> dict[str, float]:
        """Return tier name to P(correct), each in [0, 1]."""
        ...

    def guess_domain(self, prompt: Prompt) -> DomainGuess | None:
        """Return the domain that an unlabelled prompt seems to be of; ``None`` when it is named or nothing is known."""
        ...

    def to_bytes(self) -> bytes:
        """Return the scorer as JSON, for ``load_scorer``."""
        ...


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema_version: int
    kind: str
    tiers: tuple[str, ...]
    calibration: tuple[tuple[float, float], ...]
    model: msgspec.Raw


class _Header(msgspec.Struct, frozen=True):
    schema_version: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedScorer(Generic[Features]):
    """A fitted model with one calibration a tier.

    Attributes:
        recipe: What extracts its features.
        model: Logits, one a tier.
        tiers: Names, in the order of the logits.
        calibration: One a tier.
    """

    recipe: Recipe[Features]
    model: Model[Features]
    tiers: tuple[str, ...]
    calibration: tuple[Platt, ...]

    @property
    def kind(self) -> str:
        """Name of the recipe."""
        return self.recipe.kind

    @property
    def reads(self) -> frozenset[Signal]:
        """The signals it makes use of; a fitted ``hybrid`` reads those of its members only."""
        model: object = self.model
        return model.reads if isinstance(model, HybridModel) else self.recipe.reads

    def probabilities(self, prompt: Prompt, signals: Signals = NO_SIGNALS) -> dict[str, float]:
        """Return tier name to P(correct), each in [0, 1]."""
        features = self.recipe.extract(prompt, signals)
        logits = self.model.logits(features).tolist()
        if self.recipe.lacks(self.model, features):
            return {tier: _AS_IS.apply_one(logit) for tier, logit in zip(self.tiers, logits, strict=True)}
        return {
            tier: platt.apply_one(logit)
            for tier, platt, logit in zip(self.tiers, self.calibration, logits, strict=True)
        }

    def guess_domain(self, prompt: Prompt) -> DomainGuess | None:
        """Return the domain that the text seems to be of; ``None`` when it is named, or the scorer knows none."""
        model: object = self.model
        if not isinstance(model, LearnedModel | StackedModel):
            return None
        return model.guess_domain(extract_prompt(prompt, NO_SIGNALS))

    def to_bytes(self) -> bytes:
        """Return the scorer as JSON."""
        state = _State(
            schema_version=SCHEMA_VERSION,
            kind=self.kind,
            tiers=self.tiers,
            calibration=tuple((tier.slope, tier.offset) for tier in self.calibration),
            model=msgspec.Raw(self.model.to_bytes()),
        )
        return msgspec.json.encode(state)


def fit_scorer(
    kind: str,
    labelled: Sequence[LabelledPrompt],
    tiers: Sequence[str],
    *,
    seed: int,
    signals: Sequence[Signals] | None = None,
) -> Scorer:
    """Fit a scorer on labelled prompts; the arguments are those of ``fit_out_of_fold``.

    Raises:
        UsageError: When the kind is unknown or no tier is named.
        InputFileError: When a tier has too few scores.
    """
    return fit_out_of_fold(kind, labelled, tiers, seed=seed, signals=signals)[0]


def fit_out_of_fold(  # one call, named arguments
    kind: str,
    labelled: Sequence[LabelledPrompt],
    tiers: Sequence[str],
    *,
    seed: int,
    folds: int = 5,
    signals: Sequence[Signals] | None = None,
) -> tuple[Scorer, NDArray[np.float64]]:
    """Fit a scorer, and predict each row by a model that did not see it.

    Identical texts share a fold. The two numbers of a tier's calibration are fitted on all
    out-of-fold logits, so the returned probabilities are out of fold but for those.

    Args:
        kind: One of ``KINDS``.
        labelled: The rows.
        tiers: Columns of the result.
        seed: Of the folds and of what a recipe draws.
        folds: How many.
        signals: Of each row; ``None`` leaves their ratings alone.

    Returns:
        The scorer fitted on all rows, and P(correct) out of fold, shape (n, n_tiers).

    Raises:
        UsageError: When the kind is unknown or no tier is named.
        InputFileError: When a tier has too few scores.
    """
    recipe = _find_recipe(kind)
    given = [Signals(rating=item.rating) for item in labelled] if signals is None else signals
    order = _fixed_order(labelled, seed)
    labelled, given = [labelled[row] for row in order], [given[row] for row in order]
    scores = score_matrix(labelled, tiers)
    _check_labels(scores, tiers)
    rows = [recipe.pack(recipe.extract(item.prompt, more)) for item, more in zip(labelled, given, strict=True)]
    fold_of_row = assign_folds([item.prompt.last_user_text for item in labelled], seed=seed, folds=folds)
    if not fold_of_row.any():
        raise InputFileError("all labelled prompts have the same text; a scorer needs different ones")
    logits = _logits_out_of_fold(recipe, rows, scores, fold_of_row, seed)
    calibration = tuple(
        _fit_calibration(logits[:, tier], scores[:, tier]) if recipe.is_calibrated else Platt()
        for tier in range(len(tiers))
    )
    model = recipe.fit(rows, scores, seed)
    scorer = FittedScorer(recipe=recipe, model=model, tiers=tuple(tiers), calibration=calibration)
    return scorer, _calibrate(logits, calibration)[np.argsort(order)]


def _fixed_order(labelled: Sequence[LabelledPrompt], seed: int) -> list[int]:
    """Return the rows' places in an order that their contents and the seed decide, not the file they came from."""
    keys = [
        (text_digest(item.prompt.last_user_text, seed), item.prompt.domain or "", item.prompt.id) for item in labelled
    ]
    return sorted(range(len(keys)), key=keys.__getitem__)


def load_scorer(kind: str, state: bytes) -> Scorer:
    """Read what ``Scorer.to_bytes`` wrote.

    Raises:
        SchemaVersionError: When another generation of llmtier wrote it.
        InputFileError: When it is malformed or of another kind.
        UsageError: When the kind is unknown.
    """
    recipe = _find_recipe(kind)
    header = decode_state(state, _Header)
    if header.schema_version != SCHEMA_VERSION:
        raise SchemaVersionError(
            f"scorer: schema {header.schema_version}, this llmtier reads {SCHEMA_VERSION}; run 'llmtier fit-thresholds'"
        )
    if header.kind != kind:
        raise InputFileError(f"scorer: kind {header.kind!r}, the policy says {kind!r}; run 'llmtier fit-thresholds'")
    stored = decode_state(state, _State)
    model = recipe.load(bytes(stored.model))
    calibration = tuple(Platt(slope=slope, offset=offset) for slope, offset in stored.calibration)
    if len(calibration) != len(stored.tiers):
        raise InputFileError(
            f"scorer: {len(calibration)} calibrations for {len(stored.tiers)} tiers; run 'llmtier fit-thresholds'"
        )
    return FittedScorer(recipe=recipe, model=model, tiers=stored.tiers, calibration=calibration)


def score_matrix(labelled: Sequence[LabelledPrompt], tiers: Sequence[str]) -> NDArray[np.float64]:
    """Return scores of shape (n, n_tiers), NaN where a tier has none."""
    rows = [[item.scores.get(tier, np.nan) for tier in tiers] for item in labelled]
    return np.array(rows, dtype=np.float64).reshape(len(labelled), len(tiers))


def assign_folds(texts: Sequence[str], *, seed: int, folds: int) -> NDArray[np.intp]:
    """Return a fold number for each text, equal for equal texts and whatever their order."""
    digests = [text_digest(text, seed) for text in texts]
    ranks = {digest: rank for rank, digest in enumerate(sorted(set(digests)))}
    return np.array([ranks[digest] % folds for digest in digests], dtype=np.intp)


def text_digest(text: str, seed: int) -> bytes:
    """Return a seeded sha256 of a text, the order that every split is drawn in."""
    return hashlib.sha256(f"{seed}:".encode() + text.encode(errors="surrogatepass")).digest()


def _find_recipe(kind: str) -> Recipe[Any]:
    by_kind: Mapping[str, Recipe[Any]] = {recipe.kind: recipe for recipe in _RECIPES}
    if kind not in by_kind:
        raise UsageError(f"scorer {kind!r} is unknown; use one of: {', '.join(KINDS)}")
    return by_kind[kind]


def _check_labels(scores: Matrix, tiers: Sequence[str]) -> None:
    if not tiers:
        raise UsageError("a scorer needs at least one tier")
    for tier, n_labels in zip(tiers, (~np.isnan(scores)).sum(axis=0).tolist(), strict=True):
        if n_labels < MIN_LABELS:
            raise InputFileError(
                f"tier {tier} has {n_labels} scored prompts, at least {MIN_LABELS} are needed; "
                "score more with 'llmtier replay'"
            )


def _logits_out_of_fold(
    recipe: Recipe[Features], rows: Sequence[Features], scores: Matrix, fold_of_row: NDArray[np.intp], seed: int
) -> Matrix:
    logits = np.empty_like(scores)
    for fold in range(int(fold_of_row.max()) + 1):
        is_held_out = fold_of_row == fold
        kept = [row for row, is_out in zip(rows, is_held_out, strict=True) if not is_out]
        held_out = [row for row, is_out in zip(rows, is_held_out, strict=True) if is_out]
        model = recipe.fit(kept, scores[~is_held_out], seed)
        logits[is_held_out] = [model.logits(row) for row in held_out]
    return logits


def _fit_calibration(logits: Matrix, scores: Matrix) -> Platt:
    known = ~np.isnan(scores)
    return platt(logits[known], scores[known])


def _calibrate(logits: Matrix, calibration: Sequence[Platt]) -> Matrix:
    """Return probabilities of shape (..., n_tiers)."""
    columns = [tier.apply(logits[..., index]) for index, tier in enumerate(calibration)]
    return np.stack(columns, axis=-1)
