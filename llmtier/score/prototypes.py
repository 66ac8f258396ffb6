"""Prototypes: a few unit vectors that stand for many embeddings, and which of them a text lies near.

Reads embeddings of unit norm; knows nothing of tiers, scores or prompts. Spherical k-means (Dhillon & Modha, Concept
decompositions for large sparse text data, 2001), started by k-means++ from a seed.
"""

import numpy as np
from numpy.typing import NDArray

from llmtier.score.recipe import Matrix

Floats = NDArray[np.float32]

SHARPNESS = 12.0
"""Of the soft assignment: a cosine higher by 0.06 doubles a prototype's share. 10 to 20 are level in measurement."""

MAX_ITERATIONS = 25
MAX_CLUSTERED_ROWS = 20_000
"""Of more rows a seeded sample is clustered; 128 centroids need no more."""


def find_prototypes(rows: Floats, n_prototypes: int, *, seed: int) -> Floats:
    """Return centroids of unit norm, shape (n, d) with n at most ``n_prototypes``.

    Args:
        rows: Unit norm, shape (n_rows, d), at least one.
        n_prototypes: How many to look for, >= 1.
        seed: Of the sample and of the first centroids.
    """
    draw = np.random.default_rng(seed)
    if len(rows) > MAX_CLUSTERED_ROWS:
        rows = rows[draw.choice(len(rows), MAX_CLUSTERED_ROWS, replace=False)]
    centroids = _first_centroids(rows, min(n_prototypes, len(rows)), draw)
    labels = np.argmax(rows @ centroids.T, axis=1)
    for _ in range(MAX_ITERATIONS):
        centroids = _normalise(_sums(rows, labels, len(centroids)))
        moved = np.argmax(rows @ centroids.T, axis=1)
        if np.array_equal(moved, labels):
            break
        labels = moved
    return centroids[np.bincount(labels, minlength=len(centroids)) > 0]


def nearness(rows: Floats, prototypes: Floats) -> Matrix:
    """Return each row's shares of the prototypes, shape (n_rows, n_prototypes); a row's shares sum to 1."""
    scaled = SHARPNESS * np.asarray(rows @ prototypes.T, dtype=np.float64)
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), dtype=np.float64)


def _first_centroids(rows: Floats, n_centroids: int, draw: np.random.Generator) -> Floats:
    """Draw rows far from each other: each next one by its distance from the nearest so far."""
    chosen = [int(draw.integers(len(rows)))]
    nearest = rows @ rows[chosen[0]]
    while len(chosen) < n_centroids:
        distances = np.maximum(1.0 - nearest.astype(np.float64), 0.0)
        distances[chosen] = 0.0
        total = float(distances.sum())
        if total <= 1e-6:  # all rows are alike
            break
        chosen.append(int(draw.choice(len(rows), p=distances / total)))
        nearest = np.maximum(nearest, rows @ rows[chosen[-1]])
    return rows[chosen]


def _sums(rows: Floats, labels: NDArray[np.intp], n_clusters: int) -> Floats:
    """Return the sum of each cluster's rows, shape (n_clusters, d)."""
    is_member = labels[np.newaxis, :] == np.arange(n_clusters)[:, np.newaxis]
    return np.asarray(is_member.astype(np.float32) @ rows, dtype=np.float32)


def _normalise(rows: Floats) -> Floats:
    """Return rows of unit norm; a row of zeros, of an empty cluster, stays."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, np.newaxis]
    return np.asarray(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0), dtype=np.float32)
