"""Which stream is read, and how wide: as ffmpeg does it."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from video_files import ffmpeg, ffmpeg_pixels, needs_ffmpeg, write_frames

from recaption.decoding.picture.streams import square_pixel_width
from recaption.video_io.reader import probe, read_frames, scan

SMALL, LARGE, HUGE = (64, 36), (320, 180), (3000, 2000)


def write_two(path: Path, sizes: list[tuple[int, int]], defaults: list[bool], *, second_starts: int = 0) -> Path:
    """Two streams of two frames a second, the first one second longer than what the second is late."""
    sources = [f"testsrc2=s={width_px}x{height_px}:r=2:d=1" for width_px, height_px in sizes]
    inputs = ["-f", "lavfi", "-i", sources[0].replace("d=1", f"d={second_starts + 1}")]
    inputs += ["-itsoffset", str(second_starts), "-f", "lavfi", "-i", sources[1]]
    flags = [
        "-disposition:v:0",
        "default" if defaults[0] else "0",
        "-disposition:v:1",
        "default" if defaults[1] else "0",
    ]
    encoder = ["-c:v", "mpeg4", "-q:v", "9"]
    ffmpeg("-v", "error", *inputs, "-map", "0:v", "-map", "1:v", *encoder, *flags, path)
    return path


def choice_of_ffmpeg(path: Path) -> int:
    log = ffmpeg("-i", path, "-frames:v", "1", "-f", "null", "-").stderr.decode()
    choice = re.search(r"Stream #0:(\d+) -> #0:0", log)
    assert choice is not None
    return int(choice[1])


@needs_ffmpeg
@pytest.mark.parametrize(
    ("suffix", "sizes", "defaults"),
    [
        ("mkv", [SMALL, LARGE], [False, True]),
        ("mp4", [SMALL, LARGE], [False, True]),
        ("mkv", [SMALL, LARGE], [True, False]),
        ("ts", [SMALL, LARGE], [True, False]),  # MPEG-TS has no such flag
        ("mkv", [SMALL, LARGE], [False, False]),
        ("mkv", [SMALL, HUGE], [True, False]),  # larger than what the flag weighs
        ("mkv", [LARGE, LARGE], [False, False]),
    ],
)
def test_the_stream_is_the_one_that_ffmpeg_chooses(tmp_path: Path, suffix: str, sizes, defaults) -> None:
    path = write_two(tmp_path / f"two.{suffix}", sizes, defaults)
    width_px, height_px = sizes[choice_of_ffmpeg(path)]
    video = probe(path)
    assert (video.width_px, video.height_px, video.num_frames) == (width_px, height_px, 2)
    assert np.array_equal(read_frames(path, None).pixels_THWC, ffmpeg_pixels(path, "null", height_px, width_px))


@needs_ffmpeg
def test_a_larger_stream_that_starts_late_is_not_chosen(tmp_path: Path) -> None:
    path = write_two(tmp_path / "late.mkv", [SMALL, LARGE], [False, False], second_starts=20)
    assert choice_of_ffmpeg(path) == 0
    assert (probe(path).width_px, probe(path).height_px) == SMALL


# --- sample aspect ratio ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width_px", "aspect", "expected"),
    [
        (360, Fraction(64, 45), 512),
        (720, Fraction(16, 15), 768),
        (720, Fraction(8, 9), 640),
        (720, Fraction(32, 27), 853),  # 853.33
        (720, Fraction(10, 11), 654),  # 654.55, rounded down as the filter `scale` does
        (176, Fraction(128, 117), 192),
        (1440, Fraction(4, 3), 1920),
        (3, Fraction(1, 9), 1),
    ],
)
def test_the_width_with_square_pixels(width_px: int, aspect: Fraction, expected: int) -> None:
    assert square_pixel_width(width_px, aspect) == expected


def disc(height_px: int, width_px: int, aspect: float) -> np.ndarray:
    """A white disc that is round once a pixel is `aspect` times as wide as high."""
    rows, columns = np.mgrid[:height_px, :width_px]
    distance = np.hypot((columns - width_px / 2) * aspect, rows - height_px / 2)
    return np.where(distance < 0.4 * height_px, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=2)


@pytest.mark.parametrize(
    ("suffix", "aspect"), [("mp4", Fraction(64, 45)), ("mkv", Fraction(8, 9)), ("ts", Fraction(8, 9))]
)
def test_anamorphic_video_is_read_with_square_pixels(tmp_path: Path, suffix: str, aspect: Fraction) -> None:
    def set_aspect(context) -> None:
        context.sample_aspect_ratio = aspect

    frames = [disc(144, 180, float(aspect))] * 10
    path = write_frames(
        tmp_path / f"wide.{suffix}",
        frames,
        codec="libx264",
        pixel_format="yuv420p",
        options={"crf": "10"},
        setup=set_aspect,
    )
    video, scanned = probe(path), scan(path)
    assert video == scanned.video
    assert video.sample_aspect == f"{aspect.numerator}:{aspect.denominator}"
    assert (video.width_px, video.height_px) == (int(180 * aspect), 144)
    pixels_HWC = read_frames(path, [4]).pixels_THWC[0]
    assert pixels_HWC.shape == (144, int(180 * aspect), 3)
    rows, columns = np.nonzero(pixels_HWC[..., 0] > 128)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1, "the disc is not round"
    assert scanned.small.pixels_THWC.shape[1:3] == ((48, round(48 * int(180 * aspect) / 144)))


@needs_ffmpeg
def test_anamorphic_frames_equal_those_of_the_scale_filter(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    source = ["-f", "lavfi", "-i", "testsrc2=s=180x144:r=5:d=1", "-vf", "setsar=64/45"]
    ffmpeg("-v", "error", *source, "-c:v", "libx264", "-pix_fmt", "yuv420p", path)
    flags = "bicubic+accurate_rnd+bitexact+full_chroma_int"
    # chroma of H.264 is sited left; ffmpeg's filter assumes so only in later versions
    expected = ffmpeg_pixels(path, f"scale=iw*sar:ih:flags={flags}:in_h_chr_pos=0", 144, 256)
    assert np.array_equal(read_frames(path, None).pixels_THWC, expected)


@needs_ffmpeg
def test_the_container_overrules_the_codec(tmp_path: Path) -> None:
    inner, path = tmp_path / "inner.mp4", tmp_path / "outer.mkv"
    source = ["-f", "lavfi", "-i", "testsrc2=s=180x144:r=5:d=1", "-vf", "setsar=64/45"]
    ffmpeg("-v", "error", *source, "-c:v", "libx264", "-pix_fmt", "yuv420p", inner)
    ffmpeg("-v", "error", "-i", inner, "-c", "copy", "-aspect", "5:4", path)
    assert (probe(inner).width_px, probe(inner).sample_aspect) == (256, "64:45")
    assert (probe(path).width_px, probe(path).sample_aspect) == (180, "1:1")
