"""Writes video files from frames with PyAV (H.264, HEVC, VP9), with audio tracks that are ready: the same input gives the
same bytes.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from recaption.decoding.audio.tracks import AudioTrack, TrackMuxer
from recaption.errors import UsageError

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg2video", "mpeg4", "prores", "mjpeg", "theora", "gif", "webp", "vvc")
"""Codecs that `codecs_report` checks: everything common in real video collections."""
ENCODERS = {
    # macroblock-tree rate control reads uninitialised memory in small pictures: up to 5 different files in 14 tries
    "libx264": {"x264-params": "mbtree=0"},
    "libx265": {"x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx-vp9": {"b": "0", "deadline": "realtime", "cpu-used": "5"},
}
"""Encoders of `write_video`, with the options that keep each single-threaded, silent and deterministic."""
FINE_TIME_BASE = Fraction(1, 90_000)
"""Of frames that are not evenly spaced: the clock of MPEG (ISO/IEC 13818-1)."""
BT709 = {"color_primaries": 1, "color_trc": 1, "colorspace": 1, "color_range": 1}
"""Colour tags of written files (ITU-T H.273: 1 = BT.709; range 1 = limited), so that players show the right colours."""


def encode_video(
    frames_THWC: np.ndarray | Iterable[np.ndarray],
    *,
    fps: float | Fraction,
    codec: str = "libx264",
    crf: int = 12,
    container: Literal["mp4", "webm"] = "mp4",
    pixel_format: str = "yuv420p",
    audio: Sequence[AudioTrack] = (),
    times_seconds: np.ndarray | None = None,
) -> bytes:
    """`write_video` to bytes."""
    sink = io.BytesIO()
    settings = {"codec": codec, "crf": crf, "container": container, "pixel_format": pixel_format}
    write_video(sink, frames_THWC, fps=fps, audio=audio, times_seconds=times_seconds, **settings)  # type: ignore[arg-type]
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
    audio: Sequence[AudioTrack] = (),
    times_seconds: np.ndarray | None = None,
) -> None:
    """Encode uint8 RGB frames to a file; the same frames and tracks always give the same bytes.

    One thread, no dates, no library versions in the container, index first (a browser can start at once), BT.709.

    Args:
        crf: constant rate factor of the codec; smaller is better and larger (12 is visually lossless for x264).
        audio: tracks of an mp4, from `OpenedVideo.read_audio`.
        times_seconds: when each frame is shown; None: evenly, at `fps`.

    Raises:
        UsageError: odd sizes with 4:2:0 colour, no frames, frames of another type or of changing size.
    """
    with tempfile.TemporaryDirectory(prefix="recaption-") as folder:  # moving the index to the front needs a real file
        path = Path(folder) / f"video.{container}"
        _encode(
            path,
            frames_THWC,
            Fraction(fps).limit_denominator(1001),
            codec,
            crf,
            container,
            pixel_format,
            audio,
            times_seconds,
        )
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
    audio: Sequence[AudioTrack],
    times_seconds: np.ndarray | None,
) -> None:
    import av
    from av.video.reformatter import Interpolation, VideoReformatter

    options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if container == "mp4" else {})
    reformatter = VideoReformatter()
    exact = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    stream, shape, tracks = None, None, None
    with av.open(str(path), "w", format=container, options=options) as output:
        for number, pixels_HWC in enumerate(frames_THWC):
            if stream is None:
                shape = pixels_HWC.shape
                _check_frame(pixels_HWC, shape, number, pixel_format)
                stream = _new_stream(output, codec, crf, fps, shape, pixel_format)
                if times_seconds is not None:
                    stream.codec_context.time_base = FINE_TIME_BASE
                tracks = TrackMuxer(output, audio)
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
            if times_seconds is not None:
                frame.pts, frame.time_base = round(float(times_seconds[number]) / FINE_TIME_BASE), FINE_TIME_BASE
            _mux(output, stream.encode(frame), tracks)
        if stream is None or tracks is None:
            raise UsageError("write_video: there are no frames to write")
        _mux(output, stream.encode(None), tracks)
        tracks.mux_before(None)


def _mux(output: Any, packets: list[Any], tracks: TrackMuxer | None) -> None:
    """Write packets of the video, each after the audio that starts before it."""
    for packet in packets:
        if tracks is not None:
            tracks.mux_before(packet.dts * packet.time_base)
        output.mux(packet)


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
    """Library versions and the codecs they decode and encode, for `recaption doctor`."""

    import av

    def can(name: str, mode: str) -> bool:
        try:
            av.Codec(name, mode)
        except ValueError:
            return False
        return True

    return {
        "pyav": av.__version__,
        "ffmpeg_libraries": {name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()},
        "decodes": {name: can(name, "r") for name in CODECS},
        "encodes": {name: can(name, "w") for name in ENCODERS},
    }
