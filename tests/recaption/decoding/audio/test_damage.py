"""Random damage inside the audio packets of good videos: no video, no clip and no decoder is lost."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from recaption.video_io import process
from recaption.video_io.opened_video import open_video
from tests.recaption.decoding.audio.test_cut import packets_of
from tests.recaption.decoding.audio.test_levels import NoSink
from tests.stand_ins.sound_files import write_sounding_video

SECONDS = 6.0
SOURCES = {"aac.mp4": "aac", "mp3.mp4": "libmp3lame", "opus.mkv": "libopus", "ac3.mkv": "ac3", "flac.mkv": "flac"}
NUM_COPIES = 30


def damaged(content: bytes, packets: list[bytes], seed: int) -> bytes:
    """A copy with 1 to 40 damaged places, all inside audio packets: bits flipped, zeros, or noise."""
    rng, copy = random.Random(seed), bytearray(content)
    for _ in range(rng.choice((1, 5, 40))):
        packet = rng.choice(packets)
        start = rng.randrange(len(packet))
        length = min(rng.choice((1, 4, 200)), len(packet) - start)
        place = slice(content.index(packet) + start, content.index(packet) + start + length)
        flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in copy[place])
        copy[place] = rng.choice((flipped, bytes(length), rng.randbytes(length)))
    return bytes(copy)


def outcome(path) -> str:
    with open_video(path) as opened:
        video, seconds = opened.scan_into(NoSink())
        assert (video.status, video.num_frames) == ("ok", 150), video.detail
        first = float(seconds[0])
        audio = opened.read_audio(first + 1.1, first + 4.3)
    assert not any("crash" in line or "timeout" in line for line in (*audio.lost, video.audio_detail))
    assert audio.tracks or audio.lost
    return f"{'said' if video.audio_detail else 'not said'}, clip {'kept' if audio.tracks else 'lost'} its audio"


def run_all(folder, names, num_copies) -> None:
    for name in names:
        path = write_sounding_video(folder / name, [{"codec": SOURCES[name]}], seconds=SECONDS)
        content, packets = path.read_bytes(), [packet for packet in packets_of(path) if len(packet) > 16]
        found: Counter[str] = Counter()
        for seed in range(num_copies):
            path.write_bytes(damaged(content, packets, seed))
            found[outcome(path)] += 1
        print(name, dict(sorted(found.items())))


def test_damage_in_audio_packets_costs_no_video(tmp_path):
    assert outcome(write_sounding_video(tmp_path / "good.mp4", seconds=SECONDS)) == "not said, clip kept its audio"
    child = process.child_pid()
    run_all(tmp_path, ["aac.mp4"], 5)
    assert process.child_pid() == child


@pytest.mark.slow
def test_damage_in_audio_packets_costs_no_video_in_any_codec(tmp_path):
    run_all(tmp_path, SOURCES, NUM_COPIES)
