"""From the kept documents to the two splits: held out first, then drawn until the token budget is met.

Draws by estimated lengths; where a tokenizer counts, only documents that may be chosen are counted, and the draw is made
again among these by their exact lengths.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.quantize.calibration.select import choose, draw_order, hold_out
from llmtier.quantize.calibration.spool import Documents

FIRST_CANDIDATES = 1.5  # times the budget: estimates are off by less for most languages
ORDER = 3  # the third draw of one seed, after select's two

Indices = NDArray[np.int64]
CountTokens = Callable[[Indices], NDArray[np.int64]]
"""Exact token counts of some documents, uncut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the recipe asks for.

    Attributes:
        budget_tokens: Of the calibration split; ``heldout_budget_tokens`` of the other.
        shares: Of each domain, by its number.
        sequence_tokens: A document counts no more than this.
    """

    budget_tokens: int
    heldout_budget_tokens: int
    heldout_share: float
    shares: tuple[float, ...]
    sequence_tokens: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The documents of one file, in its order.

    Attributes:
        indices: (n_rows,) of the documents.
        tokens: (n_rows,) of each, uncut.
        is_short: By domain, whether it gave all it had and that was too little.
    """

    indices: Indices
    tokens: NDArray[np.int64]
    is_short: tuple[bool, ...]


def make_splits(
    documents: Documents, kept: Indices, wanted: Wanted, *, count: CountTokens | None
) -> tuple[Split, Split]:
    """Return the calibration and the held-out split of the ``kept`` documents; they have none in common."""
    tokens = np.minimum(documents.records["tokens"][kept], wanted.sequence_tokens)
    keys = documents.records["key"][kept]
    is_held = hold_out(tokens, documents.domain[kept], keys, share=wanted.heldout_share, seed=wanted.seed)
    return (
        draw(documents, kept[~is_held], wanted, budget_tokens=wanted.budget_tokens, count=count),
        draw(documents, kept[is_held], wanted, budget_tokens=wanted.heldout_budget_tokens, count=count),
    )


def draw(
    documents: Documents, pool: Indices, wanted: Wanted, *, budget_tokens: int, count: CountTokens | None
) -> Split:
    """Draw documents of ``pool`` until each domain has its share of the budget."""
    estimates = documents.records["tokens"][pool]
    if count is None:
        return _draw(documents, pool, estimates, wanted, budget_tokens=budget_tokens)
    factor = FIRST_CANDIDATES
    while True:
        n_candidates = int(budget_tokens * factor)
        candidates = _draw(documents, pool, estimates, wanted, budget_tokens=n_candidates).indices
        split = _draw(documents, candidates, count(candidates), wanted, budget_tokens=budget_tokens)
        if len(candidates) == len(pool) or not _may_gain(documents, split, pool, candidates):
            return split
        factor *= 2


def _draw(
    documents: Documents, pool: Indices, tokens: NDArray[np.int64], wanted: Wanted, *, budget_tokens: int
) -> Split:
    counted, domains, keys = np.minimum(tokens, wanted.sequence_tokens), documents.domain[pool], _keys(documents, pool)
    chosen = choose(counted, domains, keys, budget_tokens=budget_tokens, shares=wanted.shares, seed=wanted.seed)
    chosen = chosen[np.argsort(draw_order(keys[chosen], seed=wanted.seed, purpose=ORDER))]
    got = np.bincount(domains[chosen], weights=counted[chosen], minlength=len(wanted.shares))
    is_short = tuple(bool(tokens < share * budget_tokens) for tokens, share in zip(got, wanted.shares, strict=True))
    return Split(indices=pool[chosen], tokens=tokens[chosen], is_short=is_short)


def _may_gain(documents: Documents, split: Split, pool: Indices, candidates: Indices) -> bool:
    """Tell whether a domain is short although the pool has documents of it that were no candidates."""
    n_domains = len(split.is_short)
    n_left = np.bincount(documents.domain[pool], minlength=n_domains)
    n_left -= np.bincount(documents.domain[candidates], minlength=n_domains)
    return any(is_short and left > 0 for is_short, left in zip(split.is_short, n_left, strict=True))


def _keys(documents: Documents, pool: Indices) -> NDArray[np.uint64]:
    keys: NDArray[np.uint64] = documents.records["key"][pool]
    return keys
