"""What the decoder child answers: probe, scan, read, clip. Runs in the child, free of PyAV itself.

Every answer is a "length" message (sizes, and seconds for the parent's clock), blocks of frames in rising order, and
"done" with presentation times; or the worker turns an exception into "error". Pictures leave in blocks as they are
decoded, so that the child never holds more than a block and a few frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from recaption.decoding import timestamps as frame_times
from recaption.decoding.orientation import crop_centre, size_to_cover, size_with_short_side
from recaption.decoding.packet_index import FrameTimes, PacketIndex
from recaption.errors import VideoError

if TYPE_CHECKING:
    from recaption.decoding.video_file import VideoFile


Send = Callable[..., None]
"""send(header, payload=b"")"""


BLOCK_BYTES = 4 << 20
"""Frames travel in blocks of about this size."""


class FrameBlocks:
    """Gathers frames of one size and sends them in blocks."""

    def __init__(self, send: Send, stream: str) -> None:
        self.send, self.stream = send, stream
        self.frames: list[np.ndarray] = []
        self.num_bytes = 0

    def add(self, pixels_HWC: np.ndarray) -> None:
        self.frames.append(pixels_HWC)
        self.num_bytes += pixels_HWC.nbytes
        if self.num_bytes >= BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.frames:
            block = np.stack(self.frames) if len(self.frames) > 1 else np.ascontiguousarray(self.frames[0])
            self.send({"kind": "frames", "stream": self.stream, "count": len(self.frames)}, block.data)
        self.frames, self.num_bytes = [], 0


class _Shrunk:
    """One size in which a scan hands out frames: never larger than the video itself."""

    def __init__(self, video: VideoFile, times: FrameTimes, send: Send, stream: str, short_side_px: int) -> None:
        short = min(short_side_px, times.height_px, times.width_px)
        self.size = size_with_short_side(times.height_px, times.width_px, short)
        self.scaler = video.scaler(times, *self.size)
        self.blocks = FrameBlocks(send, stream)

    def add(self, frame: Any) -> None:
        self.blocks.add(self.scaler(frame))


def probe(video: VideoFile, request: dict[str, Any], send: Send) -> None:
    """Decode everything, hand out no pictures."""
    _decode_all(video, send, {}, 1.0)


def scan(video: VideoFile, request: dict[str, Any], send: Send) -> None:
    """Decode everything once: all frames at `small_px`, one per `detail_every_seconds` at `detail_px`."""
    sizes = {"small": request["small_px"], "detail": request["detail_px"]}
    _decode_all(video, send, sizes, request["detail_every_seconds"])


def _decode_all(video: VideoFile, send: Send, sizes: dict[str, int], detail_every_seconds: float) -> None:
    index = video.packet_index()
    ticks: list[int | None] = []
    detail_numbers: list[int] = []
    streams: dict[str, _Shrunk] = {}
    shape: tuple[Any, ...] = ()
    last_duration, slot = 0, -1
    with contextlib.closing(video.decoded(index)) as frames:
        for number, frame in enumerate(frames):
            if number == 0:
                index = index.starting_at(frame.pts)
                shape = (frame.height, frame.width, video.orientation_of(frame))
                first = FrameTimes.shown(index, [frame.pts], *shape)
                streams = {name: _Shrunk(video, first, send, name, px) for name, px in sizes.items()}
                send(_length(index, streams, detail_every_seconds))
            elif number >= video.limits["max_frames"]:
                raise VideoError("too_large", f"more than max_frames = {video.limits['max_frames']} frames")
            ticks.append(frame.pts)
            last_duration = frame.duration or 0
            if streams:
                streams["small"].add(frame)
                slot_now = _slot(frame.pts, ticks[0], number, index.time_base, detail_every_seconds)
                if slot_now != slot:
                    streams["detail"].add(frame)
                    detail_numbers.append(number)
                slot = slot_now
    if not ticks:
        raise VideoError("zero_frames", "packets, but no frame to show")
    _check_against_index(index, ticks)
    for stream in streams.values():
        stream.blocks.flush()
    times = FrameTimes.shown(index, ticks, *shape)
    video.remember(times)
    _describe(video, times, last_duration)
    pts = times.pts_seconds
    send({"kind": "done", "video": video.known, "detail": detail_numbers, "count": len(pts)}, pts.data)


def _length(index: PacketIndex, streams: dict[str, _Shrunk], detail_every_seconds: float) -> dict[str, Any]:
    """How much will come: exact for `small` where packets can be trusted, a first guess for `detail`."""
    guesses = {
        "small": index.num_packets,
        "detail": min(index.num_packets, int(index.seconds / detail_every_seconds) + 2),
    }
    return {
        "kind": "length",
        "seconds": index.seconds,
        "streams": {name: [guesses[name], *stream.size] for name, stream in streams.items()},
    }


def _slot(tick: int | None, first_tick: int | None, number: int, time_base: Fraction, every_seconds: float) -> int:
    """Which stretch of `every_seconds` a frame falls into."""
    if tick is None or first_tick is None:
        return int(number / float(frame_times.FALLBACK_RATE) / every_seconds)
    return int(float((tick - first_tick) * time_base) / every_seconds)


def _check_against_index(index: PacketIndex, ticks: list[int | None]) -> None:
    """Later reads number frames by packets: a file where decoding says otherwise is refused here, once."""
    if not index.is_seekable or ticks == index.ticks.tolist():
        return
    missing = sorted(set(index.ticks.tolist()) - set(ticks))
    where = f", the first missing one is frame {int(np.searchsorted(index.ticks, missing[0]))}" if missing else ""
    raise VideoError("frame_mismatch", f"packets promise {len(index.ticks)} frames, {len(ticks)} decode{where}")


def _describe(video: VideoFile, times: FrameTimes, last_duration: int) -> None:
    rate, seconds = frame_times.rate_and_duration(times.ticks, last_duration, times.index.time_base, video.rates)
    video.known.update(
        width_px=times.width_px,
        height_px=times.height_px,
        num_frames=len(times.ticks),
        fps_num=rate.numerator,
        fps_den=rate.denominator,
        duration_seconds=float(seconds),
        rotation_degrees=times.orientation.rotation_degrees,
    )


def read(video: VideoFile, request: dict[str, Any], send: Send) -> None:
    """Frames by number, or all of them; at full size or with a given short side."""
    times = video.times()
    num_frames = len(times.ticks)
    asked = np.arange(num_frames) if request["indices"] is None else np.array(request["indices"], np.int64)
    outside = asked[(asked < 0) | (asked >= num_frames)]
    if len(outside):
        raise VideoError("frame_mismatch", f"frame {outside[0]} was asked for, the video has {num_frames} frames")
    if request["snap_seconds"]:
        asked = times.index.near_keyframes(asked, request["snap_seconds"], *request["snap_within"])
    size = (times.height_px, times.width_px)
    if request["short_side_px"] is not None:
        size = size_with_short_side(*size, request["short_side_px"])
    _send_frames(video, times, asked, send, scaled=size, cropped=size)


def clip(video: VideoFile, request: dict[str, Any], send: Send) -> None:
    """Frames of a span at a steady rate, scaled to cover a size, the centre cropped."""
    times = video.times()
    start, end = request["start_frame"], min(request["end_frame"], len(times.ticks))
    if not 0 <= start < end:
        raise VideoError(
            "frame_mismatch", f"frames {start}:{end} were asked for, the video has {len(times.ticks)} frames"
        )
    asked = start + frame_times.frames_at_rate(
        times.pts_seconds[start:end], request["start_seconds"], num_frames=request["num_frames"], fps=request["fps"]
    )
    cropped = (request["height_px"], request["width_px"])
    _send_frames(
        video,
        times,
        asked,
        send,
        scaled=size_to_cover(times.height_px, times.width_px, *cropped),
        cropped=cropped,
    )


def _send_frames(
    video: VideoFile,
    times: FrameTimes,
    asked: np.ndarray,
    send: Send,
    *,
    scaled: tuple[int, int],
    cropped: tuple[int, int],
) -> None:
    """Each frame once, in rising order; `order` says where each asked one lies among them."""
    wanted, order = np.unique(asked, return_inverse=True)
    is_rising = len(wanted) == len(asked) and bool(np.all(order[1:] > order[:-1]))
    seconds = times.pts_seconds
    header = {"kind": "length", "seconds": float(seconds[-1] - seconds[0])}
    send(header | {"streams": {"frames": [len(wanted), *cropped]}})
    scaler, blocks = video.scaler(times, *scaled), FrameBlocks(send, "frames")
    with contextlib.closing(video.frames_at(times, wanted)) as frames:
        for frame in frames:
            blocks.add(crop_centre(scaler(frame), *cropped))
    blocks.flush()
    done = {
        "kind": "done",
        "indices": asked.tolist(),
        "order": None if is_rising else order.tolist(),
        "was_counted": video.was_counted,
    }
    send(done | {"count": len(asked)}, np.ascontiguousarray(seconds[asked]).data)


ANSWERS: dict[str, Callable[[VideoFile, dict[str, Any], Send], None]] = {
    "probe": probe,
    "scan": scan,
    "read": read,
    "clip": clip,
}
