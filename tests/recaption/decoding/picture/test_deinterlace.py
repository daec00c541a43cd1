"""Frames that are flagged interlaced are deinterlaced as by ffmpeg's yadif, whichever way they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from video_files import ffmpeg, ffmpeg_pixels, needs_ffmpeg, write_frames

from recaption.scenes.renderer import render
from recaption.video_io.reader import probe, read_clip, read_frames, scan

YADIF = "yadif=mode=send_frame:deint=interlaced"
X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
ENCODERS = {
    "mpeg2_tff.ts": ("tff", "-c:v", "mpeg2video", "-q:v", "4"),
    "mpeg2_bff.mpg": ("bff", "-c:v", "mpeg2video", "-q:v", "4"),
    "h264_tff.mp4": ("tff", *X264, "-x264opts", "tff=1"),
    "h264_bff.ts": ("bff", *X264, "-x264opts", "bff=1"),
    "h264_open_gop.mkv": ("tff", *X264, "-x264opts", "tff=1:open-gop=1"),
}


def make_interlaced(path: Path, name: str) -> Path:
    """30 frames of two fields each, a keyframe every 8, B-frames."""
    order, *encoder = ENCODERS[name]
    interleave = "interleave_top" if order == "tff" else "interleave_bottom"
    source = ["-f", "lavfi", "-i", "testsrc2=s=96x64:r=50:d=1.2", "-vf", f"tinterlace={interleave},setfield={order}"]
    ffmpeg("-v", "error", *source, "-flags", "+ilme+ildct", *encoder, "-g", "8", "-bf", "2", path)
    return path


@needs_ffmpeg
@pytest.mark.parametrize("name", ENCODERS)
def test_every_frame_equals_yadif_read_in_any_way(tmp_path: Path, name: str) -> None:
    path = make_interlaced(tmp_path / name, name)
    video = probe(path)
    assert (video.num_frames, video.is_interlaced) == (30, True)
    expected = ffmpeg_pixels(path, YADIF, 64, 96)
    woven = ffmpeg_pixels(path, "null", 64, 96)
    assert np.abs(expected.astype(int) - woven).max() > 50, "nothing to deinterlace: the test shows nothing"
    everything = read_frames(path, None).pixels_THWC
    assert np.array_equal(everything, expected)
    for index in (0, 1, 6, 7, 8, 9, 15, 16, 17, 28, 29):  # each from a seek of its own
        assert np.array_equal(read_frames(path, [index]).pixels_THWC[0], expected[index]), index
    for indices in ([0, 29], [7, 8, 9, 23], [28, 3, 16, 3]):
        assert np.array_equal(read_frames(path, indices).pixels_THWC, expected[indices])
    scanned = scan(path, small_px=64)
    assert scanned.video == video
    assert np.array_equal(scanned.small.pixels_THWC, expected)
    clip = read_clip(
        path, video.duration_seconds / 3, num_frames=3, fps=25, height_px=64, width_px=96, start_frame=9, end_frame=20
    )
    assert any(np.array_equal(clip[0], frame) for frame in expected[9:20])


@needs_ffmpeg
def test_only_flagged_frames_are_touched(tmp_path: Path) -> None:
    """A recording whose first second is progressive; joined by hand, as stations join programmes."""
    source = ["-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=1"]
    encoder = ["-c:v", "mpeg2video", "-q:v", "4", "-g", "8", "-bf", "2", "-f", "mpegts"]
    ffmpeg("-v", "error", *source, *encoder, tmp_path / "progressive.ts")
    interlaced = make_interlaced(tmp_path / "interlaced.ts", "mpeg2_tff.ts")
    path = tmp_path / "joined.ts"
    path.write_bytes((tmp_path / "progressive.ts").read_bytes() + interlaced.read_bytes())
    expected = ffmpeg_pixels(path, YADIF, 64, 96)
    assert probe(path).is_interlaced
    assert np.array_equal(read_frames(path, None).pixels_THWC, expected)
    assert np.array_equal(read_frames(path, [24, 25, 40]).pixels_THWC, expected[[24, 25, 40]])


@needs_ffmpeg
def test_the_field_order_of_the_container_alone_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "progressive.mov"
    source = ["-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=1"]
    ffmpeg("-v", "error", *source, "-c:v", "mpeg2video", "-q:v", "4", "-field_order", "tt", path)
    assert not probe(path).is_interlaced
    assert np.array_equal(read_frames(path, None).pixels_THWC, ffmpeg_pixels(path, "null", 64, 96))


@pytest.mark.parametrize("num_frames", [1, 2])
def test_a_video_of_one_or_two_interlaced_frames(tmp_path: Path, num_frames: int) -> None:
    frames = render(3, num_frames=num_frames, height_px=64, width_px=96, fps=8).frames_THWC
    path = write_frames(
        tmp_path / "short.mp4", frames, codec="libx264", pixel_format="yuv420p", options={"x264-params": "tff=1"}
    )
    assert probe(path).is_interlaced
    everything = read_frames(path, None).pixels_THWC
    assert len(everything) == num_frames
    for index in range(num_frames):
        assert np.array_equal(read_frames(path, [index]).pixels_THWC[0], everything[index])
