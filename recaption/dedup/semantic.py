"""Semantic duplicates: pairs of clips with similar embeddings, searched within k-means clusters.

    pairs, similarity = semantic_pairs(embeddings_ND, 0.95)      # (C, 2) rows, first < second; cosines

Up to `EXACT_UP_TO` embeddings are compared exhaustively. Larger sets are clustered by k-means into clusters of about
`CLUSTER_SIZE`, and each embedding is compared within its nearest two: a pair is missed only if the two embeddings share
neither cluster. For N embeddings of D values that is N (K + 2 CLUSTER_SIZE) D multiplications with K = N / CLUSTER_SIZE
clusters.

Array names: N embeddings, D values, K clusters, C pairs.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

EXACT_UP_TO = 4096
"""Number of embeddings up to which all pairs are compared."""
CLUSTER_SIZE = 1024
NUM_NEAREST_CLUSTERS = 2
"""Clusters that each embedding is assigned to."""
FIT_SAMPLES_PER_CLUSTER = 64
"""Embeddings per cluster that k-means is fitted to."""
NUM_ITERATIONS = 12
"""Iterations of k-means."""
ROWS_PER_BLOCK = 4096
"""Rows of the similarity matrix that are in memory at a time."""


def semantic_pairs(
    embeddings_ND: np.ndarray, min_similarity: float, *, seed: int = 0, exact_up_to: int = EXACT_UP_TO
) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs of rows with a cosine similarity of at least `min_similarity`: (C, 2) indices, sorted, and (C,) cosines.

    Args:
        embeddings_ND: float; need not be normalised.
    """
    values_ND = embeddings_ND.astype(np.float32)
    values_ND = values_ND / np.maximum(np.linalg.norm(values_ND, axis=1, keepdims=True), 1e-12)
    if len(values_ND) <= exact_up_to:
        return _pairs_within(values_ND, np.arange(len(values_ND)), min_similarity)
    centroids_KD = _kmeans_centroids(values_ND, max(2, round(len(values_ND) / CLUSTER_SIZE)), seed)
    nearest_N2 = _nearest_clusters(values_ND, centroids_KD)
    clusters = nearest_N2.ravel()
    order = np.argsort(clusters, kind="stable")
    edges = np.searchsorted(clusters[order], np.arange(len(centroids_KD) + 1))
    results = [
        _pairs_within(values_ND, np.sort(order[start:end] // nearest_N2.shape[1]), min_similarity)
        for start, end in pairwise(edges)
    ]
    pairs = np.concatenate([pair for pair, _ in results])
    _, first = np.unique(pairs[:, 0] * len(values_ND) + pairs[:, 1], return_index=True)
    return pairs[first], np.concatenate([similarity for _, similarity in results])[first]


def _pairs_within(values_ND: np.ndarray, rows: np.ndarray, min_similarity: float) -> tuple[np.ndarray, np.ndarray]:
    """All pairs among the given rows, first < second, and their cosines."""
    pairs, similarities = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for start in range(0, len(rows), ROWS_PER_BLOCK):
        block = rows[start : start + ROWS_PER_BLOCK]
        cosine = values_ND[block] @ values_ND[rows[start:]].T
        first, second = np.nonzero(np.triu(cosine >= min_similarity, k=1))
        pairs.append(np.stack([block[first], rows[start + second]], axis=1))
        similarities.append(cosine[first, second].astype(np.float64))
    return np.concatenate(pairs), np.minimum(np.concatenate(similarities), 1.0)


def _kmeans_centroids(values_ND: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """(K, D) centroids of spherical k-means on a sample; an empty cluster is re-seeded at the worst-fitting embedding."""
    rng = np.random.default_rng(seed)
    sample = values_ND[rng.permutation(len(values_ND))[: num_clusters * FIT_SAMPLES_PER_CLUSTER]]
    centroids_KD = sample[:num_clusters].copy()
    for _ in range(NUM_ITERATIONS):
        nearest = _nearest_clusters(sample, centroids_KD)[:, 0]
        fit = (sample * centroids_KD[nearest]).sum(1)
        order = np.argsort(nearest, kind="stable")
        edges = np.searchsorted(nearest[order], np.arange(num_clusters))
        filled = np.bincount(nearest, minlength=num_clusters) > 0
        centroids_KD[filled] = np.add.reduceat(sample[order], edges[filled], axis=0)
        centroids_KD[~filled] = sample[np.argsort(fit, kind="stable")[: int((~filled).sum())]]
        centroids_KD /= np.maximum(np.linalg.norm(centroids_KD, axis=1, keepdims=True), 1e-12)
    return centroids_KD


def _nearest_clusters(values_ND: np.ndarray, centroids_KD: np.ndarray) -> np.ndarray:
    """(N, NUM_NEAREST_CLUSTERS) cluster indices, the nearest first."""
    parts = []
    for start in range(0, len(values_ND), ROWS_PER_BLOCK):
        cosine = values_ND[start : start + ROWS_PER_BLOCK] @ centroids_KD.T
        best = np.argpartition(-cosine, min(NUM_NEAREST_CLUSTERS, len(centroids_KD)) - 1, axis=1)[
            :, :NUM_NEAREST_CLUSTERS
        ]
        parts.append(np.take_along_axis(best, np.argsort(-np.take_along_axis(cosine, best, 1), axis=1), 1))
    return np.concatenate(parts)
