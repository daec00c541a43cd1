"""Transparent pixels are laid on white; what their hidden colours are does not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import ffmpeg_pixels, needs_ffmpeg, write_frames

from recaption.decoding.picture.alpha import on_background
from recaption.video_io.reader import probe, read_frames, scan

HEIGHT, WIDTH = 48, 64
ON_WHITE = "format=rgba,split[a][b];[a]lutrgb=r=255:g=255:b=255:a=255[c];[c][b]overlay=format=gbrp"


def sprites(num_frames: int = 6) -> list[np.ndarray]:
    """RGBA: a red square that moves; noise is hidden under alpha 0; one row is half transparent."""
    rng = np.random.default_rng(4)
    frames = []
    for number in range(num_frames):
        frame = rng.integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
        frame[..., 3] = 0
        frame[10:34, 8 + number : 32 + number] = (230, 30, 30, 255)
        frame[40] = (0, 0, 200, 128)
        frames.append(frame)
    return frames


def laid_on_white(frame: np.ndarray) -> np.ndarray:
    alpha = frame[..., 3:] / 255
    return frame[..., :3] * alpha + 255 * (1 - alpha)


def write(path: Path, frames: list[np.ndarray], name: str) -> Path:
    if name == "webp":
        first, *others = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=others, duration=100, lossless=True, exact=True)
        return path
    codec, pixel_format, options = {
        "apng": ("apng", "rgba", {}),
        "mov": ("png", "rgba", {}),
        "mkv": ("ffv1", "bgra", {}),
        "webm": ("libvpx-vp9", "yuva420p", {"lossless": "1", "deadline": "realtime", "cpu-used": "8"}),
    }[name]
    return write_frames(
        path, frames, codec=codec, pixel_format=pixel_format, source_format="rgba", options=options, gop_size=3
    )


@pytest.mark.parametrize(("name", "tolerance"), [("apng", 1), ("mov", 1), ("mkv", 1), ("webp", 1), ("webm", 12)])
def test_transparent_video_is_read_on_white(tmp_path: Path, name: str, tolerance: int) -> None:
    frames = sprites()
    path = write(tmp_path / f"sprites.{name}", frames, name)
    video = probe(path)
    assert (video.status, video.num_frames, video.has_alpha) == ("ok", len(frames), True), video
    everything = read_frames(path, None).pixels_THWC
    for pixels_HWC, frame in zip(everything, frames, strict=True):
        inner = np.zeros((HEIGHT, WIDTH), bool)
        inner[2:8], inner[14:30, 16:28] = True, True  # away from edges, where 4:2:0 mixes colours
        assert np.abs(pixels_HWC[inner] - laid_on_white(frame)[inner]).max() <= tolerance
    assert everything[:, 2:8].std() == 0, "hidden colours show"
    for index in (5, 2):
        assert np.array_equal(read_frames(path, [index]).pixels_THWC[0], everything[index])
    scanned = scan(path, small_px=HEIGHT)
    assert scanned.video == video
    assert np.array_equal(scanned.small.pixels_THWC, everything)


def test_hidden_colours_do_not_bleed_into_edges_when_scaled(tmp_path: Path) -> None:
    frames = sprites(2)
    other = [frame.copy() for frame in frames]
    for frame in other:
        frame[frame[..., 3] == 0] = 0  # black under alpha 0
    path, twin = write(tmp_path / "a.mkv", frames, "mkv"), write(tmp_path / "b.mkv", other, "mkv")
    for size in (24, 96):
        scaled = read_frames(path, None, short_side_px=size).pixels_THWC
        assert np.array_equal(scaled, read_frames(twin, None, short_side_px=size).pixels_THWC)


@needs_ffmpeg
@pytest.mark.parametrize("name", ["apng", "mkv"])
def test_the_picture_equals_that_of_the_overlay_filter(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / f"sprites.{name}", sprites(), name)
    theirs = ffmpeg_pixels(path, ON_WHITE, HEIGHT, WIDTH)
    assert np.abs(read_frames(path, None).pixels_THWC.astype(int) - theirs).max() <= 1


def test_an_alpha_channel_without_transparency_is_none(tmp_path: Path) -> None:
    frames = sprites()
    for frame in frames:
        frame[..., 3] = 255
    path = write(tmp_path / "opaque.mkv", frames, "mkv")
    assert not probe(path).has_alpha
    assert np.array_equal(read_frames(path, None).pixels_THWC, np.stack(frames)[..., :3])


def test_colours_mix_by_alpha() -> None:
    pixels_HWC = np.array([[[0, 100, 255]] * 3], np.uint8)
    mixed = on_background(pixels_HWC, np.array([[0, 128, 255]], np.uint8))
    assert mixed.tolist() == [[[255, 255, 255], [127, 177, 255], [0, 100, 255]]]
