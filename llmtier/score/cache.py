"""Scores of prompts that came before: retries, agents that ask again, logs full of duplicates.

Wraps a scorer and is asked like one. Keeps digests and probabilities, no text. The least recently used entry
makes room for a new one. For one thread: the gateway's processes each have one event loop and one cache.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

from llmtier.core.prompt import Prompt
from llmtier.score.signals import NO_SIGNALS, Signals
from llmtier.score.text import cut_text, whole_text

CAPACITY = 10_000
"""Entries that are kept unless told otherwise: about 5 MB for three tiers."""


class PromptScorer(Protocol):
    """The part of ``score.scorer.Scorer`` that can be cached."""

    def probabilities(self, prompt: Prompt, signals: Signals = NO_SIGNALS) -> Mapping[str, float]:
        """Return P(correct) by tier name."""
        ...


class ScoreCache:
    """Answers from memory what a scorer has answered before.

    The key is a digest of all that scorers read: the text after stripping and cutting, its length before
    the cut, the domain, the rating, and whether there is an embedding, which the text itself determines.

    Args:
        scorer: What is asked once for each prompt.
        capacity: Most entries kept; 0 keeps none.
        digest: Of the scorer; part of every key, so that no key outlives its scorer.

    Attributes:
        n_hits: Questions answered from memory.
        n_misses: Questions that the scorer was asked.
    """

    def __init__(self, scorer: PromptScorer, *, capacity: int = CAPACITY, digest: bytes = b"") -> None:
        if capacity < 0:
            raise ValueError(f"capacity must be >= 0, got {capacity}")
        self.n_hits = 0
        self.n_misses = 0
        self._scorer = scorer
        self._capacity = capacity
        self._digest = digest
        self._kept: OrderedDict[bytes, Mapping[str, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._kept)

    def probabilities(self, prompt: Prompt, signals: Signals = NO_SIGNALS) -> dict[str, float]:
        """Return tier name to P(correct), as the scorer says or said."""
        key = self._key(prompt, rating=signals.rating, has_embedding=signals.embedding is not None)
        found = self._look_up(key)
        if found is None:
            self.n_misses += 1
            found = self._scorer.probabilities(prompt, signals)
            self._keep(key, found)
        return dict(found)

    def find(self, prompt: Prompt, *, rating: float | None = None) -> dict[str, float] | None:
        """Return what was said of ``prompt`` with an embedding; ``None`` where nothing was.

        Whoever would have to compute an embedding asks here first. Counts no miss: ``probabilities`` follows.
        """
        found = self._look_up(self._key(prompt, rating=rating, has_embedding=True))
        return None if found is None else dict(found)

    def _look_up(self, key: bytes) -> Mapping[str, float] | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            self.n_hits += 1
        return found

    def _keep(self, key: bytes, probabilities: Mapping[str, float]) -> None:
        self._kept[key] = probabilities
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)

    def _key(self, prompt: Prompt, *, rating: float | None, has_embedding: bool) -> bytes:
        whole = whole_text(prompt)
        read = f"{len(whole)} {rating!r} {has_embedding} {prompt.domain!r}\n{cut_text(whole)}"
        # Processors have instructions for sha256: a third of the time that blake2b takes.
        return hashlib.sha256(self._digest + read.encode(errors="surrogatepass")).digest()[:16]
