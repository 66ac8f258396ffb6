"""Embeddings as scorers meet them: the features of a prompt, checks, and their stored form.

Makes no embedding: who owns an ``Embedder`` (``engine/embedder.py`` has one) passes its vectors in as signals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import InputFileError
from llmtier.core.prompt import Prompt
from llmtier.score.recipe import Matrix
from llmtier.score.signals import Signals
from llmtier.score.text import scored_text

Embedding = NDArray[np.float32]


class Embedder(Protocol):
    """What turns the text that is scored into an embedding."""

    @property
    def digest(self) -> str:
        """Names model and files; a scorer is of use with the embedder it was fitted with only."""
        ...

    def embed(self, text: str) -> Embedding | None:
        """Return a unit vector of shape (n_dimensions,); ``None`` when the text holds nothing to embed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFeatures:
    """What an embedding's scorer reads of a prompt.

    Attributes:
        embedding: Unit norm, shape (n_dimensions,); ``None`` when there is none.
        log_length: log(1 + characters) of the text that is scored.
    """

    embedding: Embedding | None
    log_length: float


def extract_embedding(prompt: Prompt, signals: Signals) -> EmbeddingFeatures:
    """Read the embedding, and the length of the text."""
    return EmbeddingFeatures(embedding=signals.embedding, log_length=float(np.log1p(len(scored_text(prompt)))))


def stack_embeddings(embeddings: Sequence[Embedding]) -> Embedding:
    """Return one array of shape (n, n_dimensions).

    Raises:
        InputFileError: They are of several models, or not finite.
    """
    sizes = sorted({embedding.shape for embedding in embeddings})
    if len(sizes) > 1:
        raise InputFileError(f"embeddings are of shapes {sizes[0]} and {sizes[-1]}; embed all prompts with one model")
    stacked = np.stack(embeddings).astype(np.float32) if embeddings else np.zeros((0, 0), dtype=np.float32)
    if not np.isfinite(stacked).all():
        raise InputFileError("an embedding holds NaN or an infinity; embed the prompts again")
    return stacked


def check_dimensions(found: int, expected: int) -> None:
    """Refuse an embedding of another model.

    Raises:
        InputFileError: The dimensions differ.
    """
    if found != expected:
        raise InputFileError(
            f"embedding has {found} dimensions, the scorer was fitted on {expected}; use the embedder it was fitted with"
        )


def pack(array: NDArray[np.floating]) -> bytes:
    """Return the numbers as little-endian float32."""
    return array.astype("<f4").tobytes()


def unpack(data: bytes, shape: tuple[int, ...]) -> Embedding:
    """Return packed numbers as an array of ``shape``, of which one length may be -1.

    Raises:
        InputFileError: They do not fill it.
    """
    try:
        return np.frombuffer(data, dtype="<f4").reshape(shape).astype(np.float32)
    except ValueError as exc:
        raise InputFileError("not a scorer: its numbers are cut; run 'llmtier fit-thresholds' again") from exc


def log_lengths_of(rows: Sequence[EmbeddingFeatures]) -> Matrix:
    """Return the rows' log lengths, shape (n,)."""
    return np.array([row.log_length for row in rows], dtype=np.float64)
