"""Buffers of used frames are blanked where nobody refers to them, and nowhere else."""

import shutil
import subprocess

import av
import numpy as np
import pytest

from recaption.decoding.damage.used_buffers import MAX_WAITING_FRAMES, UsedBuffers
from recaption.decoding.libav_log import undecoded_fraction


def grey_frame(height_px=64, width_px=96):
    return av.VideoFrame.from_ndarray(np.full((height_px * 3 // 2, width_px), 128, np.uint8), format="yuv420p")


def test_the_oldest_frame_is_blanked_once_enough_others_came():
    used_buffers, frames = UsedBuffers(), [grey_frame() for _ in range(MAX_WAITING_FRAMES + 2)]
    for frame in frames:
        used_buffers.blank(frame)
    assert [undecoded_fraction(frame) for frame in frames] == [1.0, 1.0] + [0.0] * MAX_WAITING_FRAMES


def test_fewer_large_frames_wait():
    used_buffers, frames = UsedBuffers(), [grey_frame(4320, 7680) for _ in range(5)]
    for frame in frames:
        used_buffers.blank(frame)
    assert [undecoded_fraction(frame) for frame in frames] == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_frame_that_somebody_refers_to_is_left_as_it_is():
    graph = av.filter.Graph()
    nodes = [graph.add_buffer(width=96, height=64, format="yuv420p", time_base="1/25"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    used_buffers, frame = UsedBuffers(), grey_frame()
    graph.push(frame)
    used_buffers.blank(frame)
    for _ in range(MAX_WAITING_FRAMES):
        used_buffers.blank(grey_frame())
    assert np.all(graph.pull().to_ndarray() == 128)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_what_is_decoded_does_not_change(codec, tmp_path):
    path = tmp_path / "video.mkv"
    source = "testsrc2=s=128x96:r=25:d=4"
    encoding = ["-c:v", codec, "-bf", "3", "-refs", "4", "-g", "50", "-pix_fmt", "yuv420p"]
    done = subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, *encoding, path], check=False)
    if done.returncode:
        pytest.skip(f"this ffmpeg has no {codec}")

    def decoded(blank):
        with av.open(path) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray()
                blank(frame)

    kept = list(decoded(lambda frame: None))
    assert len(kept) == 100
    for expected, found in zip(kept, decoded(UsedBuffers().blank), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
def test_rows_that_hevc_data_leave_out_are_found_in_used_buffers_too(tmp_path):
    """A later frame's slice is replaced by the one that ends after its first block: the rest is never decoded."""
    path = tmp_path / "video.mkv"
    source = "testsrc2=s=256x256:r=25:d=4"
    encoding = [
        "-c:v",
        "libx265",
        "-pix_fmt",
        "yuv420p",
        "-x265-params",
        "log-level=none:ctu=16:slices=4:bframes=0:keyint=200",
    ]
    done = subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, *encoding, path], check=False)
    if done.returncode:
        pytest.skip("this ffmpeg has no libx265")
    fractions = []
    for used_buffers in (None, UsedBuffers()):
        found = 0.0
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for number, packet in enumerate(container.demux(stream)):
                if number == 60:
                    packet = without_last_slice(packet)
                for frame in stream.codec_context.decode(packet):
                    found = max(found, undecoded_fraction(frame))
                    if used_buffers is not None:
                        used_buffers.blank(frame)
        fractions.append(found)
    assert fractions[0] == 0.0  # what an earlier frame had there
    assert 0.2 < fractions[1] < 0.35


def without_last_slice(packet):
    """The packet without its last unit; units have 4 bytes of length."""
    payload, start, starts = bytes(packet), 0, []
    while start < len(payload):
        starts.append(start)
        start += 4 + int.from_bytes(payload[start : start + 4], "big")
    assert len(starts) >= 4
    return av.Packet(payload[: starts[-1]])
