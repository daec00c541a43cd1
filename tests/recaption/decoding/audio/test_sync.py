"""Sound of clips cut at odd places: in sync with the source to one audio frame, whatever codec and container it is in."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from recaption.video_io.opened_video import open_video
from recaption.video_io.writer import encode_video
from tests.stand_ins.sound_files import chirp_time, decoded_sound, write_sounding_video

SECONDS = 6.0
SKIPPED_SECONDS = 0.25
"""Of a clip, before its sound is compared: a wrong start of a few packets would show, a soft one does not."""
SOURCES = {
    "aac.mp4": ({"codec": "aac"}, "aac"),
    "aac-44.mkv": ({"codec": "aac", "rate_hz": 44_100}, "aac"),
    "aac.ts": ({"codec": "aac"}, "aac"),
    "aac-51.mp4": ({"codec": "aac", "layout": "5.1"}, "aac"),
    "mp3.mp4": ({"codec": "libmp3lame", "rate_hz": 44_100}, "mp3"),
    "mp3-16.mkv": ({"codec": "libmp3lame", "rate_hz": 16_000, "layout": "mono"}, "mp3"),
    "opus.mkv": ({"codec": "libopus"}, "opus"),
    "pcm.mov": ({"codec": "pcm_s16le"}, "aac from pcm_s16le"),
    "pcm-96.mov": ({"codec": "pcm_s24le", "rate_hz": 96_000}, "aac from pcm_s24le"),
    "ac3.mkv": ({"codec": "ac3"}, "aac from ac3"),
}
SPANS = ((0.0, 2.0), (1.2345, 4.1))
"""Seconds from the first frame."""
MAX_ERROR_SECONDS = 0.002
"""Far below one audio frame (21 ms of AAC at 48 kHz): what Matroska rounds its times to, and half of that again."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    return {name: write_sounding_video(folder / name, [track], seconds=SECONDS) for name, (track, _) in SOURCES.items()}


def cut_to_mp4(path, start, end, fps=8):
    """(mp4 of a clip as a shard has it, its audio) of a span in seconds from the first frame."""
    with open_video(path) as opened:
        first = float(opened.frame_seconds(0, 1)[0])
        num_frames = int((end - start) * fps)
        frames = opened.read_clip(
            first + start, num_frames=num_frames, fps=fps, height_px=48, width_px=64, start_frame=0, end_frame=150
        )
        audio = opened.read_audio(first + start, first + start + num_frames / fps)
    return encode_video(frames, fps=fps, audio=audio.tracks), audio


@pytest.mark.parametrize("span", SPANS, ids=str)
@pytest.mark.parametrize("name", SOURCES)
def test_sound_of_a_clip_is_that_of_its_time_in_the_source(sources, name, span):
    mp4, audio = cut_to_mp4(sources[name], *span)
    assert (audio.description, audio.lost) == (SOURCES[name][1], ())
    start_seconds, samples_CN, rate_hz = decoded_sound(mp4)
    skipped = round(SKIPPED_SECONDS * rate_hz)
    time = chirp_time(samples_CN[0, skipped:], rate_hz, SECONDS) - SKIPPED_SECONDS
    assert abs(time - start_seconds - span[0]) <= MAX_ERROR_SECONDS
    assert abs(start_seconds) <= MAX_ERROR_SECONDS


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")
@pytest.mark.parametrize("name", ["aac.mp4", "mp3.mp4", "opus.mkv", "pcm.mov"])
def test_other_readers_hear_the_same(sources, name, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(cut_to_mp4(sources[name], 1.2345, 4.1)[0])
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        str(tmp_path / "clip.mp4"),
        "-f",
        "f32le",
        "-ac",
        "1",
        "-ar",
        "48000",
        "-",
    ]
    done = subprocess.run(command, capture_output=True, check=True)
    samples_N = np.frombuffer(done.stdout, np.float32)
    assert done.stderr == b""
    assert abs(chirp_time(samples_N[12_000:], 48_000, SECONDS) - 0.25 - 1.2345) <= MAX_ERROR_SECONDS


@pytest.mark.parametrize("name", ["aac.ts", "mp3.mp4", "opus.mkv", "pcm-96.mov"])
def test_the_same_clip_gives_the_same_bytes(sources, name):
    assert cut_to_mp4(sources[name], 1.2345, 4.1)[0] == cut_to_mp4(sources[name], 1.2345, 4.1)[0]


def test_channels_stay_in_their_places(sources):
    _, samples_CN, _ = decoded_sound(cut_to_mp4(sources["aac-51.mp4"], 1.0, 3.0)[0])
    levels = np.sqrt(np.square(samples_CN[:, 12_000:60_000]).mean(axis=1))
    assert np.allclose(levels / levels[0], [1.0, 0.9, 0.8, levels[3] / levels[0], 0.6, 0.5], atol=0.03)
    assert levels[3] < 0.1 * levels[0]  # low frequencies only
