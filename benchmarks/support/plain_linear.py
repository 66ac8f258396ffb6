"""A plain linear router, made here to compare with: one logistic regression a model, no second head, no calibration.

Words and word pairs by a regular expression, crc32 into 2^16 buckets, tf-idf with unit norm; eleven counts; log length;
a one-hot of the domain. The scales of the blocks are those with which it is known to do well on such data.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack

from llmtier.core.prompt import LabelledPrompt
from llmtier.stats.logistic import LogisticFit, fit_logistic, sigmoid

N_BUCKETS = 1 << 16
L2 = 2.0
_TOKEN = re.compile(r"[a-z]+|\d+|[^\sa-z\d]")
_SIGNS = set("+-*/=^<>%")

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class PlainLinear:
    """A fitted one: idf, the counts' means and deviations, the domains and a fit a model."""

    idf: Matrix
    means: Matrix
    deviations: Matrix
    domains: tuple[str, ...]
    fits: tuple[LogisticFit, ...]

    @classmethod
    def fit(cls, rows: Sequence[LabelledPrompt], tiers: Sequence[str]) -> "PlainLinear":
        """Fit on labelled rows."""
        counts, numbers = count_words(rows), count_numbers(rows)
        documents = np.bincount(counts.indices, minlength=N_BUCKETS)
        idf = np.log((1.0 + len(rows)) / (1.0 + documents)) + 1.0
        deviations = numbers.std(axis=0)
        made = cls(
            idf=idf,
            means=numbers.mean(axis=0),
            deviations=np.where(deviations > 1e-12, deviations, 1.0),
            domains=tuple(sorted({row.prompt.domain or "" for row in rows})),
            fits=(),
        )
        design = made._design(rows, counts, numbers)
        targets = [np.array([row.scores[tier] for row in rows]) for tier in tiers]
        fits = tuple(fit_logistic(design, target, l2=L2) for target in targets)
        return cls(idf=idf, means=made.means, deviations=made.deviations, domains=made.domains, fits=fits)

    def predict(self, rows: Sequence[LabelledPrompt]) -> Matrix:
        """Return P(correct), shape (n, n_tiers)."""
        design = self._design(rows, count_words(rows), count_numbers(rows))
        return np.stack([sigmoid(design @ fit.weights + fit.intercept) for fit in self.fits], axis=1)

    def _design(self, rows: Sequence[LabelledPrompt], counts: csr_array, numbers: Matrix) -> csr_array:
        text = counts.copy()
        text.data = text.data * self.idf[text.indices]
        norms = np.sqrt(np.asarray(text.multiply(text).sum(axis=1)).ravel())
        text = csr_array(text.multiply(1.0 / np.maximum(norms, 1e-12)[:, np.newaxis]))
        standard = (numbers - self.means) / self.deviations
        dense = np.hstack([np.clip(standard, -3, 3) * math.sqrt(0.3 / 11), standard[:, :1] * math.sqrt(0.1)])
        place = {domain: column for column, domain in enumerate(self.domains)}
        known = [(row, place[item.prompt.domain or ""]) for row, item in enumerate(rows) if item.prompt.domain in place]
        cells = np.array(known, dtype=np.intp).reshape(len(known), 2).T
        domains = csr_array((np.full(len(known), 0.5), (cells[0], cells[1])), shape=(len(rows), len(self.domains)))
        return csr_array(hstack([text, csr_array(dense), domains], format="csr"))


def count_words(rows: Sequence[LabelledPrompt]) -> csr_array:
    """Return 1 + log(count) of each row's words and word pairs, shape (n, N_BUCKETS)."""
    indices: list[int] = []
    values: list[float] = []
    starts = [0]
    for row in rows:
        tokens = _TOKEN.findall(row.prompt.last_user_text[:4000].lower())
        grams = [*tokens, *(f"{first} {second}" for first, second in pairwise(tokens))]
        counted = Counter(zlib.crc32(gram.encode()) % N_BUCKETS for gram in grams)
        indices += counted.keys()
        values += [1.0 + math.log(count) for count in counted.values()]
        starts.append(len(indices))
    return csr_array((values, indices, starts), shape=(len(rows), N_BUCKETS))


def count_numbers(rows: Sequence[LabelledPrompt]) -> Matrix:
    """Return eleven counts and shares of each row, shape (n, 11); the first is the log length."""
    return np.array([_numbers(row.prompt.last_user_text[:4000]) for row in rows])


def _numbers(text: str) -> list[float]:
    tokens = _TOKEN.findall(text.lower())
    n_chars, n_tokens = max(len(text), 1), max(len(tokens), 1)
    return [
        math.log1p(len(text)),
        math.log1p(len(tokens)),
        math.log1p(text.count("\n")),
        sum(map(str.isdigit, text)) / n_chars,
        sum(sign in _SIGNS for sign in text) / n_chars,
        sum(map(str.isupper, text)) / n_chars,
        len(set(tokens)) / n_tokens,
        float("?" in text),
        float("```" in text or "();" in text),
        n_chars / n_tokens,
        math.log1p(sum(map(str.isdigit, tokens))),
    ]
