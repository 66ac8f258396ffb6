"""Which of a million documents are the same, or nearly.

Pure; holds a key (8 bytes) and a signature (256 bytes) per document, never a text. Candidates are documents whose
signatures agree in all places of one band (locality-sensitive hashing, found by sorting); they are joined when the
whole signatures agree in at least the asked share of places; joined documents form clusters, of which the first seen is
kept. What is joined depends on the contents, not on the order of the documents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from llmtier.quantize.calibration.minhash import N_HASHES, content_keys, make_signatures, mix

LEAST_RECALL = 0.98
"""Of pairs exactly as similar as asked, the share that becomes a candidate; of more similar ones, more."""

COMPARED_AT_ONCE = 65_536  # pairs: 2 x 16 MiB of signatures
COMPARED_PER_DOCUMENT = 20
COMPARED_AT_LEAST = 1_000_000
"""What a band may compare: bounds the time where thousands of documents share a template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """The clusters of ``n`` documents.

    Attributes:
        first: Shape (n,): the first seen document of each document's cluster, itself when it is unique.
        n_exact: Documents equal to an earlier one, white space aside.
        n_near: Documents dropped because they are similar to an earlier one.
        n_uncompared: Documents that share a band with others and were not compared with all of them, in the band
            with the most of them: thousands made from one template. Near duplicates may be left among them.
    """

    first: NDArray[np.int64]
    n_exact: int
    n_near: int
    n_uncompared: int

    @property
    def is_kept(self) -> NDArray[np.bool_]:
        """Shape (n,): the first of its cluster."""
        return np.equal(self.first, np.arange(len(self.first)))


class DuplicateFinder:
    """Takes documents batch by batch, then tells the duplicates among all of them.

    Args:
        similarity: Jaccard similarity of the word shingles from which two documents are near duplicates, in (0, 1]; 1
            finds exact ones only. It is estimated with a standard deviation of at most 0.044: pairs within 0.1 of it
            may fall on either side.
    """

    def __init__(self, *, similarity: float) -> None:
        if not 0 < similarity <= 1:
            raise ValueError(f"similarity {similarity} must lie in (0, 1]")
        self._similarity = similarity
        self._keys: list[NDArray[np.uint64]] = []
        self._signatures: list[NDArray[np.uint16]] = []

    @property
    def keys(self) -> NDArray[np.uint64]:
        """Shape (n,): a key of each document's content, the same in every run."""
        return np.concatenate([np.empty(0, dtype=np.uint64), *self._keys])

    def add(self, texts: Sequence[str]) -> None:
        """Take the next documents; a few thousand at a time are fast."""
        self._keys.append(content_keys(texts))
        if self._similarity < 1:
            self._signatures.append(make_signatures(texts))

    def find(self) -> Duplicates:
        """Return the duplicates among all documents so far."""
        # Sorted by key: from here on nothing depends on the order in which the documents came.
        unique, first_seen, inverse = np.unique(self.keys, return_index=True, return_inverse=True)
        labels, n_uncompared = np.arange(len(unique)), 0
        if self._similarity < 1 and len(unique) > 1:
            labels, n_uncompared = join_similar(self._gather(), first_seen, similarity=self._similarity)
        n_clusters = int(labels.max()) + 1 if len(labels) else 0
        first_of_cluster = np.full(n_clusters, len(inverse), dtype=np.int64)
        np.minimum.at(first_of_cluster, labels, first_seen)
        return Duplicates(
            first=first_of_cluster[labels[inverse]],
            n_exact=len(inverse) - len(unique),
            n_near=len(unique) - n_clusters,
            n_uncompared=n_uncompared,
        )

    def _gather(self) -> NDArray[np.uint16]:
        """Return all signatures as one array, giving each batch's memory back once it is copied."""
        n_documents = sum(map(len, self._signatures))
        gathered = np.empty((n_documents, N_HASHES), dtype=np.uint16)
        end = n_documents
        while self._signatures:
            block = self._signatures.pop()
            gathered[end - len(block) : end] = block
            end -= len(block)
        self._signatures = [gathered]
        return gathered


def join_similar(
    signatures: NDArray[np.uint16], documents: NDArray[np.int64], *, similarity: float
) -> tuple[NDArray[np.int64], int]:
    """Return the cluster of each of ``documents``, counted from 0, and how many were not compared with all they should.

    Args:
        signatures: Of all documents.
        documents: Rows of ``signatures``, in an order that depends on contents only.
        similarity: Share of places in which the signatures of a joined pair agree, at least.
    """
    labels, n_uncompared = np.arange(len(documents)), 0
    n_bands, n_rows = bands_for(similarity)
    for start in range(0, n_bands * n_rows, n_rows):
        bands = hash_bands(signatures[:, start : start + n_rows])[documents]
        search = PairSearch(signatures, documents, similarity)
        left, right = search.find(bands)
        n_uncompared = max(n_uncompared, search.n_uncompared)
        graph = coo_array(
            (np.ones(len(left), dtype=np.int8), (labels[left], labels[right])), shape=(len(labels), len(labels))
        )
        _, merged = connected_components(graph, directed=False)
        labels = merged[labels].astype(np.int64)
    return np.unique(labels, return_inverse=True)[1], n_uncompared


def bands_for(similarity: float) -> tuple[int, int]:
    """Return how many bands of how many places (a power of two, the most that do) find pairs as similar as asked."""
    n_rows = N_HASHES
    while n_rows > 1:
        n_bands = math.ceil(math.log(1 - LEAST_RECALL) / math.log1p(-(similarity**n_rows)))
        if n_bands * n_rows <= N_HASHES:
            return n_bands, n_rows
        n_rows //= 2
    return N_HASHES, 1


def hash_bands(places: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """Return one hash per document over some places of its signature, shape (n,)."""
    hashes = np.zeros(len(places), dtype=np.uint64)
    for column in places.T:
        hashes = mix(hashes * np.uint64(3) + column)
    return hashes


class PairSearch:
    """Finds the similar pairs that share a band.

    Attributes:
        n_uncompared: Documents for which the number of comparisons did not suffice.
    """

    def __init__(self, signatures: NDArray[np.uint16], documents: NDArray[np.int64], similarity: float) -> None:
        self._signatures = signatures
        self._documents = documents
        self._similarity = similarity
        self.n_uncompared = 0

    def find(self, bands: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return pairs of places in the documents, shape (n_pairs,) each.

        In each bucket the first document is compared with all others, those similar to it leave with it, and so on
        with what remains, until nothing does or the band has compared as many pairs as it may.
        """
        empty = np.empty(0, dtype=np.int64)
        pairs = [(empty, empty)]
        left_to_compare = max(COMPARED_AT_LEAST, COMPARED_PER_DOCUMENT * len(self._documents))
        members, leaders = pair_with_leaders(np.argsort(bands, kind="stable"), bands)
        while 0 < len(members) <= left_to_compare:
            left_to_compare -= len(members)
            left, right = self._documents[members], self._documents[leaders]
            is_similar = compare(self._signatures, left, right) >= self._similarity
            pairs.append((members[is_similar], leaders[is_similar]))
            members, leaders = pair_with_leaders(members[~is_similar], bands)
        self.n_uncompared = len(members)
        return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])


def pair_with_leaders(
    members: NDArray[np.int64], bands: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return every member of a bucket but the first, and beside it the first.

    Args:
        members: Documents sorted by their hash.
        bands: The hash of each document: those with one hash are a bucket.
    """
    hashes = bands[members]
    is_first = np.ones(len(members), dtype=np.bool_)
    is_first[1:] = hashes[1:] != hashes[:-1]
    leaders = members[is_first][np.cumsum(is_first) - 1]
    return members[~is_first], leaders[~is_first]


def compare(signatures: NDArray[np.uint16], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of places in which the signatures of each pair of documents agree, shape (n_pairs,)."""
    shares = np.empty(len(left))
    for start in range(0, len(left), COMPARED_AT_ONCE):
        part = slice(start, start + COMPARED_AT_ONCE)
        shares[part] = (signatures[left[part]] == signatures[right[part]]).mean(axis=1)
    return shares
