"""What a scorer may be told of a prompt beside its text: an embedding, an engine's rating.

Who owns the means gets them (``fit`` from outcomes, ``serve`` from its engines) and passes them in; scorers
ask nobody themselves.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Signal(StrEnum):
    """A kind of signal that a recipe reads."""

    EMBEDDING = "embedding"
    RATING = "rating"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """The signals of one prompt; ``None`` where there is none, and a scorer then falls back.

    Attributes:
        embedding: Of the text that is scored, unit norm, shape (n_dimensions,).
        rating: Complexity as a self-assessing engine rated it, in [0, 10].
    """

    embedding: NDArray[np.float32] | None = None
    rating: float | None = None


NO_SIGNALS = Signals()
