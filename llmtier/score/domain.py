"""Which domain a text is of, when its request names none: multinomial naive Bayes over hashed words.

Its posterior is tempered, for words are far from independent, and used softly: the learned scorer takes the
mean of the domains' effects under it. Shown to people as a guess, never as a label.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmtier.score.features import TextFeatures
from llmtier.score.native import find_native
from llmtier.score.words import N_BUCKETS, count_each

if TYPE_CHECKING:
    from llmtier.score._native import Guesser

Matrix = NDArray[np.float64]
Floats = NDArray[np.float32]

N_COARSE = 1 << 12
"""Buckets here: one for every sixteen of the features'."""

MAX_DOMAINS = 256
"""Domains that can be guessed: the most frequent ones."""

_SHIFT = (N_BUCKETS // N_COARSE).bit_length() - 1
_TEMPER = 0.2  # of the log likelihood; 0.1 and 0.3 moved APGR by no more than 0.001 (docs/log.md)
_PRIOR_WORDS = 200.0  # of the background, added to each domain's own
_ONES = np.ones(N_COARSE)


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainGuess:
    """The likeliest domain of a text, and how likely it is, in [0, 1]."""

    domain: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainModel:
    """A fitted guesser.

    Attributes:
        domains: Their names.
        evidence: Tempered log likelihood ratio against the background, of half precision, shape (N_COARSE, n_domains).
        prior: Log share of each domain, shape (n_domains,).
    """

    domains: tuple[str, ...]
    evidence: Floats
    prior: Matrix

    def posterior(self, text: TextFeatures) -> Matrix:
        """Return a probability a domain, shape (n_domains,), summing to 1."""
        found = coarse_buckets(text)
        # Exact, and so the same however it is added: half precision has no bits below 2^-24, and 4,096 such numbers
        # none above 2^28.
        evidence = _ONES[: found.size].dot(self.evidence.take(found, axis=0))
        logits = (self.prior + evidence).tolist()
        top = max(logits)
        shares = np.array(
            [math.exp(logit - top) for logit in logits]
        )  # numpy's exp has other last bits on each machine
        return np.asarray(shares / np.add.accumulate(shares)[-1], dtype=np.float64)

    def expected(self, text: TextFeatures, effects: Matrix) -> list[float]:
        """Return the mean of effects of shape (n_domains, n_tiers) under the posterior, one number a tier."""
        weighted = effects * self.posterior(text)[:, np.newaxis]
        means: list[float] = np.add.accumulate(weighted, axis=0)[-1].tolist()
        return means

    def native(self, effects: Matrix) -> "Guesser | None":
        """Return what computes ``expected`` in C; ``None`` where nothing does."""
        if not find_native().is_native:
            return None
        from llmtier.score._native import Guesser

        return Guesser(np.ascontiguousarray(self.evidence), self.prior, np.ascontiguousarray(effects), _SHIFT)

    def guess(self, text: TextFeatures) -> DomainGuess:
        """Return the likeliest one."""
        posterior = self.posterior(text)
        best = int(posterior.argmax())
        return DomainGuess(domain=self.domains[best], probability=float(posterior[best]))


def fit_domains(rows: Sequence[tuple[TextFeatures, str | None]]) -> DomainModel | None:
    """Fit on the rows that name a domain; ``None`` where fewer than two are named."""
    named = [(text, domain) for text, domain in rows if domain is not None]
    domains = _most_frequent([domain for _, domain in named])
    if len(domains) < 2:
        return None
    column = {domain: index for index, domain in enumerate(domains)}
    counts = np.zeros((N_COARSE, len(domains)))
    n_rows = np.zeros(len(domains))
    for text, domain in named:
        if (place := column.get(domain)) is not None:
            counts[coarse_buckets(text), place] += 1.0
            n_rows[place] += 1.0
    background = counts.sum(axis=1) + 1.0
    background /= background.sum()
    likelihood = (counts + _PRIOR_WORDS * background[:, np.newaxis]) / (counts.sum(axis=0) + _PRIOR_WORDS)
    evidence = _TEMPER * (np.log(likelihood) - np.log(background)[:, np.newaxis])
    prior = np.log((n_rows + 0.5) / (n_rows.sum() + 0.5 * len(domains)))
    stored = evidence.astype(np.float16).astype(np.float32)  # the precision that is stored
    return DomainModel(domains=domains, evidence=stored, prior=prior)


def coarse_buckets(text: TextFeatures) -> NDArray[np.intp]:
    """Return the coarse buckets that occur, each once."""
    coarse = text.buckets.astype(np.intp) >> _SHIFT
    return coarse.take(count_each(coarse).nonzero()[0])


def _most_frequent(domains: Sequence[str]) -> tuple[str, ...]:
    names, counts = np.unique(np.array(domains, dtype=object), return_counts=True) if domains else ((), ())
    ranked = sorted(zip(counts, names, strict=True), key=lambda pair: (-pair[0], pair[1]))
    return tuple(sorted(str(name) for _, name in ranked[:MAX_DOMAINS]))
