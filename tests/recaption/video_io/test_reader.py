"""Reading and writing videos: frame-exact, as displayed, or an error with a reason. Clips are made here; fixtures are used
where present."""

from __future__ import annotations

import collections
import io
import json
import multiprocessing
import os
import signal
import struct
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
from PIL import Image

from recaption.decoding import timestamps as timestamps
from recaption.errors import FAILURE_REASONS, UsageError, VideoError
from recaption.inputs.open_input import open_input
from recaption.records import Video
from recaption.video_io import process as decoder_process
from recaption.video_io import reader as video_io
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.writer import codecs_report, encode_video, write_video

FIXTURES = Path(os.environ.get("RECAPTION_FIXTURES", Path(__file__).parents[4] / "shared/fixtures"))
NUM_FRAMES, HEIGHT, WIDTH = 50, 48, 192
VARYING = np.cumsum([0] + [2, 1, 5, 1, 1, 3] * 9)[:NUM_FRAMES]
"""Times of a variable frame rate, in 1/30 s."""


def _numbered_frame(number: int) -> np.ndarray:
    """A frame that carries its number: bit b is a white or black square at x = 8 + 24 b, on grey."""
    pixels_HWC = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for bit in range(7):
        pixels_HWC[4:28, 8 + 24 * bit : 28 + 24 * bit] = 255 if number >> bit & 1 else 0
    return pixels_HWC


def _read_numbers(
    pixels_THWC: np.ndarray, *, left: int = 8, step: int = 24, top: int = 4, size: int = 20, bits: int = 7
):
    """Read the numbers back off the pixels."""
    inner = size // 4
    found = np.zeros(len(pixels_THWC), np.int64)
    for bit in range(bits):
        x = left + step * bit
        square = pixels_THWC[:, top + inner : top + size - inner, x + inner : x + size - inner]
        found += (square.mean(axis=(1, 2, 3)) > 128).astype(np.int64) << bit
    return found


def _write(
    path: Path, *, codec: str = "libx264", ticks: list[int] | None = None, rate: Fraction = Fraction(30), **options
):
    """Numbered frames through PyAV, with B-frames and a keyframe every 12."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, options.pop("pix_fmt", "yuv420p")
        context = stream.codec_context
        context.gop_size, context.thread_count, context.time_base = 12, 1, 1 / rate
        context.options = {k.replace("_", "-"): str(v) for k, v in options.items()}
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(_numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = number if ticks is None else ticks[number], 1 / rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def _remux(source: Path, target: Path, *, shift_frames: int = 0, **options: str) -> Path:
    """The same packets in another container, shown `shift_frames` (of 1/30 s) earlier."""
    with av.open(str(source)) as container, av.open(str(target), "w", options=options) as output:
        stream = container.streams.video[0]
        copy = output.add_stream_from_template(stream)
        shift = round(shift_frames / 30 / stream.time_base)
        for packet in container.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                output.mux(packet)
    return target


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """name -> file with `NUM_FRAMES` numbered frames (fewer shown where the name says so)."""
    folder = tmp_path_factory.mktemp("clips")
    varying = VARYING.tolist()
    mp4 = _write(folder / "h264.mp4", bf=2)
    return {
        "h264.mp4": mp4,
        "h264.mkv": _remux(mp4, folder / "h264.mkv"),
        "h264.ts": _remux(mp4, folder / "h264.ts"),
        "h264.flv": _remux(mp4, folder / "h264.flv"),
        "fragmented.mp4": _remux(mp4, folder / "fragmented.mp4", movflags="frag_keyframe+empty_moov"),
        "open_gop.mp4": _write(folder / "open_gop.mp4", bf=3, x264_params="open-gop=1"),
        "hevc.mp4": _write(folder / "hevc.mp4", codec="libx265", x265_params="log-level=none:keyint=12:pools=none"),
        "vfr.mp4": _write(folder / "vfr.mp4", ticks=varying),
        "vfr.mkv": _remux(folder / "vfr.mp4", folder / "vfr.mkv"),
        "ntsc.mp4": _write(folder / "ntsc.mp4", rate=Fraction(30000, 1001)),
        "ntsc.mkv": _remux(folder / "ntsc.mp4", folder / "ntsc.mkv"),
        "vp9.webm": _write(folder / "vp9.webm", codec="libvpx-vp9", deadline="realtime", cpu_used=8, auto_alt_ref=0),
        "vp8_hidden.webm": _write(folder / "vp8_hidden.webm", codec="libvpx", auto_alt_ref=1, lag_in_frames=10),
        "mpeg2.mpg": _write(folder / "mpeg2.mpg", codec="mpeg2video", bf=2, qscale=2, b=4_000_000),
        "mpeg4.avi": _write(folder / "mpeg4.avi", codec="mpeg4", b=4_000_000),
        "h264.avi": _write(folder / "h264.avi", bf=2),
        "hidden_20.mp4": _remux(mp4, folder / "hidden_20.mp4", shift_frames=20, avoid_negative_ts="disabled"),
    }


CLIP_NAMES = [
    *(
        "h264.mp4",
        "h264.mkv",
        "h264.ts",
        "h264.flv",
        "fragmented.mp4",
        "open_gop.mp4",
        "hevc.mp4",
        "vfr.mp4",
        "vfr.mkv",
    ),
    *("ntsc.mp4", "ntsc.mkv", "vp9.webm", "vp8_hidden.webm", "mpeg2.mpg", "mpeg4.avi", "h264.avi", "hidden_20.mp4"),
]


@pytest.mark.parametrize("name", CLIP_NAMES)
def test_index_i_is_the_ith_displayed_frame_in_any_order(clips: dict[str, Path], name: str) -> None:
    displayed = np.arange(20 if name.startswith("hidden_20") else 0, NUM_FRAMES)
    video = video_io.probe(clips[name])
    assert (video.status, video.num_frames, video.width_px, video.height_px) == ("ok", len(displayed), WIDTH, HEIGHT)
    everything = video_io.read_frames(clips[name], None)
    np.testing.assert_array_equal(_read_numbers(everything.pixels_THWC), displayed)
    assert np.all(np.diff(everything.pts_seconds) > 0)
    for indices in ([len(displayed) - 1], [3, 3, 29, 14, 0], [13, 14, 25]):
        some = video_io.read_frames(clips[name], indices)
        np.testing.assert_array_equal(some.pixels_THWC, everything.pixels_THWC[indices])
        np.testing.assert_array_equal(some.pts_seconds, everything.pts_seconds[indices])
        assert some.indices.tolist() == indices


def test_pts_seconds_are_the_timestamps_of_the_file(clips: dict[str, Path]) -> None:
    frames = video_io.read_frames(clips["vfr.mp4"], None, short_side_px=16)
    np.testing.assert_allclose(frames.pts_seconds, VARYING / 30, atol=1e-9)


@pytest.mark.parametrize("name", ["ntsc.mp4", "ntsc.mkv"])
def test_a_constant_rate_is_an_exact_fraction(clips: dict[str, Path], name: str) -> None:
    video = video_io.probe(clips[name])
    assert Fraction(video.fps_num, video.fps_den) == Fraction(30000, 1001)
    assert video.duration_seconds == pytest.approx(NUM_FRAMES * 1001 / 30000, abs=1e-9)


def _with_display_matrix(source: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The same MP4 with a, b, c, d of its track header's matrix replaced."""
    payload = bytearray(source.read_bytes())
    start = payload.index(b"tkhd") + 44
    a, b, c, d = matrix
    payload[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(payload)
    return target


ONE = 1 << 16


@pytest.mark.parametrize(
    ("matrix", "degrees", "turn"),
    [
        ((0, ONE, -ONE, 0), 90, lambda p: np.rot90(p, -1, axes=(1, 2))),
        ((-ONE, 0, 0, -ONE), 180, lambda p: np.rot90(p, 2, axes=(1, 2))),
        ((0, -ONE, ONE, 0), 270, lambda p: np.rot90(p, 1, axes=(1, 2))),
        ((-ONE, 0, 0, ONE), 0, lambda p: p[:, :, ::-1]),
        ((0, 0, 0, 0), 0, lambda p: p),
        ((46341, 46341, -46341, 46341), 0, lambda p: p),
    ],
)
def test_frames_come_as_displayed(clips, tmp_path: Path, matrix, degrees: int, turn) -> None:
    upright = video_io.read_frames(clips["h264.mp4"], [5, 30]).pixels_THWC
    turned_file = _with_display_matrix(clips["h264.mp4"], tmp_path / "turned.mp4", matrix)
    video, frames = video_io.probe(turned_file), video_io.read_frames(turned_file, [5, 30])
    np.testing.assert_array_equal(frames.pixels_THWC, turn(upright))
    assert video.rotation_degrees == degrees
    assert (video.height_px, video.width_px) == frames.pixels_THWC.shape[1:3]


def test_frames_equal_a_plain_sequential_decode(clips: dict[str, Path]) -> None:
    with av.open(str(clips["open_gop.mp4"])) as container:
        plain = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    np.testing.assert_array_equal(video_io.read_frames(clips["open_gop.mp4"], None).pixels_THWC, plain)


def test_short_side_sets_the_size_both_ways(clips: dict[str, Path]) -> None:
    assert video_io.read_frames(clips["h264.mp4"], [0], short_side_px=24).pixels_THWC.shape == (1, 24, 96, 3)
    assert video_io.read_frames(clips["h264.mp4"], [0], short_side_px=96).pixels_THWC.shape == (1, 96, 384, 3)


def test_scan_agrees_with_probe_and_holds_every_frame(clips: dict[str, Path]) -> None:
    found = video_io.scan(clips["h264.mkv"], small_px=24, detail_px=256, detail_every_seconds=0.5)
    assert found.video == video_io.probe(clips["h264.mkv"])
    assert found.small.pixels_THWC.shape == (NUM_FRAMES, 24, 96, 3)
    assert len(found.pts_seconds) == NUM_FRAMES
    assert found.detail.indices.tolist() == [0, 15, 30, 45]
    assert found.detail.pixels_THWC.shape == (4, HEIGHT, WIDTH, 3), "a scan never enlarges"
    np.testing.assert_array_equal(_read_numbers(found.detail.pixels_THWC), [0, 15, 30, 45])
    np.testing.assert_array_equal(found.detail.pts_seconds, found.pts_seconds[[0, 15, 30, 45]])


def test_clip_shows_what_is_on_screen_and_stays_inside_its_span(clips: dict[str, Path]) -> None:
    size = {"height_px": HEIGHT, "width_px": WIDTH}
    clip = video_io.read_clip(clips["h264.mp4"], 10 / 30, num_frames=9, fps=15, start_frame=10, end_frame=20, **size)
    assert _read_numbers(clip).tolist() == [10, 12, 14, 16, 18, 19, 19, 19, 19]
    doubled = video_io.read_clip(clips["h264.mkv"], 0, num_frames=6, fps=60, start_frame=0, end_frame=50, **size)
    assert _read_numbers(doubled).tolist() == [0, 0, 1, 1, 2, 2]
    same = video_io.read_clip(
        clips["ntsc.mkv"], 0, num_frames=50, fps=30000 / 1001, start_frame=0, end_frame=50, **size
    )
    assert _read_numbers(same).tolist() == list(range(50))


def test_clip_covers_the_size_and_crops_the_centre(clips: dict[str, Path]) -> None:
    clip = video_io.read_clip(
        clips["h264.mp4"], 0, num_frames=1, fps=8, start_frame=0, end_frame=9, height_px=48, width_px=64
    )
    whole = video_io.read_frames(clips["h264.mp4"], [0]).pixels_THWC
    np.testing.assert_array_equal(clip, whole[:, :, 64:128])


# --- errors ---------------------------------------------------------------------------------------------------------


def _audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def _damaged(kind: str, clips: dict[str, Path], path: Path) -> Path:
    mp4, mkv = clips["h264.mp4"].read_bytes(), clips["h264.mkv"].read_bytes()
    front = encode_video([_numbered_frame(n) for n in range(NUM_FRAMES)], fps=30)
    media = front.index(b"mdat") + 4
    middle = (media + len(front)) // 2
    payload = {
        "zero bytes": b"",
        "html": b"<html><body>404</body></html>",
        "random": np.random.default_rng(0).bytes(5000),
        "no index": mp4[: mp4.index(b"moov")],
        "cut mp4": front[: len(front) * 2 // 3],
        "cut mkv": mkv[: len(mkv) * 2 // 3],
        "hole": front[:middle] + bytes(400) + front[middle + 400 :],
        "playlist": f"#EXTM3U\n#EXTINF:1,\n{clips['h264.ts']}\n".encode(),
    }
    path.write_bytes(payload[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("zero bytes", "unreadable"),
        ("html", "unreadable"),
        ("random", "unreadable"),
        ("no index", "unreadable"),
        ("cut mp4", "truncated"),
        ("cut mkv", "truncated"),
        ("hole", "truncated"),
        ("playlist", "unreadable"),
    ],
)
def test_bad_files_fail_with_a_reason(clips: dict[str, Path], tmp_path: Path, kind: str, reason: str) -> None:
    path = _damaged(kind, clips, tmp_path / "bad.mp4")
    video = video_io.probe(path)
    assert (video.status, video.reason) == ("failed", reason), video.detail
    assert video.detail
    assert len(video.video_id) == 16
    found = video_io.scan(path)
    assert (found.video.reason, len(found.small), len(found.detail)) == (reason, 0, 0)
    with pytest.raises(VideoError) as raised:
        video_io.read_frames(path, None)
    assert raised.value.reason == reason
    assert str(path) in str(raised.value)


def test_an_unreadable_mp4_sample_is_damage_even_where_the_demuxer_reports_none(
    clips: dict[str, Path], tmp_path: Path
) -> None:
    payload = bytearray(clips["h264.mp4"].read_bytes())
    sizes = payload.index(b"stsz") + 16  # version and flags, common size (0), count; then one size per sample
    payload[sizes + 4 * 20 : sizes + 4 * 21] = bytes(4)
    path = tmp_path / "lost_sample.mp4"
    path.write_bytes(payload)
    video = video_io.probe(path)
    assert (video.status, video.reason) == ("failed", "truncated"), video.detail
    assert "samples can be read" in video.detail


def test_a_file_with_audio_only_has_no_video_stream(tmp_path: Path) -> None:
    assert video_io.probe(_audio_only(tmp_path / "sound.mp4")).reason == "no_video_stream"


def test_missing_files_and_folders_are_failed_videos(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "nothing.mp4"), str(tmp_path), "memory://nothing.mp4"):
        video = video_io.probe(uri)
        assert (video.status, video.reason, video.video_id) == ("failed", "unreadable", "")


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (DecodeLimits(max_pixels=WIDTH * HEIGHT - 1), "too_large"),
        (DecodeLimits(max_frames=NUM_FRAMES - 1), "too_large"),
        (DecodeLimits(max_video_seconds=1.0), "too_large"),
        (DecodeLimits(max_wall_seconds=0.0, seconds_per_video_second=0.0), "decode_timeout"),
        (DecodeLimits(max_memory_bytes=32 << 20), "decode_memory"),
    ],
)
def test_files_over_a_limit_fail(clips: dict[str, Path], limits: DecodeLimits, reason: str) -> None:
    assert video_io.probe(clips["h264.mp4"], limits=limits).reason == reason
    assert video_io.probe(clips["h264.mp4"]).status == "ok", "the next file is read as if nothing had happened"


def test_frames_snap_to_keyframes_that_are_near_enough_and_inside(clips: dict[str, Path]) -> None:
    path = clips["h264.mp4"]
    with av.open(str(path)) as container:
        keys = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert len(keys) >= 3
    indices = list(range(NUM_FRAMES))
    nearest = [min(keys, key=lambda key, number=number: (abs(key - number), key)) for number in indices]
    expected = [key if abs(key - number) <= 4 else number for number, key in zip(indices, nearest, strict=True)]
    near = video_io.read_frames(path, indices, snap_seconds=4.1 / 30)
    assert near.indices.tolist() == expected != indices
    assert np.array_equal(near.pixels_THWC, video_io.read_frames(path, expected).pixels_THWC)
    assert video_io.read_frames(path, [3], snap_seconds=1.0, snap_within=(1, keys[1])).indices.tolist() == [3]
    assert video_io.read_frames(path, indices).indices.tolist() == indices
    counted = video_io.read_frames(clips["mpeg4.avi"], indices, snap_seconds=1.0)
    assert counted.indices.tolist() == indices


def test_an_index_past_the_end_is_named_in_the_error(clips: dict[str, Path]) -> None:
    for number in (NUM_FRAMES, -1):
        with pytest.raises(VideoError, match=f"frame {number} was requested, the video has 50 frames"):
            video_io.read_frames(clips["h264.mp4"], [number])


def test_frames_before_damage_are_readable_and_frames_after_it_are_errors(
    clips: dict[str, Path], tmp_path: Path
) -> None:
    path = _damaged("hole", clips, tmp_path / "hole.mp4")
    assert _read_numbers(video_io.read_frames(path, [0, 5]).pixels_THWC).tolist() == [0, 5]
    with pytest.raises(VideoError, match="truncated"):
        video_io.read_frames(path, [NUM_FRAMES - 1])


# --- images and odd containers   ------------------------------------------------------------------------------------


def test_a_still_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(_numbered_frame(77)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", tmp_path / "a.mp4")
    video = video_io.probe(tmp_path / "a.mp4")
    assert (video.num_frames, video.status) == (1, "ok")
    assert _read_numbers(video_io.read_frames(tmp_path / "a.mp4", [0]).pixels_THWC).tolist() == [77]


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animated_images_are_videos(tmp_path: Path, suffix: str) -> None:
    pictures = [Image.fromarray(_numbered_frame(n)) for n in range(5)]
    path = tmp_path / f"moving.{suffix}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, lossless=True)
    video = video_io.probe(path)
    assert (video.num_frames, video.fps_num, video.fps_den, video.duration_seconds) == (5, 10, 1, 0.5)
    assert _read_numbers(video_io.read_frames(path, [4, 1]).pixels_THWC).tolist() == [4, 1]


def test_two_concatenated_recordings_get_increasing_timestamps(clips: dict[str, Path], tmp_path: Path) -> None:
    joined = tmp_path / "joined.ts"
    joined.write_bytes(clips["h264.ts"].read_bytes() * 2)
    frames = video_io.read_frames(joined, None)
    assert _read_numbers(frames.pixels_THWC).tolist() == list(range(NUM_FRAMES)) * 2
    assert np.all(np.diff(frames.pts_seconds) > 0)


def test_remote_files_are_downloaded_and_removed(clips: dict[str, Path]) -> None:
    with fsspec.open("memory://clips/a.mp4", "wb") as file:
        file.write(clips["h264.mp4"].read_bytes())
    remote, local = video_io.probe("memory://clips/a.mp4"), video_io.probe(clips["h264.mp4"])
    assert (remote.video_id, remote.num_frames) == (local.video_id, NUM_FRAMES)
    with open_input("memory://clips/a.mp4") as opened:
        assert (opened.state().video_id, opened.state().num_bytes) == (local.video_id, local.num_bytes)
        path = os.readlink(f"/proc/self/fd/{opened.file.fileno()}")
    assert path.endswith("(deleted)")


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "container"), [("libx264", "mp4"), ("libx265", "mp4"), ("libvpx-vp9", "webm")])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, codec: str, container: str) -> None:
    frames_THWC = np.stack([_numbered_frame(n) for n in range(9)])
    one = encode_video(frames_THWC, fps=8, codec=codec, container=container)
    target = tmp_path / "b"
    write_video(target, iter(frames_THWC), fps=8, codec=codec, container=container)
    assert one == target.read_bytes()
    frames = video_io.decode_bytes(one)
    assert _read_numbers(frames.pixels_THWC).tolist() == list(range(9))
    np.testing.assert_allclose(frames.pts_seconds, np.arange(9) / 8)
    assert os.listdir(tmp_path) == ["b"]


def test_mp4_starts_with_its_index() -> None:
    payload = encode_video([_numbered_frame(1)], fps=Fraction(30000, 1001))
    assert payload.index(b"moov") < payload.index(b"mdat")


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (30, 160, 220)])
def test_colours_survive_writing_and_reading(colour: tuple[int, int, int]) -> None:
    frames_THWC = np.broadcast_to(np.array(colour, np.uint8), (3, 32, 32, 3))
    back = video_io.decode_bytes(encode_video(frames_THWC, fps=8)).pixels_THWC
    assert np.abs(back.astype(int) - frames_THWC).max() <= 3


def test_invalid_frames_are_named_in_the_error() -> None:
    with pytest.raises(UsageError, match="63x48 cannot be yuv420p"):
        encode_video(np.zeros((2, 48, 63, 3), np.uint8), fps=8)
    with pytest.raises(UsageError, match="no frames"):
        encode_video([], fps=8)
    with pytest.raises(UsageError, match="frame 1 is float64"):
        encode_video([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3))], fps=8)
    with pytest.raises(UsageError, match="libx999"):
        encode_video([_numbered_frame(0)], fps=8, codec="libx999")


def test_writing_into_an_open_file() -> None:
    sink = io.BytesIO()
    write_video(sink, [_numbered_frame(3)], fps=8)
    assert _read_numbers(video_io.decode_bytes(sink.getvalue()).pixels_THWC).tolist() == [3]


# --- the child ------------------------------------------------------------------------------------------------------


def _probe_while_the_child_hangs(path: Path, limits: DecodeLimits, act) -> Video:
    """Probe with a child that is stopped; `act(pid)` meanwhile."""
    video_io.probe(path)
    pid = decoder_process.child_pid()
    assert pid is not None
    child = decoder_process._decoder().child
    assert child is not None
    before = child.num_exchanges
    os.kill(pid, signal.SIGSTOP)
    videos: list[Video] = []
    thread = threading.Thread(target=lambda: videos.append(video_io.probe(path, limits=limits)))
    thread.start()
    while child.num_exchanges == before:  # a child that died before its next file would just be replaced
        time.sleep(0.001)
    act(pid)
    thread.join(60)
    return videos[0]


def test_a_decoder_that_hangs_fails_its_file_and_no_other(clips: dict[str, Path]) -> None:
    limits = DecodeLimits(max_wall_seconds=0.3)
    assert _probe_while_the_child_hangs(clips["h264.mp4"], limits, lambda pid: None).reason == "decode_timeout"
    assert video_io.probe(clips["h264.mp4"]).status == "ok"


def test_a_decoder_that_crashes_fails_its_file_and_no_other(clips: dict[str, Path]) -> None:
    def crash(pid: int) -> None:
        os.kill(pid, signal.SIGSEGV)
        os.kill(pid, signal.SIGCONT)

    video = _probe_while_the_child_hangs(clips["h264.mp4"], DecodeLimits(), crash)
    assert (video.reason, video.detail) == ("unreadable", f"decoder crashed with signal {int(signal.SIGSEGV)}")
    assert video_io.probe(clips["h264.mp4"]).status == "ok"


def test_a_child_that_died_between_two_files_is_replaced(clips: dict[str, Path]) -> None:
    video_io.probe(clips["h264.mp4"])
    before = decoder_process.child_pid()
    assert before is not None
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    assert video_io.probe(clips["h264.mp4"]).status == "ok"
    assert decoder_process.child_pid() != before


def test_threads_share_one_child(clips: dict[str, Path]) -> None:
    wrong: list[object] = []

    def read(number: int) -> None:
        found = _read_numbers(video_io.read_frames(clips["h264.mp4"], [number]).pixels_THWC)
        if found.tolist() != [number]:
            wrong.append(found)

    threads = [threading.Thread(target=read, args=(n,)) for n in (1, 20, 33, 49)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_a_forked_process_starts_its_own_child(clips: dict[str, Path]) -> None:
    video_io.probe(clips["h264.mp4"])
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def read() -> None:
        number = int(_read_numbers(video_io.read_frames(clips["h264.mp4"], [41]).pixels_THWC)[0])
        sending.send((number, decoder_process.child_pid()))
        decoder_process.close()

    process = context.Process(target=read)
    process.start()
    assert receiving.poll(60)
    number, pid = receiving.recv()
    process.join(60)
    assert number == 41
    assert pid != decoder_process.child_pid()
    assert video_io.probe(clips["h264.mp4"]).status == "ok"


def test_the_child_is_gone_after_close(clips: dict[str, Path]) -> None:
    video_io.probe(clips["h264.mp4"])
    pid = decoder_process.child_pid()
    decoder_process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_codecs_report_lists_the_required_codecs() -> None:
    report = codecs_report()
    assert all(report["decodes"][name] for name in ("h264", "hevc", "vp9", "av1", "vp8", "mpeg2video", "mpeg4"))
    assert report["encodes"]["libx264"]
    json.dumps(report)


# --- fixtures outside the repository, where present -----------------------------------------------------------------

needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"{FIXTURES} is not here")


def _upright(path: Path, pixels_THWC: np.ndarray) -> np.ndarray:
    return np.rot90(pixels_THWC, -1, axes=(1, 2)) if "rot90" in path.name else pixels_THWC


def _assert_numbered_file_is_exact(path: Path) -> None:
    shown = np.array(json.loads(path.with_name(path.name + ".json").read_text()))
    layout = {"left": 8, "step": 50, "top": 4, "size": 40, "bits": 12}
    everything = video_io.read_frames(path, None)
    np.testing.assert_array_equal(_read_numbers(_upright(path, everything.pixels_THWC), **layout), shown)
    indices = np.random.default_rng(0).integers(0, len(shown), 24)
    for numbers in (indices, indices[:1], indices[1:2]):
        some = video_io.read_frames(path, numbers)
        np.testing.assert_array_equal(some.pixels_THWC, everything.pixels_THWC[numbers])


@needs_fixtures
@pytest.mark.parametrize("name", ["h264.ts", "h264_editlist_cut.mp4", "h264_rot90.mp4", "vfr.mkv"])
def test_numbered_fixtures_are_exact(name: str) -> None:
    _assert_numbered_file_is_exact(FIXTURES / "numbered" / name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_fixtures
def test_all_numbered_fixtures_are_exact() -> None:
    files = sorted(p.with_suffix("") for p in (FIXTURES / "numbered").glob("*.json"))
    assert len(files) >= 20
    for path in files:
        _assert_numbered_file_is_exact(path)


FRAMES_LISTED_FOR_A_PREFIX = {"long_180p_av1.mp4", "tears-of-steel-battle-clip-medium.webm"}
"""The manifest counts only their first 40 seconds."""


def _manifest() -> dict[str, tuple[str, str]]:
    """File -> (frames decoded, flags) where the manifest says."""
    rows = [line.split("|") for line in (FIXTURES / "MANIFEST.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    return {row[1]: (row[6], row[7]) for row in cells if len(row) > 8 and row[6].isdigit()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_fixtures
def test_every_fixture_is_read_correctly_or_fails_with_a_reason() -> None:
    manifest = _manifest()
    reasons: collections.Counter[str] = collections.Counter()
    wrong = []
    for folder in ("real", "odd", "damaged", "numbered"):
        for path in sorted(p for p in (FIXTURES / folder).rglob("*") if p.is_file() and p.suffix != ".json"):
            name = str(path.relative_to(FIXTURES))
            found = video_io.scan(path)
            assert found.video == video_io.probe(path)
            reasons[found.video.reason or "ok"] += 1
            frames_listed, flags = manifest.get(name, ("", ""))
            if found.video.status == "failed":
                assert found.video.reason in FAILURE_REASONS
                if frames_listed.isdigit() and int(frames_listed) and "errors" not in flags:
                    wrong.append((name, found.video.reason, frames_listed))
                continue
            assert len(found.small) == len(found.pts_seconds) == found.video.num_frames
            assert np.all(np.diff(found.pts_seconds) > 0)
            indices = np.random.default_rng(0).integers(0, found.video.num_frames, 4)
            short = min(found.small.pixels_THWC.shape[1:3])
            some = video_io.read_frames(path, indices, short_side_px=short)
            np.testing.assert_array_equal(some.pixels_THWC, found.small.pixels_THWC[indices], err_msg=name)
            is_prefix = path.name in FRAMES_LISTED_FOR_A_PREFIX
            if frames_listed.isdigit() and found.video.num_frames != int(frames_listed) and not is_prefix:
                wrong.append((name, found.video.num_frames, frames_listed))
    # a 144-megapixel still is refused; VVC decodes now where the manifest's FFmpeg 5.1 could not
    assert [w[0] for w in wrong] == ["odd/androidx/black_large.webp", "odd/androidx/sample_vvc.mp4"], wrong
    assert reasons["ok"] > 180
    assert set(reasons) == {"ok", "unreadable", "truncated", "no_video_stream", "zero_frames", "too_large"}


def test_small_frames_encode_to_the_same_bytes_whatever_was_in_memory_before():
    from recaption.scenes.renderer import SIMPLE, render

    rng = np.random.default_rng(0)
    frames = render(5005, num_frames=17, height_px=80, width_px=48, fps=8, **SIMPLE).frames_THWC
    payloads = set()
    for _ in range(12):
        litter = [rng.integers(0, 255, rng.integers(1000, 60000), dtype=np.uint8) for _ in range(30)]
        payloads.add(encode_video(frames, fps=8))
        del litter
    assert len(payloads) == 1
