"""Request handlers of the decoder child: probe, scan, read, clip, cut, audio, times. They do not use PyAV themselves.

A response is a "length" message (sizes, and seconds for the parent's timeout), blocks of frames in ascending order, and
"done" with presentation times; the worker turns an exception into "error". Frames are sent in blocks as they are
decoded, so the child never holds more than a block and a few frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from recaption.decoding import timestamps
from recaption.decoding.audio.requests import audio, send_levels
from recaption.decoding.backends.interface import RefusalError
from recaption.decoding.backends.pictures import backend_frames
from recaption.decoding.damage.trim import check_against_index
from recaption.decoding.lossless_cut import lossless_cut
from recaption.decoding.messages import (
    AudioRequest,
    ClipRequest,
    CutRequest,
    ProbeRequest,
    ReadRequest,
    Request,
    ScanRequest,
    TimesRequest,
    limit_text,
)
from recaption.decoding.orientation import center_crop, size_to_cover, size_with_short_side
from recaption.decoding.packet_index import FrameTimes, PacketIndex
from recaption.decoding.picture.scaler import is_transparent
from recaption.decoding.picture.streams import transfer_name
from recaption.errors import VideoError

if TYPE_CHECKING:
    from recaption.decoding.video_file import VideoFile


Send = Callable[..., None]
"""send(header, payload=b"")"""
BLOCK_BYTES = 4 << 20
"""Frames travel in blocks of about this size."""
MIN_INTERLACED_FRACTION = 0.1
"""A video is interlaced if at least this fraction of its frames is flagged so: H.264 film with pulldown flags has some
flagged frames at its start, before the decoder knows better."""
MAX_SCAN_ASPECT = 8
"""A scanned frame that is longer is squashed: 16384x48 px would be 2.4 MB a frame, two hundred times a usual one."""


class FrameBlockSender:
    """Collects frames of one size and sends them in blocks of about `BLOCK_BYTES`."""

    def __init__(self, send: Send, stream: str) -> None:
        self.send, self.stream = send, stream
        self.frames: list[np.ndarray] = []
        self.numbers: list[int] = []
        self.num_bytes = 0

    def add(self, pixels_HWC: np.ndarray, number: int) -> None:
        self.frames.append(pixels_HWC)
        self.numbers.append(number)
        self.num_bytes += pixels_HWC.nbytes

    @property
    def is_full(self) -> bool:
        return self.num_bytes >= BLOCK_BYTES

    def flush(self) -> None:
        if self.frames:
            block = np.stack(self.frames) if len(self.frames) > 1 else np.ascontiguousarray(self.frames[0])
            header = {"kind": "frames", "stream": self.stream, "count": len(self.frames), "numbers": self.numbers}
            self.send(header, block.data)
        self.frames, self.numbers, self.num_bytes = [], [], 0


class _ScaledStream:
    """One output stream of a scan: frames scaled to a short side, never enlarged, at most `MAX_SCAN_ASPECT` as long."""

    def __init__(self, video: VideoFile, times: FrameTimes, send: Send, stream: str, short_side_px: int) -> None:
        short = min(short_side_px, times.height_px, times.width_px)
        height_px, width_px = size_with_short_side(times.height_px, times.width_px, short)
        self.size = (min(height_px, MAX_SCAN_ASPECT * short), min(width_px, MAX_SCAN_ASPECT * short))
        self.scaler = video.scaler(times, *self.size)
        self.blocks = FrameBlockSender(send, stream)

    def add(self, frame: Any, number: int) -> None:
        self.blocks.add(self.scaler(frame), number)


class _FrameFacts:
    """What the decoded frames say about a video: columns of records.Video."""

    def __init__(self) -> None:
        self.num_frames = self.num_interlaced = 0
        self.transfer = ""
        self.has_alpha = False

    def watch(self, frames: Iterator[Any]) -> Generator[Any]:
        """Passes frames on."""
        for frame in frames:
            if not self.num_frames:
                self.transfer = transfer_name(frame)
            self.num_frames += 1
            self.num_interlaced += frame.interlaced_frame
            self.has_alpha = self.has_alpha or is_transparent(frame)
            yield frame

    @property
    def is_interlaced(self) -> bool:
        return self.num_interlaced >= MIN_INTERLACED_FRACTION * max(1, self.num_frames)


def probe(video: VideoFile, request: ProbeRequest, send: Send) -> None:
    """Decode everything, send no frames."""
    _decode_all(video, send, {}, 1.0)


def scan(video: VideoFile, request: ScanRequest, send: Send) -> None:
    """Decode everything once: all frames at `small_px`, one per `detail_every_seconds` at `detail_px`."""
    sizes = {"small": request.small_px, "detail": request.detail_px}
    _decode_all(video, send, sizes, request.detail_every_seconds, measures_audio=request.measures_audio)


def _decode_all(
    video: VideoFile, send: Send, sizes: dict[str, int], detail_every_seconds: float, *, measures_audio: bool = False
) -> None:
    announce_first_pass(video, send)
    index = video.packet_index()
    facts = _FrameFacts()
    ticks: list[int | None] = []
    detail_indices: list[int] = []
    streams: dict[str, _ScaledStream] = {}
    first: FrameTimes | None = None
    last_duration, last_interval = 0, -1
    decoded = video.pictures(index, facts.watch) if sizes else facts.watch(video.decoded(index))
    with contextlib.closing(decoded) as frames:
        for number, frame in enumerate(frames):
            if number == 0:
                index = index.starting_at(frame.pts)
                first = video.frame_times(index, [frame.pts], frame)
                streams = {name: _ScaledStream(video, first, send, name, px) for name, px in sizes.items()}
                known_pts = first.pts_seconds.data if streams and index.is_seekable else b""
                send(_length_header(video, index, streams, detail_every_seconds), known_pts)
            elif number >= video.limits["max_frames"]:
                raise VideoError(
                    "too_large", f"it has more than {limit_text('max_frames', video.limits['max_frames'])}"
                )
            ticks.append(frame.pts)
            last_duration = frame.duration or 0
            if streams:
                interval = _interval_index(frame.pts, ticks[0], number, index.time_base, detail_every_seconds)
                if interval != last_interval:
                    streams["detail"].add(frame, number)
                    detail_indices.append(number)
                last_interval = interval
                if streams["small"].blocks.is_full:
                    for stream in (streams["detail"], streams["small"]):  # no detail comes later than its small frame
                        stream.blocks.flush()
                streams["small"].add(frame, number)
    if first is None:
        raise VideoError("zero_frames", "there are packets, but none decodes to a frame")
    check_against_index(index, ticks)
    for name in reversed(streams):
        streams[name].blocks.flush()
    times = first.with_ticks(ticks)
    video.cache_times(times)
    _fill_video_fields(video, times, last_duration, facts)
    limit = video.limits["max_video_seconds"]
    if video.video_fields["duration_seconds"] > limit + 1:  # the last frame, or the only one, claims to last for days
        detail = f"{video.video_fields['duration_seconds']:.1f} s of video, more than "
        raise VideoError("too_large", detail + limit_text("max_video_seconds", limit))
    pts = times.pts_seconds
    if measures_audio:
        send_levels(video, float(pts[0]), send)
    send({"kind": "done", "video": video.video_fields, "detail": detail_indices, "count": len(pts)}, pts.data)


def announce_first_pass(video: VideoFile, send: Send) -> None:
    """Let the parent know how long a video is before it is decoded only to find damage."""
    video.on_first_pass = lambda seconds: send({"kind": "length", "seconds": seconds, "streams": {}})


def _length_header(
    video: VideoFile, index: PacketIndex, streams: dict[str, _ScaledStream], detail_every_seconds: float
) -> dict[str, Any]:
    """Header with the expected size of each stream: exact for `small` where packets are trusted, estimated for `detail`."""
    expected = {
        "small": index.num_packets,
        "detail": min(index.num_packets, int(index.seconds / detail_every_seconds) + 2),
    }
    return {
        "kind": "length",
        "seconds": index.seconds + video.seconds_passed,
        "streams": {name: [expected[name], *stream.size] for name, stream in streams.items()},
    }


def _interval_index(
    tick: int | None, first_tick: int | None, number: int, time_base: Fraction, every_seconds: float
) -> int:
    """Index of the `every_seconds` interval that a frame falls into."""
    if tick is None or first_tick is None:
        return int(number / float(timestamps.FALLBACK_RATE) / every_seconds)
    return int(float((tick - first_tick) * time_base) / every_seconds)


def _fill_video_fields(video: VideoFile, times: FrameTimes, last_duration: int, facts: _FrameFacts) -> None:
    rate, seconds = timestamps.rate_and_duration(times.ticks, last_duration, times.index.time_base, video.rates)
    video.video_fields.update(
        width_px=times.width_px,
        height_px=times.height_px,
        num_frames=len(times.ticks),
        fps_num=rate.numerator,
        fps_den=rate.denominator,
        duration_seconds=float(seconds),
        rotation_degrees=times.orientation.rotation_degrees,
        transfer=facts.transfer,
        sample_aspect=f"{video.sample_aspect.numerator}:{video.sample_aspect.denominator}",
        is_interlaced=facts.is_interlaced,
        has_alpha=facts.has_alpha,
    )
    if times.cut is not None:
        lost = max(0.0, video.total_seconds - float(seconds))
        kept = f"{len(times.ticks)} frames, {float(seconds):.3f} s, are kept and {lost:.3f} s are lost"
        video.video_fields.update(truncated_seconds=lost, detail=f"trimmed: {kept}: {times.cut.detail}")


def read(video: VideoFile, request: ReadRequest, send: Send) -> None:
    """Frames by index, or all of them; at full size or scaled to a short side."""
    announce_first_pass(video, send)
    times = video.times()
    num_frames = len(times.ticks)
    indices = np.arange(num_frames) if request.indices is None else np.array(request.indices, np.int64)
    outside = indices[(indices < 0) | (indices >= num_frames)]
    if len(outside):
        raise VideoError("frame_mismatch", f"frame {outside[0]} was requested, the video has {num_frames} frames")
    if request.snap_seconds:
        start, end = request.snap_within
        indices = times.index.snap_to_keyframes(indices, request.snap_seconds, start, end)
    size = (times.height_px, times.width_px)
    if request.short_side_px is not None:
        size = size_with_short_side(*size, request.short_side_px)
    _send_frames(video, times, indices, send, scaled=size, cropped=size)


def clip(video: VideoFile, request: ClipRequest, send: Send) -> None:
    """A span of frames resampled to a constant rate, scaled to cover a size and center-cropped."""
    announce_first_pass(video, send)
    times = video.times()
    start, end = request.start_frame, min(request.end_frame, len(times.ticks))
    if not 0 <= start < end:
        raise VideoError(
            "frame_mismatch", f"frames {start}:{end} were requested, the video has {len(times.ticks)} frames"
        )
    indices = start + timestamps.frames_at_rate(
        times.pts_seconds[start:end], request.start_seconds, num_frames=request.num_frames, fps=request.fps
    )
    cropped = (request.height_px, request.width_px)
    _send_frames(
        video, times, indices, send, scaled=size_to_cover(times.height_px, times.width_px, *cropped), cropped=cropped
    )


def _send_frames(
    video: VideoFile,
    times: FrameTimes,
    indices: np.ndarray,
    send: Send,
    *,
    scaled: tuple[int, int],
    cropped: tuple[int, int],
) -> None:
    """Send each frame once, in ascending order; `order` maps the requested indices to positions among the sent frames.

    What a backend refuses is sent again from the first frame on, by PyAV: a second "length" starts the response anew.
    """
    unique, order = np.unique(indices, return_inverse=True)
    is_ascending = len(unique) == len(indices) and bool(np.all(order[1:] > order[:-1]))
    seconds = times.pts_seconds
    header = {"kind": "length", "seconds": float(seconds[-1] - seconds[0]) + video.seconds_passed}
    length = header | {"streams": {"frames": [len(unique), *cropped]}}
    fallback: tuple[str, str] | None = None
    if video.backend is not None:
        try:
            send(length)
            _send_each(backend_frames(video, times, unique, scaled), unique, cropped, send)
        except RefusalError as refusal:
            fallback = (refusal.reason, refusal.detail)
    if video.backend is None or fallback is not None:
        send(length)
        scaler = video.scaler(times, *scaled)
        _send_each(map(scaler, video.frames_at(times, unique)), unique, cropped, send)
    done = {
        "kind": "done",
        "indices": indices.tolist(),
        "order": None if is_ascending else order.tolist(),
        "was_counted": video.was_counted,
        "fallback": fallback,
    }
    send(done | {"count": len(indices)}, np.ascontiguousarray(seconds[indices]).data)


def _send_each(pictures: Iterable[np.ndarray], numbers: np.ndarray, cropped: tuple[int, int], send: Send) -> None:
    """Send the pictures with these frame numbers, cropped."""
    blocks = FrameBlockSender(send, "frames")
    for number, pixels_HWC in zip(numbers.tolist(), pictures, strict=True):
        blocks.add(center_crop(pixels_HWC, *cropped), number)
        if blocks.is_full:
            blocks.flush()
    blocks.flush()


def cut(video: VideoFile, request: CutRequest, send: Send) -> None:
    """The packets of a span as the bytes of an mp4; or why they cannot be had."""
    announce_first_pass(video, send)
    found = lossless_cut(video, request.start_frame, request.end_frame, audio_seconds=request.audio_seconds)
    if found.mp4:
        send({"kind": "bytes"}, found.mp4)
    done = {"kind": "done", "count": 0, "obstacle": found.obstacle}
    send(done | {"audio": found.audio.description, "lost": list(found.audio.lost)})


def times(video: VideoFile, request: TimesRequest, send: Send) -> None:
    """When the frames of a span are shown."""
    announce_first_pass(video, send)
    seconds = video.times().pts_seconds
    start, end = request.start_frame, request.end_frame
    if not 0 <= start < end <= len(seconds):
        raise VideoError("frame_mismatch", f"frames {start}:{end} were requested, the video has {len(seconds)} frames")
    send({"kind": "done", "count": end - start}, np.ascontiguousarray(seconds[start:end]).data)


HANDLERS: dict[type[Request], Callable[[VideoFile, Any, Send], None]] = {
    ProbeRequest: probe,
    ScanRequest: scan,
    ReadRequest: read,
    ClipRequest: clip,
    CutRequest: cut,
    AudioRequest: audio,
    TimesRequest: times,
}
