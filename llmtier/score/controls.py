"""Controls that a scorer has to beat: ``random``, ``length`` and ``domain_mean``.

Each is fitted, stored and loaded like any scorer, so a policy can be made of it and compared.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from llmtier.core.prompt import Prompt
from llmtier.score.features import log_length
from llmtier.score.linear import fit_linear, load_linear
from llmtier.score.recipe import Matrix, Recipe, as_matrix, decode_state, logit, mean_scores
from llmtier.score.signals import Signals
from llmtier.score.text import whole_text


class _RandomState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seed: int
    logits: list[float]


class _DomainState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    overall: list[float]
    by_domain: dict[str, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomModel:
    """Each tier's mean, moved by noise that depends on seed and text alone; no skill.

    Attributes:
        seed: Of the noise.
        means: Logit of each tier's mean score, shape (n_tiers,).
    """

    seed: int
    means: Matrix

    def logits(self, features: str) -> Matrix:
        """Return shape (n_tiers,); the noise is logistic with scale 1."""
        text = features.encode(errors="surrogatepass")
        digests = [hashlib.sha256(f"{self.seed}:{tier}:".encode() + text).digest() for tier in range(self.means.size)]
        uniform = np.array([(int.from_bytes(digest[:6], "big") + 0.5) / 2**48 for digest in digests])
        return np.asarray(self.means + logit(uniform))

    def to_bytes(self) -> bytes:
        """Return the model as JSON."""
        return msgspec.json.encode(_RandomState(seed=self.seed, logits=self.means.tolist()))


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainMeanModel:
    """Each domain's mean score, shrunken toward the mean of all.

    Attributes:
        overall: Logits for no or an unknown domain, shape (n_tiers,).
        by_domain: Logits of the domains seen, each of shape (n_tiers,).
    """

    overall: Matrix
    by_domain: Mapping[str, Matrix]

    def logits(self, features: str | None) -> Matrix:
        """Return shape (n_tiers,) for a domain."""
        return self.overall if features is None else self.by_domain.get(features, self.overall)

    def to_bytes(self) -> bytes:
        """Return the model as JSON."""
        by_domain = {domain: values.tolist() for domain, values in self.by_domain.items()}
        return msgspec.json.encode(_DomainState(overall=self.overall.tolist(), by_domain=by_domain))


def _fit_random(_rows: Sequence[str], scores: Matrix, seed: int) -> RandomModel:
    return RandomModel(seed=seed, means=logit(mean_scores(scores)))


def _load_random(state: bytes) -> RandomModel:
    stored = decode_state(state, _RandomState)
    return RandomModel(seed=stored.seed, means=as_matrix(stored.logits, (len(stored.logits),)))


def _fit_domain_mean(rows: Sequence[str | None], scores: Matrix, _seed: int) -> DomainMeanModel:
    domains = sorted({row for row in rows if row is not None})
    labels = np.array([-1 if row is None else domains.index(row) for row in rows])
    columns = [_shrunken_means(labels, scores[:, tier], len(domains)) for tier in range(scores.shape[1])]
    by_domain = logit(np.stack(columns, axis=1))
    return DomainMeanModel(overall=logit(mean_scores(scores)), by_domain=dict(zip(domains, by_domain, strict=True)))


def _load_domain_mean(state: bytes) -> DomainMeanModel:
    stored = decode_state(state, _DomainState)
    shape = (len(stored.overall),)
    by_domain = {domain: as_matrix(values, shape) for domain, values in stored.by_domain.items()}
    return DomainMeanModel(overall=as_matrix(stored.overall, shape), by_domain=by_domain)


def _shrunken_means(labels: Matrix, scores: Matrix, n_domains: int) -> Matrix:
    """Return one tier's domain means, shape (n_domains,), shrunken by empirical Bayes.

    The variance between domains is estimated by moments (DerSimonian & Laird 1986); where the
    domains differ no more than chance makes them, every domain gets the mean of all.
    """
    overall = float(mean_scores(scores[:, np.newaxis])[0])
    is_used = ~np.isnan(scores) & (labels >= 0)
    kept, labels = scores[is_used], labels[is_used].astype(np.intp)
    counts = np.bincount(labels, minlength=n_domains).astype(np.float64)
    sums = np.bincount(labels, weights=kept, minlength=n_domains)
    means = np.divide(sums, counts, out=np.full(n_domains, overall), where=counts > 0)
    within = float(np.square(kept - means[labels]).sum()) / max(kept.size - n_domains, 1)
    spread = float(counts @ np.square(means - overall)) - (n_domains - 1) * within
    room = kept.size - float(np.square(counts).sum()) / max(kept.size, 1)
    if not (spread > 0 and room > 0):
        return np.full(n_domains, overall)
    # At least half a pseudo-row keeps a domain that was always right short of certainty.
    weight = max(within * room / spread, 0.5)
    return np.asarray((sums + weight * overall) / (counts + weight), dtype=np.float64)


def _last_text(prompt: Prompt, _signals: Signals) -> str:
    return whole_text(prompt)


def _domain(prompt: Prompt, _signals: Signals) -> str | None:
    return prompt.domain


def _length(prompt: Prompt, _signals: Signals) -> Matrix:
    return np.array([log_length(whole_text(prompt))])


RANDOM: Recipe[str] = Recipe(kind="random", extract=_last_text, fit=_fit_random, load=_load_random, is_calibrated=False)
LENGTH: Recipe[Matrix] = Recipe(kind="length", extract=_length, fit=fit_linear, load=load_linear)
DOMAIN_MEAN: Recipe[str | None] = Recipe(
    kind="domain_mean", extract=_domain, fit=_fit_domain_mean, load=_load_domain_mean
)
