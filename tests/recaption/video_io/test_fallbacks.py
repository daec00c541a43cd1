"""A backend that hangs, crashes, lies, or takes too much memory costs a fallback to PyAV, never a row."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from recaption.errors import UsageError, VideoError
from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io import fallbacks
from recaption.video_io import process as decoder_process
from recaption.video_io.fallbacks import take_fallbacks
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.opened_video import open_video
from recaption.video_io.reader import probe, read_clip, read_frames, scan

STAND_INS = Path(__file__).parents[2] / "stand_ins"
NUM_FRAMES = 25


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "scene.mp4"
    render(1, num_frames=NUM_FRAMES, height_px=64, width_px=96, fps=8, **SIMPLE).write(path)
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def own_children():
    decoder_process.close()
    yield
    decoder_process.close()


@pytest.fixture
def limits(monkeypatch):
    """`limits("hang")`: of a stand-in for a backend."""
    monkeypatch.setattr(decoder_process, "WORKER", "misbehaving_backends")
    monkeypatch.setenv("PYTHONPATH", str(STAND_INS))
    monkeypatch.setattr(fallbacks, "_not_survived", {})
    take_fallbacks()
    yield lambda backend, **settings: DecodeLimits(backend=backend, **settings)
    for decoder in decoder_process._own_decoders():
        if decoder.backend != "av":
            decoder.close()
    take_fallbacks()


def test_an_honest_backend_gives_the_frames_of_pyav_in_any_order(video, limits):
    honest, indices = limits("honest"), [20, 3, 3, 24, 0]
    got, expected = read_frames(video, indices, limits=honest), read_frames(video, indices)
    assert np.array_equal(got.pixels_THWC, expected.pixels_THWC)
    assert np.array_equal(got.pts_seconds, expected.pts_seconds)
    assert got.indices.tolist() == indices
    assert np.array_equal(read_frames(video, None, limits=honest).pixels_THWC, read_frames(video, None).pixels_THWC)
    span = {"num_frames": 9, "fps": 4.0, "height_px": 32, "width_px": 32, "start_frame": 2, "end_frame": 22}
    clips = [read_clip(video, 0.25, **span, limits=one).astype(int) for one in (honest, DecodeLimits())]
    assert np.abs(clips[0] - clips[1]).mean() < 3, "scaled from RGB: other rounding, the same frames"
    assert take_fallbacks() == {}
    assert decoder_process.child_pid("honest") is not None


@pytest.mark.parametrize(
    ("backend", "reason"),
    [("crash", "crashed"), ("fail", "refused"), ("refuse", "damage"), ("short", "mismatch"), ("small", "mismatch")],
)
def test_what_a_backend_gets_wrong_is_decoded_by_pyav(video, limits, backend, reason):
    got = read_frames(video, [0, 8, 16], limits=limits(backend))
    assert np.array_equal(got.pixels_THWC, read_frames(video, [0, 8, 16]).pixels_THWC)
    assert take_fallbacks() == {reason: 1}


def test_a_hang_costs_one_deadline_for_all_frames_of_a_file(video, limits):
    hanging = limits("hang", max_wall_seconds=1.0, seconds_per_video_second=0.1)
    expected = read_frames(video, [0, 8]).pixels_THWC
    decoder_process.start("hang")
    with open_video(video, limits=hanging) as opened:
        started = time.monotonic()
        assert np.array_equal(opened.read_frames([0, 8]).pixels_THWC, expected)
        assert time.monotonic() - started > 1
        pid = decoder_process.child_pid("hang")
        assert pid is None, "the hanging child is still there"
        assert np.array_equal(opened.read_frames([0, 8]).pixels_THWC, expected)
        assert decoder_process.child_pid("hang") is None, "the file was given to the backend once more"
    assert take_fallbacks() == {"timeout": 2}


def test_memory_is_watched_from_outside(video, limits):
    greedy = limits("greedy", max_memory_bytes=400 << 20)
    assert len(read_frames(video, [4], limits=greedy)) == 1
    assert take_fallbacks() == {"memory": 1}


def test_a_scan_and_a_probe_are_those_of_pyav(video, limits):
    assert scan(video, limits=limits("crash")).video == probe(video)
    assert probe(video, limits=limits("crash")) == probe(video)
    assert decoder_process.child_pid("crash") is None


def test_a_bad_file_is_bad_by_the_word_of_pyav_alone(tmp_path, limits):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(VideoError, match="not a video file"):
        read_frames(tmp_path / "a.mp4", [0], limits=limits("honest"))
    assert take_fallbacks() == {}


def test_a_frame_that_the_index_does_not_have_is_no_fallback(video, limits):
    with pytest.raises(VideoError) as raised:
        read_frames(video, [NUM_FRAMES], limits=limits("honest"))
    assert raised.value.reason == "frame_mismatch"
    assert take_fallbacks() == {}


def test_a_backend_that_is_not_installed_is_one_sentence(video, limits):
    with pytest.raises(
        UsageError, match=r"backend missing does not work here: No module.*pip install 'recaption\[missing\]'"
    ):
        read_frames(video, [0], limits=limits("missing"))
