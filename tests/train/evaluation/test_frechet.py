"""Frechet distance and diversity: known values, shrinkage for small sets, none for tiny ones."""

import numpy as np
import pytest

from train.evaluation.frechet import MIN_CLIPS, frechet_distance, mean_cosine_distance, mean_distance_within


def normal(num, width=6, *, scale=1.0, shift=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal((num, width)) * scale + shift


def test_a_set_has_no_distance_to_itself():
    found = frechet_distance(normal(400), normal(400))
    assert found.distance == pytest.approx(0, abs=1e-9)
    assert found.shrinkage == 0


def test_normal_sets_have_the_distance_of_the_formula():
    # |mu|^2 + trace(A + B - 2 sqrt(A B)) = 6 * 0.5^2 + 6 * (1 - 2)^2
    found = frechet_distance(normal(40_000), normal(40_000, scale=2.0, shift=0.5, seed=1))
    assert found.distance == pytest.approx(6 * 0.25 + 6, rel=0.03)


def test_covariances_that_do_not_commute():
    one = normal(500) @ np.random.default_rng(3).standard_normal((6, 6))
    other = normal(500, seed=1) @ np.random.default_rng(4).standard_normal((6, 6))
    cov_one, cov_other = np.cov(one.T), np.cov(other.T)
    roots = np.sqrt(np.clip(np.linalg.eigvals(cov_one @ cov_other).real, 0, None)).sum()
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(cov_one) + np.trace(cov_other) - 2 * roots
    assert frechet_distance(one, other).distance == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(other, one).distance == pytest.approx(expected, rel=1e-6)


def test_fewer_clips_than_dimensions_are_shrunk_and_report_the_intensity():
    found = frechet_distance(normal(20, 64), normal(20, 64, seed=1))
    assert 0 < found.shrinkage <= 1
    unlike = frechet_distance(normal(20, 64), normal(20, 64, seed=1, shift=2.0))
    assert unlike.distance > found.distance + 100


def test_too_few_clips_have_no_distance():
    assert frechet_distance(normal(MIN_CLIPS - 1), normal(100)) is None


def test_all_pairs_count_once():
    clips = np.eye(4)[[0, 0, 1]]
    assert mean_cosine_distance(clips) == (pytest.approx(2 / 3), 3)
    assert mean_cosine_distance(clips[:1]) == (None, 0)
    assert mean_distance_within([clips[:2], clips[1:], clips[:1]]) == (pytest.approx(0.5), 2)
    assert mean_distance_within([clips[:1]]) == (None, 0)
