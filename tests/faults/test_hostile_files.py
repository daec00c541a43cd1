"""Playlists named .mp4 lead nowhere, and files that claim absurd sizes are refused. All bombs, with the memory they take:
tests/benchmarks/recaption/bench_hostile.py."""

from __future__ import annotations

import socket

import pytest
from hostile_files import edited, gif, write_disguised

from recaption.errors import FAILURE_REASONS
from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io.reader import scan

NUM_OWN_FRAMES = 9


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "target.mp4"
    render(1, num_frames=NUM_OWN_FRAMES, height_px=64, width_px=96, fps=8, **SIMPLE).write(path)
    return path


def test_playlists_and_references_named_mp4_open_nothing(target, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        paths = sorted(write_disguised(tmp_path / "disguised", target=target, url=url).iterdir())
        assert len(paths) >= 31
        for path in paths:
            video = scan(path).video
            if video.status == "ok":
                assert path.name.startswith("dref_"), path.name
                assert video.num_frames == NUM_OWN_FRAMES, "these samples are in the file itself"
            else:
                assert video.reason in FAILURE_REASONS
                assert video.detail
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    ("box", "offset", "values", "reason"),
    [
        (b"stts", 16, [2**31 - 1], "too_large"),
        (b"stsz", 12, [2**32 - 1], "unreadable"),
        (b"stsz", 8, [1, 2**31], "zero_frames"),
    ],
    ids=["one frame of 36 hours", "four billion samples", "samples of one byte"],
)
def test_tables_that_lie_are_a_reason(target, tmp_path, box, offset, values, reason):
    path = tmp_path / "lie.mp4"
    path.write_bytes(edited(target.read_bytes(), box, offset, values))
    video = scan(path).video
    assert (video.status, video.reason) == ("failed", reason)


def test_a_claim_of_a_billion_frames_is_not_believed(target, tmp_path):
    path = tmp_path / "lie.mp4"
    path.write_bytes(edited(target.read_bytes(), b"stts", 12, [10**9]))
    assert scan(path).video.num_frames == NUM_OWN_FRAMES


def test_a_gif_of_four_billion_pixels_is_too_large(tmp_path):
    path = tmp_path / "huge.gif"
    path.write_bytes(gif(65535, 65535, 3))
    assert scan(path).video.reason in ("too_large", "unreadable")
