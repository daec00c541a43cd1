"""The one door to video files: frames out of them, clips into them.

    video = probe("s3://bucket/a.mp4")            # a row for records.Video, failures too; never raises for a bad video
    frames = read_frames("a.mp4", [0, 10, 20], short_side_px=224)
    frames.pixels_THWC, frames.pts_seconds        # uint8 RGB as displayed, presentation times
    payload = encode_video(frames.pixels_THWC, fps=8)

Index i is the i-th frame that a sequential decode shows: hidden pre-roll of edit lists does not count, variable frame
rates and rotation are honoured, what headers claim is not believed; of several video streams the first counts. Decoding
runs in a child process with limits on time and memory (decoder_process.py, decode_worker.py); every refusal is a
`VideoError` with a reason of the closed list.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from recaption.decoded_frames import Answer, DecodeLimits, Frames
from recaption.errors import UsageError, VideoError
from recaption.local_files import file_id, local_copy
from recaption.records import Video

__all__ = [
    "DecodeLimits",
    "Frames",
    "Scan",
    "codecs_report",
    "decode_bytes",
    "encode_video",
    "file_id",
    "local_copy",
    "probe",
    "read_clip",
    "read_frames",
    "scan",
    "write_video",
]

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg2video", "mpeg4", "prores", "mjpeg", "theora", "gif", "webp", "vvc")
"""What `codecs_report` asks about: everything common in the wild."""

ENCODERS = {
    # macroblock-tree rate control reads uninitialised memory in small pictures: up to 5 different files in 14 tries
    "libx264": {"x264-params": "mbtree=0"},
    "libx265": {"x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx-vp9": {"b": "0", "deadline": "realtime", "cpu-used": "5"},
}
"""What `write_video` offers, with the options that keep each to one thread, silent and repeatable."""

BT709 = {"color_primaries": 1, "color_trc": 1, "colorspace": 1, "color_range": 1}
"""Tags of what `write_video` writes (ITU-T H.273: 1 = BT.709; range 1 = limited): players show the colours put in."""


@dataclass(frozen=True)
class Scan:
    """All that `prepare` needs of one video, from one decode."""

    video: Video
    """Final: `num_frames` is what decodes. Where `video.status` is "failed", the frames below are none."""
    pts_seconds: np.ndarray
    """(N,) float64, every frame."""
    small: Frames
    """Every frame, short side `small_px`."""
    detail: Frames
    """One frame per `detail_every_seconds`, short side `detail_px`."""


def _described(uri: str, path: str, answer: Answer | None, refusal: VideoError | None) -> Video:
    video_id, num_bytes = file_id(path)
    known = answer.header["video"] if answer is not None else {}
    if answer is not None and answer.header["kind"] == "error":
        refusal = VideoError(answer.header["reason"], answer.header["detail"])
    if refusal is None:
        return Video(video_id=video_id, uri=uri, num_bytes=num_bytes, **known)
    failed: dict[str, Any] = {"status": "failed", "reason": refusal.reason, "detail": refusal.detail}
    return Video(video_id=video_id, uri=uri, num_bytes=num_bytes, **known, **failed)


def _whole(uri: str, limits: DecodeLimits, request: dict[str, Any]) -> tuple[Video, Answer | None]:
    """Decode everything; (what became of it, the answer where there was one)."""
    answer, refusal = None, None
    try:
        with local_copy(uri) as path:
            try:
                answer = Answer(path, b"", limits, request)
            except VideoError as error:
                refusal = error
            try:
                return _described(uri, path, answer, refusal), answer
            except OSError as error:
                raise VideoError("unreadable", str(error)) from None
    except VideoError as error:
        return Video(video_id="", uri=uri, status="failed", reason=error.reason, detail=error.detail), None


def probe(uri: str | os.PathLike[str], *, limits: DecodeLimits | None = None) -> Video:
    """Size, exact frame rate and the number of frames that really decode: decodes everything, keeps no pixels.

    A bad video is a row with `status="failed"`, a reason and a detail; nothing is raised for it.
    """
    video, _ = _whole(os.fspath(uri), limits or DecodeLimits(), {"op": "probe"})
    return video


def scan(
    uri: str | os.PathLike[str],
    *,
    small_px: int = 48,
    detail_px: int = 256,
    detail_every_seconds: float = 0.5,
    limits: DecodeLimits | None = None,
) -> Scan:
    """`probe` and the frames that shots and scores look at, in one decode.

    Args:
        small_px: short side of `small`, every frame. A smaller video is not enlarged.
        detail_px: short side of `detail`, the first frame of every `detail_every_seconds`.

    A bad video is not raised but returned: `scan(uri).video.status == "failed"`, with a reason and without frames.
    """
    request = {"op": "scan", "small_px": small_px, "detail_px": detail_px, "detail_every_seconds": detail_every_seconds}
    video, answer = _whole(os.fspath(uri), limits or DecodeLimits(), request)
    if video.status != "ok" or answer is None:
        none = Frames(np.zeros((0, 0, 0, 3), np.uint8), np.zeros(0), np.zeros(0, np.int64))
        return Scan(video, np.zeros(0), none, none)
    pts_seconds = answer.pts_seconds
    small = Frames(answer.rooms["small"].filled(), pts_seconds, np.arange(len(pts_seconds)))
    numbers = np.array(answer.header["detail"], np.int64)
    return Scan(video, pts_seconds, small, Frames(answer.rooms["detail"].filled(), pts_seconds[numbers], numbers))


def read_frames(
    uri: str | os.PathLike[str],
    indices: Sequence[int] | np.ndarray | None,
    *,
    short_side_px: int | None = None,
    snap_seconds: float = 0.0,
    snap_within: tuple[int, int] = (0, 1 << 62),
    limits: DecodeLimits | None = None,
) -> Frames:
    """Frames by number, in any order, repeats allowed; all of them for `indices=None`.

    Args:
        short_side_px: scale so that the shorter side has exactly this size (None = as stored, rotation applied).
        snap_seconds: a frame with a keyframe this close, and in `snap_within` (half-open), may be that one instead: it
            decodes alone, where others need all frames since their keyframe. `Frames.indices` says what came.

    Raises:
        VideoError: the file is refused, or (frame_mismatch) it does not have a frame of that number.
    """
    numbers = None if indices is None else [int(i) for i in indices]
    if numbers == []:
        raise UsageError("read_frames: indices is empty; pass None for all frames")
    with local_copy(uri) as path:
        request = _read_request(numbers, short_side_px, snap_seconds, snap_within)
        return _read(os.fspath(uri), path, b"", limits or DecodeLimits(), request)


def decode_bytes(payload: bytes, *, limits: DecodeLimits | None = None) -> Frames:
    """All frames of an encoded video held in memory, such as an .mp4 member of a shard.

    Raises:
        VideoError: as `read_frames`.
    """
    return _read("<bytes>", None, payload, limits or DecodeLimits(), _read_request(None, None))


def _read_request(
    indices: list[int] | None,
    short_side_px: int | None,
    snap_seconds: float = 0.0,
    snap_within: tuple[int, int] = (0, 1 << 62),
) -> dict[str, Any]:
    snap = {"snap_seconds": snap_seconds, "snap_within": snap_within}
    return {"op": "read", "indices": indices, "short_side_px": short_side_px, **snap}


def _read(uri: str, path: str | None, payload: bytes, limits: DecodeLimits, request: dict[str, Any]) -> Frames:
    try:
        answer = Answer(path, payload, limits, request)
    except VideoError as error:
        raise VideoError(error.reason, error.detail, uri=uri) from None
    answer.raise_refusal(uri)
    return answer.frames(np.array(answer.header["indices"], np.int64))


def read_clip(
    uri: str | os.PathLike[str],
    start_seconds: float,
    *,
    num_frames: int,
    fps: float,
    height_px: int,
    width_px: int,
    start_frame: int,
    end_frame: int,
    limits: DecodeLimits | None = None,
) -> np.ndarray:
    """A span at a steady rate and a given size: (num_frames, height_px, width_px, 3) uint8 RGB.

    Frame k is what is on screen at `start_seconds + k / fps` (with 0.4 source frames of tolerance), never from outside
    `[start_frame, end_frame)`. Pictures are scaled to cover the size, then the centre is cropped.

    Raises:
        VideoError: the file is refused, or (frame_mismatch) it does not have these frames.
    """
    limits = limits or DecodeLimits()
    request = {
        "op": "clip",
        "start_seconds": float(start_seconds),
        "num_frames": num_frames,
        "fps": float(fps),
        "height_px": height_px,
        "width_px": width_px,
        "start_frame": int(start_frame),
        "end_frame": int(end_frame),
    }
    with local_copy(uri) as path:
        try:
            answer = Answer(path, b"", limits, request)
        except VideoError as error:
            raise VideoError(error.reason, error.detail, uri=os.fspath(uri)) from None
    answer.raise_refusal(os.fspath(uri))
    return answer.frames(np.zeros(0, np.int64)).pixels_THWC


# --- writing --------------------------------------------------------------------------------------------------------


def encode_video(
    frames_THWC: np.ndarray | Iterable[np.ndarray],
    *,
    fps: float | Fraction,
    codec: str = "libx264",
    crf: int = 12,
    container: Literal["mp4", "webm"] = "mp4",
    pixel_format: str = "yuv420p",
) -> bytes:
    """`write_video` into memory."""
    sink = io.BytesIO()
    write_video(sink, frames_THWC, fps=fps, codec=codec, crf=crf, container=container, pixel_format=pixel_format)
    return sink.getvalue()


def write_video(
    target: str | os.PathLike[str] | BinaryIO,
    frames_THWC: np.ndarray | Iterable[np.ndarray],
    *,
    fps: float | Fraction,
    codec: str = "libx264",
    crf: int = 12,
    container: Literal["mp4", "webm"] = "mp4",
    pixel_format: str = "yuv420p",
) -> None:
    """Encode uint8 RGB frames; the same frames give the same bytes, every time.

    One thread, no dates, no library versions in the container, index first (a browser can start at once), BT.709.

    Args:
        crf: constant rate factor of the codec; smaller is better and larger (12 is visually lossless for x264).

    Raises:
        UsageError: odd sizes with 4:2:0 colour, no frames, frames of another type or of changing size.
    """
    with tempfile.TemporaryDirectory(prefix="recaption-") as folder:  # moving the index to the front needs a real file
        path = Path(folder) / f"video.{container}"
        _encode(path, frames_THWC, Fraction(fps).limit_denominator(1001), codec, crf, container, pixel_format)
        payload = path.read_bytes()
    if isinstance(target, (str, os.PathLike)):
        temporary = f"{os.fspath(target)}.{os.getpid()}.tmp"
        Path(temporary).write_bytes(payload)
        os.replace(temporary, target)
    else:
        target.write(payload)


def _encode(
    path: Path,
    frames_THWC: np.ndarray | Iterable[np.ndarray],
    fps: Fraction,
    codec: str,
    crf: int,
    container: str,
    pixel_format: str,
) -> None:
    import av
    from av.video.reformatter import Interpolation, VideoReformatter

    options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if container == "mp4" else {})
    reformatter = VideoReformatter()
    exact = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    stream, shape = None, None
    with av.open(str(path), "w", format=container, options=options) as output:
        for number, pixels_HWC in enumerate(frames_THWC):
            if stream is None:
                shape = pixels_HWC.shape
                _check_frame(pixels_HWC, shape, number, pixel_format)
                stream = _new_stream(output, codec, crf, fps, shape, pixel_format)
            _check_frame(pixels_HWC, shape, number, pixel_format)
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), format="rgb24")
            frame = reformatter.reformat(
                rgb,
                format=pixel_format,
                dst_colorspace=BT709["colorspace"],
                dst_color_range=1,
                interpolation=exact,
                threads=1,
            )
            frame.pts, frame.time_base = number, 1 / fps
            output.mux(stream.encode(frame))
        if stream is None:
            raise UsageError("write_video: there are no frames to write")
        output.mux(stream.encode(None))


def _check_frame(pixels_HWC: np.ndarray, shape: tuple[int, ...] | None, number: int, pixel_format: str) -> None:
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3 or pixels_HWC.shape != shape:
        raise UsageError(
            f"write_video: frame {number} is {pixels_HWC.dtype} {pixels_HWC.shape}; every frame must be uint8 {shape}, "
            "height x width x 3"
        )
    height_px, width_px = shape[:2]
    if "420" in pixel_format and (height_px % 2 or width_px % 2):
        raise UsageError(
            f"write_video: {width_px}x{height_px} cannot be {pixel_format}, which stores colour per 2x2 pixels; "
            'crop to even sizes or pass pixel_format="yuv444p"'
        )


def _new_stream(output: Any, codec: str, crf: int, fps: Fraction, shape: tuple[int, ...], pixel_format: str) -> Any:
    if codec not in ENCODERS:
        raise UsageError(f"write_video: {codec = } is not one of {', '.join(ENCODERS)}")
    try:
        stream = output.add_stream(codec, rate=fps)
    except ValueError as error:
        raise UsageError(f"write_video: {codec = } cannot go into this container: {error}") from None
    context = stream.codec_context
    context.height, context.width = shape[:2]
    context.pix_fmt = pixel_format
    context.time_base = 1 / fps
    context.thread_count = 1
    context.options = {"crf": str(crf), "flags": "+bitexact"} | ENCODERS[codec]
    for name, value in BT709.items():
        setattr(context, name, value)
    return stream


def codecs_report() -> dict[str, Any]:
    """What this machine's libraries can do, for `recaption doctor`."""
    import importlib.metadata

    import av

    def can(name: str, mode: str) -> bool:
        try:
            av.Codec(name, mode)
        except ValueError:
            return False
        return True

    def version(distribution: str) -> str | None:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "pyav": av.__version__,
        "ffmpeg_libraries": {name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()},
        "decord2": version("decord2"),
        "decodes": {name: can(name, "r") for name in CODECS},
        "encodes": {name: can(name, "w") for name in ENCODERS},
    }
