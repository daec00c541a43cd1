"""Damaged files give a failure reason or correct frames: never a hang, a crash or wrong frames. The large sweep over
real footage, compared with the `ffmpeg` program, is tests/benchmarks/recaption/bench_mutations.py."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from bench_mutations import MUTATIONS, mutate

from recaption.errors import FAILURE_REASONS
from recaption.scenes.renderer import render
from recaption.video_io.reader import read_frames, scan
from recaption.video_io.writer import write_video

NUM_MUTATIONS = 20
SIDE_PX = 64


def write_vp8(path: Path, frames_THWC: np.ndarray) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libvpx", rate=Fraction(8))
        stream.height, stream.width, stream.pix_fmt = *frames_THWC.shape[1:3], "yuv420p"
        stream.codec_context.options = {"deadline": "realtime", "cpu-used": "8"}
        stream.codec_context.gop_size = 12
        for pixels_HWC in frames_THWC:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")))
        output.mux(stream.encode(None))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    frames_THWC = render(900, num_frames=33, height_px=SIDE_PX, width_px=SIDE_PX, fps=8).frames_THWC
    write_video(folder / "h264.mp4", frames_THWC, fps=8)
    write_video(folder / "hevc.mp4", frames_THWC, fps=8, codec="libx265")
    write_video(folder / "vp9.webm", frames_THWC, fps=8, codec="libvpx-vp9", container="webm", crf=30)
    write_vp8(folder / "vp8.webm", frames_THWC)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4", "vp9.webm", "vp8.webm"])
def test_a_mutated_file_fails_or_reads_the_same_in_any_order(sources, name, tmp_path):
    whole = tmp_path / name
    whole.write_bytes(sources[name])
    num_frames = scan(whole).video.num_frames
    assert num_frames == 33
    num_failed = 0
    for index in range(NUM_MUTATIONS):
        kind, payload = mutate(sources[name], index, seed=7)
        path = tmp_path / f"{index}-{name}"
        path.write_bytes(payload)
        scanned = scan(path)
        if scanned.video.status != "ok":
            assert scanned.video.reason in FAILURE_REASONS, kind
            assert scanned.video.detail, kind
            num_failed += 1
            continue
        indices = np.random.default_rng(index).permutation(len(scanned.small))[:8]
        again = read_frames(path, indices, short_side_px=min(scanned.small.pixels_THWC.shape[1:3]))
        assert np.array_equal(again.pixels_THWC, scanned.small.pixels_THWC[indices]), (index, kind)
    assert num_failed >= NUM_MUTATIONS // 3, "the mutations damage too few files"


def test_mutations_are_deterministic(sources):
    for index in range(len(MUTATIONS)):
        first, second = (mutate(sources["h264.mp4"], index, seed=1) for _ in range(2))
        assert first == second
        assert first[1] != sources["h264.mp4"]
