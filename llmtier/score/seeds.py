"""A model of a user's simple and complex sentences, for a router without any outcome.

Complexity is how much nearer a text comes to the nearest complex sentence than to the nearest simple one. From it follow
pseudo-probabilities that rise from tier to tier and fall with complexity: they order prompts, so that a threshold or a
share of the traffic can be set, and nobody measured them. No guarantee can be made of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from llmtier.core.errors import InputFileError
from llmtier.score.embedding import Embedding, EmbeddingFeatures, check_dimensions, pack, stack_embeddings, unpack
from llmtier.score.recipe import Matrix, decode_state, logit

MARGIN = 0.01
"""Pseudo-probabilities stay this far from certainty."""

LEAST_SCALE, USUAL_SCALE = 0.05, 0.15  # of cosines between short sentences; the second where one seed stands alone


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    form: Literal["seeds"]
    n_tiers: int
    n_simple: int
    n_dimensions: int
    seeds: bytes
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedModel:
    """Pseudo-logits from seed sentences.

    Attributes:
        simple: Embeddings of sentences that any tier can answer, shape (n_simple, d).
        complex_: Of sentences for the dearest tier, shape (n_complex, d).
        scale: Difference of similarities that counts as clear.
        n_tiers: Tiers, cheapest first.
    """

    simple: Embedding
    complex_: Embedding
    scale: float
    n_tiers: int

    def complexity(self, embedding: Embedding) -> float:
        """Return a number in [0, 1]; above 0.5 the nearest complex seed is nearer than the nearest simple one.

        Raises:
            InputFileError: The embedding is another model's.
        """
        check_dimensions(embedding.size, self.simple.shape[1])
        lead = float((self.complex_ @ embedding).max()) - float((self.simple @ embedding).max())
        return 0.5 + 0.5 * float(np.tanh(lead / (2.0 * self.scale)))

    def logits(self, features: EmbeddingFeatures) -> Matrix:
        """Return shape (n_tiers,); the gain of a dearer tier is proportional to complexity, 0.5 when unknown."""
        complexity = 0.5 if features.embedding is None else self.complexity(features.embedding)
        shortfalls = np.arange(self.n_tiers)[::-1] / max(self.n_tiers - 1, 1)  # 1 for the cheapest, 0 for the dearest
        return logit(1.0 - MARGIN - (1.0 - 2.0 * MARGIN) * complexity * shortfalls)

    def to_bytes(self) -> bytes:
        """Return the model as JSON."""
        state = _State(
            form="seeds",
            n_tiers=self.n_tiers,
            n_simple=len(self.simple),
            n_dimensions=self.simple.shape[1],
            seeds=pack(np.vstack([self.simple, self.complex_])),
            scale=self.scale,
        )
        return msgspec.json.encode(state)


def fit_seeds(simple: Sequence[Embedding], complex_: Sequence[Embedding], *, n_tiers: int) -> SeedModel:
    """Make a model of seed sentences' embeddings.

    Args:
        simple: Of sentences that any tier can answer.
        complex_: Of sentences for the dearest tier.
        n_tiers: Tiers, cheapest first.

    Raises:
        InputFileError: A list is empty, or embeddings are of several models.
        ValueError: There is no tier.
    """
    if n_tiers < 1:
        raise ValueError(f"seeds need at least one tier, got {n_tiers}")
    if not simple or not complex_:
        raise InputFileError("seeds need at least one simple and one complex sentence")
    together = stack_embeddings([*simple, *complex_])
    easy, hard = together[: len(simple)], together[len(simple) :]
    return SeedModel(simple=easy, complex_=hard, scale=_typical_lead(easy, hard), n_tiers=n_tiers)


def load_seeds(state: bytes) -> SeedModel:
    """Read what ``SeedModel.to_bytes`` wrote.

    Raises:
        InputFileError: When it is malformed.
    """
    stored = decode_state(state, _State)
    if stored.n_dimensions < 1 or stored.n_tiers < 1 or not stored.scale > 0.0:
        raise InputFileError("not a scorer: its seeds have no dimensions, tiers or scale; make it again")
    seeds = unpack(stored.seeds, (-1, stored.n_dimensions))
    if not 0 < stored.n_simple < len(seeds):
        raise InputFileError("not a scorer: its seeds are cut; make it again")
    return SeedModel(
        simple=seeds[: stored.n_simple],
        complex_=seeds[stored.n_simple :],
        scale=stored.scale,
        n_tiers=stored.n_tiers,
    )


def _typical_lead(easy: Embedding, hard: Embedding) -> float:
    """Return by how much seeds, left out one at a time, are nearer to their own kind: the median."""
    leads = [
        abs(float(np.delete(own @ seed, index).max()) - float((other @ seed).max()))
        for own, other in ((easy, hard), (hard, easy))
        if len(own) > 1
        for index, seed in enumerate(own)
    ]
    return max(float(np.median(leads)), LEAST_SCALE) if leads else USUAL_SCALE
