"""Which documents are held out, and which of the others calibrate.

Pure. Documents are known by their tokens, their domain and a key of their content; a draw is ordered by a seeded hash of
the key, so that it does not depend on the order in which the documents came. Equal keys (duplicates that were not
removed) keep that order among themselves. Both draws are stratified: a stratum is a quantile of the lengths within one
domain.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmtier.quantize.calibration.minhash import mix

N_STRATA = 4
HOLD_OUT, CHOOSE = 1, 2  # the two draws of one seed must not be alike


def strata_of(tokens: NDArray[np.int64], *, n_strata: int = N_STRATA) -> NDArray[np.int64]:
    """Return the length stratum of each document, shape (n,): 0 the shortest, every number up to the highest in use.

    Equal lengths share a stratum, so ties make fewer or uneven strata.
    """
    if n_strata < 1:
        raise ValueError(f"n_strata {n_strata} must be 1 or more")
    if not len(tokens):
        return np.empty(0, dtype=np.int64)
    inner = np.arange(1, n_strata) / n_strata
    edges = np.unique(np.quantile(tokens, inner, method="inverted_cdf"))  # lengths that occur: the last of a stratum
    return np.unique(np.searchsorted(edges, tokens, side="left"), return_inverse=True)[1]


def hold_out(
    tokens: NDArray[np.int64], domains: NDArray[np.int64], keys: NDArray[np.uint64], *, share: float, seed: int
) -> NDArray[np.bool_]:
    """Return which documents calibration never sees, shape (n,).

    Of every stratum of every domain it takes ``share``, and ``share`` of all, each exact to one document.

    Args:
        tokens: Length of each document.
        domains: Domain of each document, counted from 0.
        keys: A hash of each document's content.
        share: In [0, 1).
        seed: Of the draw.
    """
    check_documents(tokens, domains, keys)
    if not 0 <= share < 1:
        raise ValueError(f"share {share} must lie in [0, 1)")
    is_held = np.zeros(len(tokens), dtype=np.bool_)
    ranks = draw_order(keys, seed=seed, purpose=HOLD_OUT)
    n_seen = 0
    for members in strata(tokens, domains):
        # Rounding the running total: small strata round up as often as down.
        n_held = round_half_up(share * (n_seen + len(members))) - round_half_up(share * n_seen)
        n_seen += len(members)
        drawn = members[np.argsort(ranks[members])]
        is_held[drawn[:n_held]] = True
    return is_held


def choose(
    tokens: NDArray[np.int64],
    domains: NDArray[np.int64],
    keys: NDArray[np.uint64],
    *,
    budget_tokens: int,
    shares: Sequence[float],
    seed: int,
) -> NDArray[np.int64]:
    """Return the documents that calibrate, as sorted indices.

    Each domain gives documents until its share of the budget is met, which the last one may exceed; a domain with too
    few gives all, and no other takes its place. However few are taken, their lengths are in proportion.

    Args:
        tokens: Length of each document.
        domains: Domain of each document, counted from 0.
        keys: A hash of each document's content.
        budget_tokens: Of all domains together.
        shares: Of each domain in the budget.
        seed: Of the draw.
    """
    check_documents(tokens, domains, keys)
    if budget_tokens < 0:
        raise ValueError(f"budget_tokens {budget_tokens} must be 0 or more")
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"shares {list(shares)} must lie in [0, 1]")
    if len(domains) and domains.max() >= len(shares):
        raise ValueError(f"domain {domains.max()} has no share: there are {len(shares)}")
    ranks = draw_order(keys, seed=seed, purpose=CHOOSE)
    chosen = [np.empty(0, dtype=np.int64)]
    for domain, share in enumerate(shares):
        members = spread_lengths(np.flatnonzero(domains == domain), tokens, ranks)
        before = np.cumsum(tokens[members]) - tokens[members]  # a document is taken while the budget is not yet met
        chosen.append(members[before < share * budget_tokens])
    return np.sort(np.concatenate(chosen))


def spread_lengths(
    members: NDArray[np.int64], tokens: NDArray[np.int64], ranks: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return ``members`` drawn at random, in an order of which every beginning holds the strata in proportion."""
    positions = np.empty(len(members))
    labels = strata_of(tokens[members])
    for stratum in np.unique(labels):
        places = np.flatnonzero(labels == stratum)
        drawn = places[np.argsort(ranks[members[places]])]
        positions[drawn] = (np.arange(len(drawn)) + 0.5) / len(drawn)
    return members[np.lexsort((ranks[members], positions))]


def strata(tokens: NDArray[np.int64], domains: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the documents of every stratum of every domain, by domain and length."""
    found = []
    for domain in np.unique(domains):
        members = np.flatnonzero(domains == domain)
        labels = strata_of(tokens[members])
        found += [members[labels == stratum] for stratum in np.unique(labels)]
    return found


def draw_order(keys: NDArray[np.uint64], *, seed: int, purpose: int) -> NDArray[np.int64]:
    """Return the place of each document in a random order, shape (n,)."""
    salt = mix(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(purpose)
    order = np.argsort(mix(mix(keys + salt)), kind="stable")
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[order] = np.arange(len(keys))
    return ranks


def round_half_up(value: float) -> int:
    """Return the nearest whole number."""
    return int(np.floor(value + 0.5))


def check_documents(tokens: NDArray[np.int64], domains: NDArray[np.int64], keys: NDArray[np.uint64]) -> None:
    """Refuse arrays that cannot describe the same documents.

    Raises:
        ValueError: Shapes differ, or a length or a domain is negative.
    """
    if not tokens.shape == domains.shape == keys.shape == (len(tokens),):
        raise ValueError(
            f"tokens {tokens.shape}, domains {domains.shape} and keys {keys.shape} must have one shape (n,)"
        )
    if len(tokens) and (tokens.min() < 0 or domains.min() < 0):
        raise ValueError("tokens and domains must be 0 or more")
