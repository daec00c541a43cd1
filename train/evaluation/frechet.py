"""Frechet distance and diversity of clips in a captioner's embedding space.

    frechet = frechet_distance(sampled_ND, real_MD)      # .distance, .shrinkage; None for too few clips
    mean_cosine_distance(sampled_ND)                     # (0.31, 45): mean over all pairs, and their number

Shape suffixes: N, M clips, D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_CLIPS = 8
"""With fewer clips than this in either set the covariance is meaningless, even shrunk."""


@dataclass(frozen=True, kw_only=True)
class Frechet:
    """Frechet distance between two sets of clips, and the covariance shrinkage that it needed."""

    distance: float
    """Squared, as in FID: |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)); 0 for equal sets."""
    shrinkage: float
    """Larger of the two shrinkage intensities: fraction of a covariance replaced by a sphere of the same trace; 0 = none."""


def frechet_distance(one_ND: np.ndarray, other_MD: np.ndarray) -> Frechet | None:
    """Frechet distance between normal distributions fitted to two sets of embeddings (FID, arXiv 1706.08500).

    With no more clips than dimensions a sample covariance is singular and the distance mostly noise, so covariances are
    shrunk towards a sphere by the intensity of Ledoit and Wolf (J. Multivariate Analysis 88, 2004).

    Returns:
        None where either set has fewer than `MIN_CLIPS` clips.
    """
    if min(len(one_ND), len(other_MD)) < MIN_CLIPS:
        return None
    (mean_one, cov_one, shrinkage_one), (mean_other, cov_other, shrinkage_other) = map(_fit_normal, (one_ND, other_MD))
    root = _matrix_sqrt(cov_one)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_other @ root), 0, None)).sum()
    spread = np.trace(cov_one) + np.trace(cov_other) - 2 * cross
    distance = float(np.square(mean_one - mean_other).sum() + spread)
    return Frechet(distance=max(distance, 0.0), shrinkage=max(shrinkage_one, shrinkage_other))


def mean_cosine_distance(clips_ND: np.ndarray) -> tuple[float | None, int]:
    """Mean of 1 - cosine over all pairs of unit vectors (None without pairs), and the number of pairs."""
    num = len(clips_ND)
    num_pairs = num * (num - 1) // 2
    if not num_pairs:
        return None, 0
    cosine = clips_ND.astype(np.float64) @ clips_ND.astype(np.float64).T
    return float(1 - cosine[np.triu_indices(num, 1)].mean()), num_pairs


def mean_distance_within(groups: Sequence[np.ndarray]) -> tuple[float | None, int]:
    """`mean_cosine_distance` within each group, averaged over all pairs of all groups."""
    found = [mean_cosine_distance(group) for group in groups]
    num_pairs = sum(count for _, count in found)
    total = sum(distance * count for distance, count in found if distance is not None)
    return (total / num_pairs if num_pairs else None), num_pairs


def _fit_normal(clips_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, (shrunk) covariance and the shrinkage intensity."""
    clips_ND = clips_ND.astype(np.float64)
    num, width = clips_ND.shape
    mean_D = clips_ND.mean(axis=0)
    centred_ND = clips_ND - mean_D
    covariance = centred_ND.T @ centred_ND / num
    if num > width:
        return mean_D, covariance * num / (num - 1), 0.0
    sphere = np.eye(width) * np.trace(covariance) / width
    to_sphere = np.square(covariance - sphere).sum()
    norms_N = np.square(centred_ND).sum(axis=1)
    noise = (np.square(norms_N).sum() / num - np.square(covariance).sum()) / num
    shrinkage = float(np.clip(noise / to_sphere, 0, 1)) if to_sphere > 0 else 1.0
    return mean_D, (1 - shrinkage) * covariance + shrinkage * sphere, shrinkage


def _matrix_sqrt(symmetric: np.ndarray) -> np.ndarray:
    """Square root of a symmetric positive semi-definite matrix; eigenvalues below 0 by rounding count as 0."""
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
