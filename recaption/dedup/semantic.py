"""Clips that mean the same: pairs of near embeddings, without comparing all with all.

    pairs, similarity = semantic_pairs(embeddings_ND, 0.95)      # (C, 2) rows, first < second; cosines

Few embeddings are compared exactly. Of many, k-means makes clusters of about `CLUSTER_SIZE`, and each embedding is
compared within the nearest two: a pair on a border is then missed only where neither shares any of its two with the
other. For N embeddings of D values that is N (K + 2 CLUSTER_SIZE) D multiplications with K = N / CLUSTER_SIZE clusters.

Array names: N embeddings, D values, K clusters, C pairs.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

EXACT_UP_TO = 4096


CLUSTER_SIZE = 1024


NEAREST = 2
"""Clusters that an embedding is looked for in."""


SAMPLE_PER_CLUSTER = 64
"""Embeddings that k-means learns from, per cluster."""


NUM_ROUNDS = 12


ROWS_AT_A_TIME = 4096


def semantic_pairs(
    embeddings_ND: np.ndarray, min_similarity: float, *, seed: int = 0, exact_up_to: int = EXACT_UP_TO
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows whose cosine is at least `min_similarity`, sorted, and these cosines.

    Args:
        embeddings_ND: float; their length does not matter.
    """
    values_ND = embeddings_ND.astype(np.float32)
    values_ND = values_ND / np.maximum(np.linalg.norm(values_ND, axis=1, keepdims=True), 1e-12)
    if len(values_ND) <= exact_up_to:
        return _pairs_within(values_ND, np.arange(len(values_ND)), min_similarity)
    centres_KD = _centres(values_ND, max(2, round(len(values_ND) / CLUSTER_SIZE)), seed)
    nearest_N2 = _nearest(values_ND, centres_KD)
    clusters = nearest_N2.ravel()
    order = np.argsort(clusters, kind="stable")
    edges = np.searchsorted(clusters[order], np.arange(len(centres_KD) + 1))
    found = [
        _pairs_within(values_ND, np.sort(order[start:end] // nearest_N2.shape[1]), min_similarity)
        for start, end in pairwise(edges)
    ]
    pairs = np.concatenate([pair for pair, _ in found])
    _, first = np.unique(pairs[:, 0] * len(values_ND) + pairs[:, 1], return_index=True)
    return pairs[first], np.concatenate([similarity for _, similarity in found])[first]


def _pairs_within(values_ND: np.ndarray, rows: np.ndarray, min_similarity: float) -> tuple[np.ndarray, np.ndarray]:
    pairs, similarities = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        some = rows[start : start + ROWS_AT_A_TIME]
        cosine = values_ND[some] @ values_ND[rows[start:]].T
        first, second = np.nonzero(np.triu(cosine >= min_similarity, k=1))
        pairs.append(np.stack([some[first], rows[start + second]], axis=1))
        similarities.append(cosine[first, second].astype(np.float64))
    return np.concatenate(pairs), np.minimum(np.concatenate(similarities), 1.0)


def _centres(values_ND: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """(K, D) spherical k-means on a sample. An empty cluster starts anew at the embedding that fits worst."""
    rng = np.random.default_rng(seed)
    sample = values_ND[rng.permutation(len(values_ND))[: num_clusters * SAMPLE_PER_CLUSTER]]
    centres_KD = sample[:num_clusters].copy()
    for _ in range(NUM_ROUNDS):
        nearest = _nearest(sample, centres_KD)[:, 0]
        fit = (sample * centres_KD[nearest]).sum(1)
        order = np.argsort(nearest, kind="stable")
        edges = np.searchsorted(nearest[order], np.arange(num_clusters))
        filled = np.bincount(nearest, minlength=num_clusters) > 0
        centres_KD[filled] = np.add.reduceat(sample[order], edges[filled], axis=0)
        centres_KD[~filled] = sample[np.argsort(fit, kind="stable")[: int((~filled).sum())]]
        centres_KD /= np.maximum(np.linalg.norm(centres_KD, axis=1, keepdims=True), 1e-12)
    return centres_KD


def _nearest(values_ND: np.ndarray, centres_KD: np.ndarray) -> np.ndarray:
    """(N, NEAREST) clusters, the nearest first."""
    parts = []
    for start in range(0, len(values_ND), ROWS_AT_A_TIME):
        cosine = values_ND[start : start + ROWS_AT_A_TIME] @ centres_KD.T
        best = np.argpartition(-cosine, min(NEAREST, len(centres_KD)) - 1, axis=1)[:, :NEAREST]
        parts.append(np.take_along_axis(best, np.argsort(-np.take_along_axis(cosine, best, 1), axis=1), 1))
    return np.concatenate(parts)
