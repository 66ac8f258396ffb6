"""How a scorer is made: features of a prompt, a model of logits per tier, and its stored form.

Holds the two shapes that every scorer file fills in, and the one loop over tiers they share. Does
no calibration and no folds: ``score.scorer`` does both for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import InputFileError
from llmtier.core.prompt import Prompt
from llmtier.score.signals import Signal, Signals
from llmtier.stats.logistic import Design, LogisticFit, fit_logistic

Matrix = NDArray[np.float64]
Features = TypeVar("Features")
Features_contra = TypeVar("Features_contra", contravariant=True)
State = TypeVar("State", bound=msgspec.Struct)


class Model(Protocol[Features_contra]):
    """Fitted logits of P(correct), one a tier, not yet calibrated."""

    def logits(self, features: Features_contra) -> Matrix:
        """Return shape (n_tiers,)."""
        ...

    def to_bytes(self) -> bytes:
        """Return the model as JSON."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Generic[Features]):
    """One kind of scorer.

    Attributes:
        kind: Its name in a policy.
        extract: Features of one prompt and its signals.
        reads: The signals it makes use of.
        lacks: (model, features) -> whether the features lack what the model was fitted on, so that its logits are base
            rates or those of a simpler model: the calibration, fitted on the others, does not hold for them.
        fit: (features of n rows, scores of shape (n, n_tiers) with NaN where unknown, seed) -> model.
        load: The inverse of ``Model.to_bytes``.
        pack: The same features in less memory, for the rows of a fit, which are held all at once.
        is_calibrated: Whether Platt's calibration follows; it would flatten a deliberately random scorer.
    """

    kind: str
    extract: Callable[[Prompt, Signals], Features]
    fit: Callable[[Sequence[Features], Matrix, int], Model[Features]]
    load: Callable[[bytes], Model[Features]]
    pack: Callable[[Features], Features] = lambda features: features
    is_calibrated: bool = True
    reads: frozenset[Signal] = frozenset()
    lacks: Callable[[Any, Features], bool] = lambda _model, _features: False


def fit_tiers(design: Design, scores: Matrix) -> list[LogisticFit]:
    """Fit one logistic regression a tier, each on the rows with a score for it.

    A tier without any (in a fold) gets logit 0.
    """
    return [_fit_tier(design, scores[:, tier]) for tier in range(scores.shape[1])]


def mean_scores(scores: Matrix) -> Matrix:
    """Return each tier's mean score, held inside (0, 1) by one pseudo-row of 0.5; shape (n_tiers,)."""
    known = ~np.isnan(scores)
    return np.asarray((np.nansum(scores, axis=0) + 0.5) / (known.sum(axis=0) + 1.0), dtype=np.float64)


def logit(probabilities: Matrix) -> Matrix:
    """Return log(p / (1 - p))."""
    return np.asarray(np.log(probabilities) - np.log1p(-probabilities), dtype=np.float64)


def decode_state(state: bytes, kind: type[State]) -> State:
    """Parse a stored scorer.

    Raises:
        InputFileError: When it is not JSON of this form.
    """
    try:
        return msgspec.json.decode(state, type=kind)
    except msgspec.DecodeError as exc:
        raise InputFileError(f"not a scorer: {exc}; write it again with 'llmtier fit-thresholds'") from exc


def as_matrix(values: Sequence[Sequence[float]] | Sequence[float], shape: tuple[int, ...]) -> Matrix:
    """Return stored numbers as an array of ``shape``.

    Raises:
        InputFileError: When they do not fill it.
    """
    try:
        return np.asarray(values, dtype=np.float64).reshape(shape)
    except ValueError as exc:
        raise InputFileError(f"not a scorer: numbers do not fill {shape}; run 'llmtier fit-thresholds'") from exc


def _fit_tier(design: Design, targets: Matrix) -> LogisticFit:
    known = ~np.isnan(targets)
    if not known.any():
        return LogisticFit(weights=np.zeros(design.shape[1]), intercept=0.0)
    return fit_logistic(design if known.all() else design[known], targets[known])
