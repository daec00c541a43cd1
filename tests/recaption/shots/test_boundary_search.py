"""Shots found block by block are those found in all frames at once, in memory that does not grow with the video."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from recaption.scenes.renderer import render
from recaption.shots import boundary_search
from recaption.shots.boundary_search import BoundarySearch
from recaption.shots.detect import find_shots_in, shots_of
from recaption.shots.settings import ShotSettings
from tests.stand_ins.labelled_shots import downscaled


def mixed_video(seed: int, fps: float) -> np.ndarray:
    """Shots of uneven length with hard cuts, dissolves, fades and flashes between them."""
    rng = np.random.default_rng(seed)
    size = {"height_px": 64, "width_px": 96, "fps": fps}
    shots = [downscaled(render(seed * 100 + k, num_frames=40, **size).frames_THWC) for k in range(6)]
    video = [shots[0]]
    for before, after in itertools.pairwise(shots):
        kind, length = int(rng.integers(4)), int(rng.integers(6, 30))
        weight = np.linspace(0, 1, length)[:, None, None, None]
        if kind == 0:
            video.append((before[-1] * (1 - weight) + after[0] * weight).astype(np.uint8))
        elif kind == 1:
            video += [(before[-1] * (1 - weight)).astype(np.uint8), (after[0] * weight).astype(np.uint8)]
        elif kind == 2:
            video.append(np.full_like(after[:1], 255))
        video.append(after[: int(rng.integers(3, 40))])
    return np.concatenate(video)


@pytest.mark.parametrize("seed", range(4))
def test_neither_blocks_nor_chunks_change_the_shots(seed, monkeypatch):
    fps = (8.0, 24.0, 30.0, 60.0)[seed]
    video = mixed_video(seed, 24.0)
    pts_seconds = np.arange(len(video)) / fps
    expected = find_shots_in(video, pts_seconds)
    assert len(expected) >= 4
    for chunk_frames, block_frames in ((16, 5), (50, 1000), (100, 33)):
        monkeypatch.setattr(boundary_search, "CHUNK_FRAMES", chunk_frames)
        search = BoundarySearch(fps, ShotSettings())
        for start in range(0, len(video), block_frames):
            search.add(video[start : start + block_frames])
        assert shots_of(search) == expected, (chunk_frames, block_frames)


def test_memory_does_not_grow_with_a_shot_that_never_ends(monkeypatch):
    """A surveillance camera: no cut for hours, so that only what is decided within the shot can be forgotten."""
    monkeypatch.setattr(boundary_search, "CHUNK_FRAMES", 128)
    block = np.random.default_rng(0).integers(100, 110, (64, 48, 85, 3)).astype(np.uint8)
    peaks = []
    for num_blocks in (16, 64):
        search = BoundarySearch(30.0, ShotSettings())
        tracemalloc.start()
        for _ in range(num_blocks):
            search.add(block)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert shots_of(search) == [(0, 64 * num_blocks)]
    assert peaks[1] < peaks[0] + 64 * 64 * 40, f"{peaks = }: features of frames are kept"
