"""Long videos are prepared in bounded memory, with the same rows as short ones; a refusal for size names its flag."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.prepare.clips import prepare_video
from jobs.recipe.stage_settings import PrepareSettings
from recaption.errors import VideoError
from recaption.quality.scores import ScoreSettings
from recaption.scenes.renderer import render
from recaption.shots.settings import ShotSettings
from recaption.video_io import process as decoder_process
from recaption.video_io.client import DecodeResponse
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.reader import read_frames, scan
from recaption.video_io.writer import write_video

FPS = 24
SMALL_BYTES = 48 * 72 * 3
NEEDS_FFMPEG = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")


def settings(**limits) -> PrepareSettings:
    few_flows = ScoreSettings(max_flow_pairs=1)
    return PrepareSettings(max_clip_seconds=3.0, scores=few_flows, decode=DecodeLimits(**limits))


@pytest.fixture(scope="module")
def whole(video):
    """The video and its rows from one decode."""
    return prepare_video(str(video), settings())


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Fifteen shots, some 1300 frames: more than three blocks of the decoder's answer."""
    rng = np.random.default_rng(5)
    pictures = [render(seed, num_frames=2, height_px=64, width_px=96, fps=8).frames_THWC[0] for seed in range(15)]
    frames = [np.roll(p, step // 2, 1) for p in pictures for step in range(int(rng.integers(60, 120)))]
    path = tmp_path_factory.mktemp("videos") / "shots.mp4"
    write_video(path, np.stack(frames), fps=FPS)
    return path


def test_a_video_that_does_not_fit_gives_the_same_rows_in_two_decodes(video, whole, monkeypatch):
    requests = []
    exchange = decoder_process.exchange
    monkeypatch.setattr(
        decoder_process,
        "exchange",
        lambda request, *args, **kw: requests.append(request) or exchange(request, *args, **kw),
    )
    in_two = prepare_video(str(video), settings(max_kept_bytes=150 * SMALL_BYTES))
    assert len(requests) == 2
    assert whole[0].status == "ok"
    assert whole[0].num_frames * SMALL_BYTES > 3 * (4 << 20), "all frames come in one block"
    assert len(whole[1]) >= 15
    assert in_two == whole


def test_a_rate_that_was_estimated_wrongly_costs_one_more_decode(video, whole, monkeypatch):
    """Times of AVI are known at the end only; an estimate that turns out wrong must not change the shots."""
    begin = DecodeResponse._begin

    def without_times(self, header):
        self.pts_seconds = np.zeros(0)
        begin(self, header | {"seconds": header["seconds"] / 3})

    monkeypatch.setattr(DecodeResponse, "_begin", without_times)
    assert prepare_video(str(video), settings(max_kept_bytes=150 * SMALL_BYTES)) == whole


def test_a_killed_decoder_does_not_repeat_or_lose_clips(video, whole, monkeypatch):
    receive, killed = DecodeResponse._receive, []

    def kill_once(self, header, num_bytes):
        if header["kind"] == "frames" and header["numbers"][0] > 500 and len(killed) < 2 and self.sink not in killed:
            killed.append(self.sink)
            os.kill(decoder_process.child_pid(), 9)
        return receive(self, header, num_bytes)

    monkeypatch.setattr(DecodeResponse, "_receive", kill_once)
    assert prepare_video(str(video), settings(max_kept_bytes=150 * SMALL_BYTES)) == whole
    assert len(killed) == 2, "one kill in each decode"


def test_a_single_clip_that_does_not_fit_is_too_large_and_names_its_flags(video):
    limits = DecodeLimits(max_kept_bytes=20 * SMALL_BYTES)
    long_clips = PrepareSettings(
        max_clip_seconds=1e6, shots=ShotSettings(cut_distance=2.0, gradual_distance=2.0), decode=limits
    )
    found, rows, _ = prepare_video(str(video), long_clips)
    assert (found.status, found.reason, rows) == ("failed", "too_large", [])
    assert "--prepare.decode.max-kept-bytes" in found.detail
    assert "--prepare.max-clip-seconds" in found.detail


def test_a_detector_of_another_package_says_that_it_needs_all_frames(video):
    pytest.importorskip("scenedetect")
    shots = ShotSettings(detector="scenedetect-content")
    found, *_ = prepare_video(str(video), dataclasses.replace(settings(max_kept_bytes=1 << 20), shots=shots))
    assert (found.status, found.reason) == ("failed", "too_large")
    assert "scenedetect-content" in found.detail


@pytest.mark.parametrize(
    ("limits", "flag"),
    [
        ({"max_video_seconds": 5.0}, "--prepare.decode.max-video-seconds"),
        ({"max_frames": 100}, "--prepare.decode.max-frames"),
        ({"max_pixels": 1000}, "--prepare.decode.max-pixels"),
        ({"max_kept_bytes": 1 << 20}, "--prepare.decode.max-kept-bytes"),
    ],
)
def test_a_refusal_names_the_flag_that_lets_the_video_in(video, limits, flag):
    found = scan(video, limits=DecodeLimits(**limits)).video
    assert (found.status, found.reason) == ("failed", "too_large")
    assert flag in found.detail


def test_frames_read_at_full_size_are_within_the_limit_too(video):
    with pytest.raises(VideoError, match="max-kept-bytes") as raised:
        read_frames(video, None, limits=DecodeLimits(max_kept_bytes=1 << 20))
    assert raised.value.reason == "too_large"
    assert len(read_frames(video, [0, 5], limits=DecodeLimits(max_kept_bytes=1 << 20))) == 2


@NEEDS_FFMPEG
def test_a_picture_as_wide_as_a_bomb_is_scanned_small(tmp_path):
    """16384x48 px compress to nothing; at a short side of 48 px each frame would be 2.4 MB."""
    for size, shape in (("16384x48", (30, 48, 384, 3)), ("48x8192", (30, 384, 48, 3))):
        path = tmp_path / f"{size}.mp4"
        command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", f"color=black:s={size}:r=30:d=1"]
        subprocess.run([*command, "-c:v", "libx264", "-preset", "ultrafast", str(path)], check=True)
        found = scan(path)
        assert found.video.status == "ok"
        assert found.small.pixels_THWC.shape == shape


PEAK_OF_PREPARING = """
import re, sys
from pathlib import Path
from jobs.prepare.clips import prepare_video
from jobs.recipe.stage_settings import PrepareSettings
from recaption.quality.scores import ScoreSettings
from recaption.video_io.process import child_pid

def peak_bytes(pid):  # ru_maxrss would be that of the process that started this one, where it is larger
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) * 1024

video, rows = prepare_video(sys.argv[1], PrepareSettings(scores=ScoreSettings(max_flow_pairs=1)))
print(video.status, video.num_frames, len(rows), peak_bytes("self"), peak_bytes(child_pid()))
"""


@NEEDS_FFMPEG
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("hours", "fps", "max_bytes"), [(1, 60, 500e6), (10, 30, 700e6)])
def test_hours_of_video_are_prepared_in_constant_memory(hours, fps, max_bytes, tmp_path):
    """Few optical flows, or scoring would take most of an hour; they do not change the memory."""
    path = tmp_path / "long.mp4"
    source = f"testsrc2=s=128x72:r={fps}:d={hours * 3600}"
    encoding = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "600", "-crf", "45"]
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, *encoding, str(path)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF_PREPARING, str(path)], capture_output=True, text=True, check=True
    )
    status, num_frames, num_clips, parent_bytes, child_bytes = done.stdout.split()
    print(f"{hours} h at {fps} fps: {num_clips} clips, parent at most {int(parent_bytes) / 1e6:.0f} MB, ", end="")
    print(f"decoder at most {int(child_bytes) / 1e6:.0f} MB")
    assert (status, int(num_frames)) == ("ok", hours * 3600 * fps)
    assert int(parent_bytes) < max_bytes
