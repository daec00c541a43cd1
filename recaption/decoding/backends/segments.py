"""Cuts the packets that some frames need out of a video, into containers that PyAV writes: what a backend gets to decode.

    for segment in segments(video, times, np.array([0, 24, 900])): ...     # two segments: frames 0 and 24, frame 900

Frame numbers come from PyAV's packet index alone. A segment starts at the keyframe before its first wanted frame and holds
every packet up to the last one, without those displayed before the keyframe (their references are not there).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import av
import numpy as np

from recaption.decoding.backends.interface import FRAME_SECONDS, RefusalError, Segment
from recaption.decoding.backends.parameter_sets import starts_anew
from recaption.decoding.backends.stream_checks import check_packets, check_stream
from recaption.decoding.orientation import Orientation
from recaption.decoding.packet_index import MIN_SEEK_GAIN_FRAMES, FrameTimes, Keyframe, PacketIndex
from recaption.decoding.video_file import SeekMismatchError, VideoFile

CODECS_OF_NUT = frozenset({"cinepak", "flv1", "h263", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"})
"""Matroska has no place for them. NUT has one for all, but no rate of frames, without which decord opens no short one."""
LAST_DURATION = 10_000
"""Of the last packet, in frames: decord opens nothing that is shorter than a frame by the rate in its parameter sets."""
MIN_OPEN_PACKETS = 8
"""FFmpeg 5 loses frames of H.264 that starts with a keyframe that is no IDR picture and ends within 5 packets."""


def segments(video: VideoFile, times: FrameTimes, indices: np.ndarray) -> Iterator[Segment]:
    """The segments that hold the frames with these indices (ascending, unique), one after another.

    Raises:
        RefusalError: a backend would show these frames otherwise, or their packets do not number them.
    """
    if times.obstacle:
        raise RefusalError(times.obstacle)
    if video.is_webp:
        raise RefusalError("codec", "animated WebP")
    with video.opened() as (container, stream):
        check_stream(stream, video.video_fields["codec"])
        if not times.index.is_seekable:
            yield _whole_segment(container, stream, times, indices)
            return
        done = 0
        while done < len(indices):
            keyframe = times.index.keyframe_before(indices[done])
            end = done + 1
            while end < len(indices) and not _should_seek(times.index, int(indices[end - 1]), int(indices[end])):
                end += 1
            try:
                found = _packets(container, stream, times, keyframe, indices[done:end])
            except SeekMismatchError:  # as in MPEG-PS: from the start then, without decoding
                with video.opened() as (container_at_start, stream_at_start):
                    found = _packets(
                        container_at_start, stream_at_start, times, keyframe, indices[done:end], seeks=False
                    )
            yield _segment(stream, times, found, indices[done:end], is_first=keyframe is None)
            done = end


def _should_seek(index: PacketIndex, current: int, target: int) -> bool:
    return index.first_frame_at(index.keyframe_before(target)) > current + MIN_SEEK_GAIN_FRAMES


def _segment(stream: Any, times: FrameTimes, packets: list[Any], indices: np.ndarray, *, is_first: bool) -> Segment:
    stored = np.array(sorted(packet.pts for packet in packets), np.int64)
    positions = np.searchsorted(stored, [packet.pts for packet in packets])
    wanted = np.searchsorted(stored, times.ticks[indices])
    is_turned = times.orientation != Orientation()
    return _written(stream, packets, positions, wanted, is_turned=is_turned, is_first=is_first)


def _packets(
    container: Any,
    stream: Any,
    times: FrameTimes,
    keyframe: Keyframe | None,
    indices: np.ndarray,
    *,
    seeks: bool = True,
) -> list[Any]:
    """Packets from a keyframe (None: the first one) until all frames up to the last of these indices are among them.

    In the order of the file; those displayed before the keyframe are left out, as their references are.

    Raises:
        SeekMismatchError: a seek lands behind the keyframe.
        RefusalError: not all of these frames have packets.
    """
    start = keyframe or times.index.keyframes[0]
    codec = stream.codec_context.codec.canonical_name
    first = times.index.first_frame_at(keyframe)
    first_tick = start.pts if keyframe is not None else min(start.pts, int(times.ticks[0]))
    missing = set(times.ticks[first : int(indices[-1]) + 1].tolist())
    if seeks:
        container.seek(min(start.dts, start.pts), stream=stream)
    found: list[Any] = []
    min_packets = 1
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if not found and not (packet.is_keyframe and packet.pts == start.pts):
            if seeks and packet.dts is not None and packet.dts > start.dts:
                raise SeekMismatchError
            continue
        if packet.pts is None or packet.pts < first_tick:
            continue
        if not found and not starts_anew(bytes(packet), bytes(stream.codec_context.extradata or b""), codec):
            min_packets = MIN_OPEN_PACKETS
        found.append(packet)
        missing.discard(packet.pts)
        if not missing and len(found) >= min_packets:
            return found
    if not missing:
        return found
    if seeks and not found:
        raise SeekMismatchError
    raise RefusalError("numbering", "packets of the index are missing")


def _whole_segment(container: Any, stream: Any, times: FrameTimes, indices: np.ndarray) -> Segment:
    """All packets up to the last wanted frame, of a file whose packets have no times but come in the order of its frames."""
    if stream.codec_context.has_b_frames or times.index.num_stored != len(times.ticks):
        raise RefusalError("numbering", "packets without times, in another order than the frames")
    packets = []
    for packet in container.demux(stream):
        if packet.size:
            packets.append(packet)
        if len(packets) > indices[-1]:
            break
    return _written(stream, packets, np.arange(len(packets)), indices, is_turned=times.orientation != Orientation())


def _written(
    stream: Any,
    packets: list[Any],
    positions: np.ndarray,
    wanted: np.ndarray,
    *,
    is_turned: bool,
    is_first: bool = True,
) -> Segment:
    """A container with these packets.

    Args:
        positions: of each packet's frame in the order of display.
    """
    if len(set(positions.tolist())) < len(packets):
        raise RefusalError("numbering", "two packets have one time")
    check_packets(stream, packets)
    delay = int(np.max(np.arange(len(packets)) - positions))
    sink = io.BytesIO()
    container_format = "nut" if stream.codec_context.codec.canonical_name in CODECS_OF_NUT else "matroska"
    with av.open(sink, "w", format=container_format, options={"fflags": "+bitexact"}) as output:
        copied = output.add_stream_from_template(stream, opaque=True)
        copied.time_base = FRAME_SECONDS
        copied.codec_context.framerate = 1 / FRAME_SECONDS  # decord opens no short file without a rate
        if is_turned:
            copied.set_display_rotation(0)  # a backend would turn the frames: that is left to RgbScaler
        for number, (packet, position) in enumerate(zip(packets, positions.tolist(), strict=True)):
            packet.stream, packet.time_base = copied, FRAME_SECONDS
            packet.pts, packet.dts = position + delay, number
            packet.duration = 1 if number < len(packets) - 1 else LAST_DURATION
            packet.is_keyframe = number == 0
            output.mux(packet)
    size = (stream.codec_context.height, stream.codec_context.width)
    return Segment(sink.getvalue(), len(packets), tuple(int(i) for i in wanted), size, delay, is_first)
