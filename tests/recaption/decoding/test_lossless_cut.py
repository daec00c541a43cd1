"""Cuts at keyframes: the same packets, the same frames, and refusals where a cut would show other ones."""

from __future__ import annotations

import av
import numpy as np
import pytest

from recaption.errors import VideoError
from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io.opened_video import open_video
from recaption.video_io.reader import decode_bytes, read_frames

NUM_FRAMES, GROUP = 36, 12


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """`make("a.mkv", "libx264", {...})`: a video with a keyframe every 12 frames, three B-frames between others."""
    folder = tmp_path_factory.mktemp("cuts")
    frames = render(3, num_frames=NUM_FRAMES, height_px=64, width_px=96, fps=24, **SIMPLE).frames_THWC

    def write(name: str, codec: str, options: dict[str, str]) -> str:
        path = folder / name
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=24)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            stream.codec_context.thread_count = 1
            stream.options = {"g": str(GROUP), **options}
            for frame_HWC in frames:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
            output.mux(stream.encode(None))
        return str(path)

    return write


X264 = {"sc_threshold": "0", "bf": "3", "x264-params": "mbtree=0"}
FILES = [
    ("a.mp4", "libx264", X264),
    ("a.mkv", "libx264", X264),
    ("a.ts", "libx264", X264),
    ("a.mov", "mpeg4", {}),
    ("a.webm", "libvpx-vp9", {"b": "300k", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}),
]


@pytest.mark.parametrize(("name", "codec", "options"), FILES, ids=[name for name, _, _ in FILES])
@pytest.mark.parametrize(("start", "end"), [(0, 12), (12, 24), (24, 36), (12, 36)])
def test_a_span_between_keyframes_has_the_same_frames(make, name, codec, options, start, end):
    path = make(name, codec, options)
    with open_video(path) as opened:
        mp4, obstacle = opened.cut(start, end)[:2]
        assert (opened.cut(start, end)[0], obstacle) == (mp4, "")  # the same bytes each time
    alone = decode_bytes(mp4)
    assert np.array_equal(alone.pixels_THWC, read_frames(path, range(start, end)).pixels_THWC)
    assert alone.pts_seconds[0] == 0
    assert np.allclose(np.diff(alone.pts_seconds), 1 / 24, atol=2e-3)
    assert mp4.find(b"moov") < mp4.find(b"mdat")


def test_a_span_that_starts_or_ends_between_keyframes_is_not_cut(make):
    with open_video(make("b.mp4", "libx264", X264)) as opened:
        assert opened.cut(5, 24)[:2] == (b"", "frame 5 is no keyframe")
        assert opened.cut(12, 20)[:2] == (b"", "frame 20 is no keyframe")


def test_open_groups_are_not_cut_where_frames_before_a_keyframe_are_stored_behind_it(make):
    options = X264 | {"x264-params": "mbtree=0:open-gop=1:b-adapt=0"}
    with open_video(make("open.mp4", "libx264", options)) as opened:
        assert opened.cut(0, NUM_FRAMES)[0]
        mp4, obstacle = opened.cut(GROUP, 2 * GROUP)[:2]
    assert not mp4
    assert "outside of the span" in obstacle


def test_files_whose_packets_do_not_number_frames_are_not_cut(make):
    with open_video(make("a.avi", "mpeg4", {})) as opened:
        mp4, obstacle = opened.cut(0, GROUP)[:2]
    assert not mp4
    assert "do not number" in obstacle


def test_frames_that_do_not_exist_are_a_mismatch(make):
    with open_video(make("c.mp4", "libx264", X264)) as opened, pytest.raises(VideoError) as raised:
        opened.cut(12, NUM_FRAMES + 1)
    assert raised.value.reason == "frame_mismatch"
