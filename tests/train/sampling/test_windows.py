"""Windows over long videos: which token frames they cover, and what is known of the video after each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from packing.grid import Grid
from train.sampling.conditioning_frames import extend, extend_backward, image_to_video, text_to_video, video_to_video
from train.sampling.windows import Window, WindowedVideo, blend_weights, overlapping_windows, plan_windows

GRID = Grid(frame_stride=4, spatial_stride=8, patch=(1, 1, 1))


def known(pattern: str) -> np.ndarray:
    """`xx...` -> the first two of five token frames are known."""
    return np.array([letter == "x" for letter in pattern])


def grey(*levels: int) -> np.ndarray:
    """One frame per level."""
    return np.array(levels, np.uint8)[:, None, None, None] + np.zeros((8, 8, 3), np.uint8)


def levels(frames_THWC: np.ndarray) -> list[int]:
    return frames_THWC[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("pattern", "windows"),
    [
        (".....", [(0, 5)]),
        ("xxxxx", []),
        ("............", [(0, 5), (3, 5), (6, 5), (7, 5)]),
        ("xxx.........", [(1, 5), (4, 5), (7, 5)]),
        ("xxx...xxxxxx", [(2, 5)]),
        (".......xx", [(4, 5), (2, 5), (0, 5)]),
    ],
)
def test_windows_go_on_from_known_frames_until_nothing_is_unknown(pattern, windows):
    assert plan_windows(known(pattern), 5, 2) == [Window(*window) for window in windows]


def test_a_window_that_ends_at_known_frames_is_shortened_so_that_the_next_one_contains_them():
    assert plan_windows(known("xx.....xxx"), 5, 2) == [Window(0, 5), Window(4, 5)], "no known frame right after either"
    # frames 3 to 7 would fill the gap without the known frame 8: one is left for a window with known frames on both sides
    assert plan_windows(known("xxxx....xxxx"), 5, 1) == [Window(3, 4), Window(5, 5)]


@pytest.mark.parametrize("num_frames", range(1, 24))
@pytest.mark.parametrize(("window_length", "overlap"), [(3, 1), (5, 2), (6, 4)])
def test_overlapping_windows_cover_all_frames_and_share_enough(num_frames, window_length, overlap):
    windows = overlapping_windows(num_frames, window_length, overlap)
    assert windows[0].start == 0
    assert windows[-1].end == num_frames
    assert {window.length for window in windows} == {min(num_frames, window_length)}
    assert all(one.end - other.start >= overlap for one, other in itertools.pairwise(windows))
    total = np.zeros(num_frames)
    for window in windows:
        total[window.start : window.end] += blend_weights(window)
    assert (total > 0).all(), "every frame has a prediction to average"


def test_blend_weights_are_highest_in_the_middle_and_0_at_the_start_of_a_later_window():
    assert blend_weights(Window(0, 5)).tolist() == [1, 2, 3, 2, 1]
    assert blend_weights(Window(3, 4)).tolist() == [0, 2, 2, 1]


def test_frames_of_a_window_start_with_the_last_frame_of_a_group():
    assert Window(0, 2).frames(GRID) == slice(0, 5)
    assert Window(2, 2).frames(GRID) == slice(8, 13)
    assert Window(1, 1).frames(Grid(frame_stride=4, spatial_stride=8, patch=(2, 1, 1))) == slice(8, 13)


def test_unknown_frames_repeat_the_nearest_known_one():
    video = WindowedVideo(image_to_video(grey(7)[0], 9, GRID), GRID, window_length=5, overlap=2)
    frames_THWC, condition_mask_K = video.window_inputs(Window(0, 3))
    assert condition_mask_K.tolist() == [True, False, False]
    assert levels(frames_THWC) == [7] * 9
    back = WindowedVideo(extend_backward(grey(*range(50, 54)), 4, GRID), GRID, window_length=5, overlap=2)
    frames_THWC, condition_mask_K = back.window_inputs(Window(0, 3))
    assert condition_mask_K.tolist() == [False, False, True]
    assert levels(frames_THWC) == [50] * 5 + [50, 51, 52, 53]


def test_an_edit_is_conditioned_on_nothing_and_starts_from_its_source():
    video = WindowedVideo(video_to_video(grey(*range(9)), 0.5, GRID), GRID, window_length=5, overlap=2)
    frames_THWC, condition_mask_K = video.window_inputs(Window(0, 3))
    assert not condition_mask_K.any()
    assert levels(frames_THWC) == list(range(9))


def test_a_committed_window_is_the_conditioning_of_the_next_one_and_stays_as_it_is():
    video = WindowedVideo(text_to_video(17, 8, 8), GRID, window_length=3, overlap=1)
    assert video.windows == [Window(0, 3), Window(2, 3)]
    video.commit(Window(0, 3), grey(*range(1, 10)))
    frames_THWC, condition_mask_K = video.window_inputs(Window(2, 3))
    assert condition_mask_K.tolist() == [True, False, False]
    assert levels(frames_THWC) == [9] * 9
    video.commit(Window(2, 3), grey(*range(100, 109)))
    assert levels(video.frames_THWC) == [*range(1, 10), *range(101, 109)]


def test_undecoded_windows_are_the_conditioning_frames_that_no_window_contained():
    video = WindowedVideo(extend(grey(*range(21)), 4, GRID), GRID, window_length=3, overlap=1)
    assert video.windows == [Window(4, 3)], "frames 16 to 24, the last four of them unknown"
    video.commit(Window(4, 3), grey(*[200] * 9))
    undecoded = []
    for window in video.undecoded(3):
        undecoded.append(window)
        video.commit(window, grey(*[100] * 9))
    assert undecoded == [Window(0, 3), Window(2, 3)]
    assert levels(video.frames_THWC) == [100] * 16 + [200] * 9
