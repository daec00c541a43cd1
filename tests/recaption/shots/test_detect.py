"""Shot detection: cuts, dissolves and fades are found, and nothing else is taken for one.

`python tests/benchmarks/recaption/bench_shots.py` measures all detectors on scenes that were not used for tuning.
"""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recaption.errors import UsageError
from recaption.scenes.renderer import render
from recaption.shots.clips import cut_to_clips
from recaption.shots.detect import find_shots_in
from recaption.shots.scan import find_shots
from recaption.shots.settings import ShotSettings
from tests.stand_ins.labelled_shots import FIXTURES, count_hits, downscaled, exposed_scene, f1, varied_scene


def boundaries(frames_THWC: np.ndarray, fps: float, **settings) -> list[int]:
    shots = find_shots_in(downscaled(frames_THWC), np.arange(len(frames_THWC)) / fps, ShotSettings(**settings))
    return [start for start, _ in shots[1:]]


@pytest.mark.parametrize("num_scenes", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_f1_on_rendered_scenes(num_scenes):
    """30 scenes hold every frame rate and every kind of transition twice; there a single missed or false hard cut fails."""
    counts: Counter[str] = Counter()
    for index in range(num_scenes):
        scene, fps = varied_scene(7, index)
        counts += count_hits(boundaries(scene.frames_THWC, fps), scene)
    assert counts["hard"] > 0.3 * num_scenes
    assert counts["gradual"] > 0.6 * num_scenes
    # every false positive counts against both kinds
    assert f1(counts["hard_hit"], counts["hard"], counts["false"]) >= 0.97, counts
    assert f1(counts["gradual_hit"], counts["gradual"], counts["false"]) >= 0.90, counts


def test_flash_is_not_a_cut():
    for fps in (8, 24):
        frames = render(3, num_frames=3 * fps, height_px=96, width_px=96, fps=fps, weather="clear").frames_THWC
        for length in (1, 2):
            flashed = frames.copy()
            flashed[fps : fps + length] = 250
            assert boundaries(flashed, fps) == []


def test_change_of_light_is_not_a_new_shot():
    frames = render(3, num_frames=72, height_px=96, width_px=96, fps=24, weather="clear").frames_THWC
    light = np.interp(np.arange(72), [0, 30, 42, 72], [1.0, 1.0, 0.35, 0.35])
    assert boundaries((frames * light[:, None, None, None]).astype(np.uint8), 24) == []


def test_shots_split_by_a_change_of_exposure_are_stitched_and_others_are_not():
    split = stitched = 0
    for index in (11, 15, 21, 38, 60):
        frames, fps = exposed_scene(index)
        split += len(boundaries(frames, fps, stitch_distance=0))
        stitched += len(boundaries(frames, fps))
    assert split >= 4
    assert stitched <= split / 2
    scene, fps = varied_scene(3, 2)
    assert scene.transitions
    assert boundaries(scene.frames_THWC, fps, stitch_distance=0) == boundaries(scene.frames_THWC, fps)
    assert boundaries(scene.frames_THWC, fps, stitch_distance=1.01) == []


def test_fade_through_white_is_one_boundary_in_its_middle():
    before, after = (
        render(seed, num_frames=60, height_px=96, width_px=96, fps=24, background=where, style="flat").frames_THWC
        for seed, where in ((1, "grass"), (2, "night"))
    )
    white = np.interp(np.arange(60), [20, 30, 40], [0.0, 1.0, 0.0])[:, None, None, None]
    frames = np.concatenate([before[:30], after[30:]]) * (1 - white) + 255 * white
    (boundary,) = boundaries(frames.astype(np.uint8), 24)
    assert abs(boundary - 30) <= 4


def test_two_cuts_close_together_are_both_found():
    parts = [
        render(seed, num_frames=n, height_px=96, width_px=96, fps=24, background=where, camera="fixed").frames_THWC
        for seed, n, where in ((1, 40, "grass"), (2, 9, "night"), (3, 40, "sand"))
    ]
    assert boundaries(np.concatenate(parts), 24) == [40, 49]


def test_gradual_search_can_be_switched_off():
    scene = render(5, num_frames=72, height_px=96, width_px=96, fps=24, num_shots=2, transition="dissolve")
    assert len(boundaries(scene.frames_THWC, 24)) == 1
    assert boundaries(scene.frames_THWC, 24, max_gradual_seconds=0) == []


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5])
def test_very_short_videos_are_one_shot(num_frames):
    frames = render(1, num_frames=num_frames, height_px=64, width_px=64, action="stays still").frames_THWC
    assert find_shots_in(downscaled(frames), np.arange(num_frames) / 8) == [(0, num_frames)]
    assert find_shots_in(frames[:0], np.zeros(0)) == []


def test_equal_timestamps_and_tiny_frames_are_accepted():
    frames = np.zeros((12, 2, 2, 3), np.uint8)
    assert find_shots_in(frames, np.zeros(12)) == [(0, 12)]


def test_unknown_detector_is_an_error_that_lists_the_detectors():
    with pytest.raises(UsageError, match="histogram"):
        find_shots_in(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2.0), ShotSettings(detector="magic"))


def test_find_shots_reads_files_and_reports_bad_ones(tmp_path):
    from recaption.errors import VideoError

    scene = render(11, num_frames=48, height_px=96, width_px=128, fps=24, num_shots=2, transition="cut")
    scene.write(tmp_path / "two.mp4")
    assert find_shots(str(tmp_path / "two.mp4")) == [(0, scene.cut_frames[0]), (scene.cut_frames[0], 48)]
    (tmp_path / "bad.mp4").write_bytes(b"<html>not a video</html>" * 50)
    with pytest.raises(VideoError):
        find_shots(str(tmp_path / "bad.mp4"))


@pytest.mark.parametrize(("name", "cuts"), [("cuts_at_50_100.mp4", [50, 100]), ("xfade_2s_to_3s.mp4", [63])])
def test_real_footage_with_known_cuts(name, cuts):
    path = FIXTURES / "damaged" / name
    if not path.exists():
        pytest.skip("fixtures are not here")
    found = [start for start, _ in find_shots(str(path))[1:]]
    assert len(found) == len(cuts)
    assert all(abs(a - b) <= (1 if len(cuts) == 2 else 8) for a, b in zip(found, cuts, strict=True))


# --- clips ------------------------------------------------------------------------------------------------------------


def test_long_shots_are_split_evenly_and_short_ones_stay_whole():
    pts = np.arange(100) / 10
    clips = cut_to_clips([(0, 3), (3, 93), (93, 100)], pts, 10.0, max_seconds=4.0, min_seconds=0.5)
    assert clips == [(0, 0, 3), (1, 3, 33), (1, 33, 63), (1, 63, 93), (2, 93, 100)]


@given(
    st.lists(st.floats(0.001, 1.5), min_size=1, max_size=80),
    st.floats(0.2, 5.0),
    st.floats(0.0, 1.0),
    st.integers(0, 10**6),
)
def test_clips_cover_every_frame_for_any_timestamps(steps, max_seconds, min_fraction, seed):
    pts = np.concatenate([[0.0], np.cumsum(steps)])[:-1]
    end = float(np.sum(steps))
    rng = np.random.default_rng(seed)
    inner = sorted({int(x) for x in rng.integers(1, len(pts) + 1, size=3)} - {len(pts)})
    edges = [0, *inner, len(pts)]
    shots = list(itertools.pairwise(edges))
    min_seconds = min_fraction * max_seconds
    clips = cut_to_clips(shots, pts, end, max_seconds=max_seconds, min_seconds=min_seconds)
    assert [frame for _, a, b in clips for frame in range(a, b)] == list(range(len(pts)))
    for index, a, b in clips:
        assert a < b
        assert shots[index][0] <= a
        assert b <= shots[index][1]


def test_max_clip_seconds_on_even_timestamps():
    pts = np.arange(240) / 24
    for seconds in (0.7, 1.0, 2.3, 9.9):
        for _, a, b in cut_to_clips([(0, 240)], pts, 10.0, max_seconds=seconds):
            assert (b - a) / 24 <= seconds + 1 / 24


def test_contradictory_clip_limits_are_an_error():
    with pytest.raises(UsageError, match="min_seconds"):
        cut_to_clips([(0, 1)], np.zeros(1), 1.0, max_seconds=1.0, min_seconds=2.0)
