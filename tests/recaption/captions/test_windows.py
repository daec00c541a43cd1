from hypothesis import given
from hypothesis import strategies as st

from recaption.captions.windows import caption_for_window, split_into_windows
from recaption.records import Caption, Clip


def clip(num_frames, fps=24.0, start_frame=100):
    return Clip(
        clip_id="a",
        video_id="v",
        uri="v.mp4",
        shot_index=0,
        start_frame=start_frame,
        end_frame=start_frame + num_frames,
        start_seconds=start_frame / fps,
        end_seconds=(start_frame + num_frames) / fps,
        width_px=64,
        height_px=64,
        fps=fps,
    )


@given(st.integers(1, 400), st.floats(0.05, 30))
def test_windows_tile_the_clip_and_none_is_longer_than_requested(num_frames, window_seconds):
    whole = clip(num_frames)
    windows = split_into_windows(whole, window_seconds)
    if whole.duration_seconds <= window_seconds:
        assert windows == []
        return
    edges = [whole.start_frame, *(end for _, end in windows)]
    assert [start for start, _ in windows] == edges[:-1]
    assert edges[-1] == whole.end_frame
    lengths = [end - start for start, end in windows]
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= max(1, window_seconds * whole.fps + 1)  # a frame more where they do not divide evenly


def test_no_windows_by_default():
    assert split_into_windows(clip(400), 0.0) == []
    assert split_into_windows(clip(288), 4.0) == [(100, 196), (196, 292), (292, 388)]


def caption(start, end, **fields):
    return Caption(text=f"{start}-{end}", start_seconds=start, end_seconds=end, **fields)


WHOLE = caption(0.0, 12.0)
WINDOWS = [caption(0.0, 4.0), caption(4.0, 8.0), caption(8.0, 12.0)]


def test_part_of_a_clip_gets_the_caption_of_its_window():
    for window in WINDOWS:
        found = caption_for_window([WHOLE, *WINDOWS], window.start_seconds + 0.1, window.end_seconds - 0.3)
        assert found is window
    assert caption_for_window([WHOLE, *WINDOWS], 3.9, 8.1) is WINDOWS[1]


def test_most_of_a_clip_gets_the_caption_of_the_whole_clip():
    assert caption_for_window([WHOLE, *WINDOWS], 0.0, 12.0) is WHOLE
    assert caption_for_window([WHOLE, *WINDOWS], 0.5, 11.0) is WHOLE


def test_ties_go_to_the_shorter_then_the_earlier_window_in_any_order():
    for rows in ([WHOLE, *WINDOWS], [*reversed(WINDOWS), WHOLE]):
        assert caption_for_window(rows, 2.0, 6.0) is WINDOWS[0]


def test_bad_and_non_overlapping_captions_are_never_returned():
    bad = caption(0.0, 4.0, reason="bad_caption")
    assert caption_for_window([bad, WHOLE], 0.0, 4.0) is WHOLE
    assert caption_for_window([bad], 0.0, 4.0) is None
    assert caption_for_window([WHOLE], 12.0, 14.0) is None
    assert caption_for_window([], 0.0, 1.0) is None
