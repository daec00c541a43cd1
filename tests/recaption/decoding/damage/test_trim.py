"""What is kept of damaged files: a prefix, proven right, and the same for every reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench_mutations import mutate
from video_files import write_frames

from recaption.decoding.damage.matroska import is_cut_off
from recaption.errors import VideoError
from recaption.scenes.renderer import render
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.reader import probe, read_clip, read_frames, scan

TRIM = DecodeLimits(on_damage="trim")
NUM_FRAMES, HEIGHT, WIDTH = 72, 96, 128
FORMATS = {
    "h264.mp4": ("libx264", {}),
    "h264.mkv": ("libx264", {}),
    "h264.ts": ("libx264", {"crf": "8"}),
    "hevc.mkv": ("libx265", {"x265-params": "log-level=none:pools=none:keyint=12"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "vp8.webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8"}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2"}),
    "mpeg4.avi": ("mpeg4", {}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    frames = render(900, num_frames=NUM_FRAMES, height_px=HEIGHT, width_px=WIDTH, fps=25).frames_THWC
    return {
        name: write_frames(
            folder / name,
            frames,
            codec=codec,
            pixel_format="yuv420p",
            options=options,
            container_options={"movflags": "faststart"} if name.endswith(".mp4") else None,
        )
        for name, (codec, options) in FORMATS.items()
    }


@pytest.fixture(scope="module")
def pixels(whole: dict[str, Path]) -> dict[str, np.ndarray]:
    return {name: read_frames(path, None).pixels_THWC for name, path in whole.items()}


def assert_is_a_right_prefix(path: Path, undamaged_THWC: np.ndarray) -> int:
    """All readers agree on the frames that are kept, and they are those of the undamaged file; returns how many."""
    video = probe(path, limits=TRIM)
    assert (video.status, video.reason) == ("ok", None), video
    assert video.detail.startswith(f"trimmed: {video.num_frames} frames"), video.detail
    kept = read_frames(path, None, limits=TRIM).pixels_THWC
    assert len(kept) == video.num_frames
    assert np.array_equal(kept, undamaged_THWC[: len(kept)]), "a wrong frame"
    scanned = scan(path, small_px=HEIGHT, limits=TRIM)
    assert scanned.video == video
    assert np.array_equal(scanned.small.pixels_THWC, kept)
    indices = [len(kept) - 1, 0, len(kept) // 2]
    assert np.array_equal(read_frames(path, indices, limits=TRIM).pixels_THWC, kept[indices])
    with pytest.raises(VideoError) as raised:
        read_frames(path, [len(kept)], limits=TRIM)
    assert raised.value.reason == "frame_mismatch"
    return len(kept)


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts", "vp9.webm", "mpeg2.mpg"])
def test_a_file_that_ends_early_is_kept_up_to_its_end(whole, pixels, tmp_path: Path, name: str) -> None:
    payload = whole[name].read_bytes()
    path = tmp_path / name
    for percent in range(60, 70):  # a transport stream that ends between two frames is not damaged
        path.write_bytes(payload[: len(payload) * percent // 100])
        if probe(path).status == "failed":
            break
    assert probe(path).reason == "truncated"
    num_kept = assert_is_a_right_prefix(path, pixels[name])
    assert num_kept >= NUM_FRAMES // 4
    video = probe(path, limits=TRIM)
    assert video.truncated_seconds > 0
    if name in ("h264.mp4", "h264.mkv"):  # their tables know how long they were
        assert video.duration_seconds + video.truncated_seconds == pytest.approx(NUM_FRAMES / 25, abs=0.05)
    clip = read_clip(
        path, 0.2, num_frames=5, fps=25, height_px=48, width_px=64, start_frame=5, end_frame=num_kept, limits=TRIM
    )
    assert clip.shape == (5, 48, 64, 3)


@pytest.mark.parametrize(
    ("name", "num_zeros"), [("h264.mp4", 400), ("h264.mkv", 400), ("hevc.mkv", 400), ("vp9.webm", 1500)]
)
def test_a_hole_of_zeros_ends_a_file(whole, pixels, tmp_path: Path, name: str, num_zeros: int) -> None:
    payload = bytearray(whole[name].read_bytes())
    start = len(payload) // 2
    payload[start : start + num_zeros] = bytes(num_zeros)
    path = tmp_path / name
    path.write_bytes(payload)
    assert probe(path).reason == "truncated"
    assert NUM_FRAMES // 4 <= assert_is_a_right_prefix(path, pixels[name]) < NUM_FRAMES


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg4.avi"])
def test_flipped_bits_prove_nothing_about_what_is_before_them(whole, tmp_path: Path, name: str) -> None:
    payload = bytearray(whole[name].read_bytes())
    rng = np.random.default_rng(2)
    for position in rng.integers(len(payload) // 3, len(payload) * 2 // 3, 40):
        payload[position] ^= 0x55
    path = tmp_path / name
    path.write_bytes(payload)
    assert probe(path).status == "failed"
    assert probe(path, limits=TRIM) == probe(path)


def test_an_undamaged_file_is_whole(whole, pixels) -> None:
    for name, path in whole.items():
        assert probe(path, limits=TRIM) == probe(path), name
    read = read_frames(whole["h264.mkv"], [70, 3], limits=TRIM).pixels_THWC
    assert np.array_equal(read, pixels["h264.mkv"][[70, 3]])


def test_nothing_is_kept_where_no_frame_is_whole(whole, tmp_path: Path) -> None:
    payload = whole["h264.mp4"].read_bytes()
    start = payload.index(b"mdat")
    path = tmp_path / "start.mp4"
    path.write_bytes(payload[: start + 100])
    assert probe(path, limits=TRIM) == probe(path)
    assert probe(path).status == "failed"


@pytest.mark.parametrize("name", ["h264.mkv", "vp9.webm"])
def test_matroska_knows_whether_it_is_cut_off(whole, tmp_path: Path, name: str) -> None:
    payload = whole[name].read_bytes()
    for kept, expected in ((len(payload), False), (len(payload) - 1, True), (len(payload) // 3, True)):
        path = tmp_path / f"{kept}-{name}"
        path.write_bytes(payload[:kept])
        with open(path, "rb") as file:
            assert is_cut_off(file, kept) == expected
    open_end = bytearray(payload)  # as live recorders write it: the size of the segment is not known
    position = payload.index(bytes.fromhex("18538067")) + 4
    open_end[position : position + 8] = b"\x01" + b"\xff" * 7
    path = tmp_path / "open.mkv"
    path.write_bytes(open_end)
    with open(path, "rb") as file:
        assert is_cut_off(file, len(payload))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_random_damage_never_gives_a_wrong_frame(whole, pixels, tmp_path: Path, name: str) -> None:
    num_kept = 0
    for index in range(60):
        kind, payload = mutate(whole[name].read_bytes(), index, seed=11)
        path = tmp_path / f"{index}-{name}"
        path.write_bytes(payload)
        if probe(path).status == "failed" and probe(path, limits=TRIM).status == "ok":
            assert assert_is_a_right_prefix(path, pixels[name]) > 0, (index, kind)
            num_kept += 1
        path.unlink()
    assert num_kept >= 4
