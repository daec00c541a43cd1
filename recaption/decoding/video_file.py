"""Frame-exact decoding of one untrusted video file: packet index, seeking, damage detection. Runs in the decoder child.

    video = VideoFile(open(descriptor, "rb"), limits)
    times = video.times()                                   # all frames numbered, by packets where they can be trusted
    for frame in video.frames_at(times, np.array([0, 48])): ...

Files are opened by descriptor with every other protocol disabled, so a playlist named .mp4 opens nothing. Frames are
numbered in the order of a sequential decode; a damaged frame is an error, never returned.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.stream import Discard, Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from recaption.decoding import orientation, webp
from recaption.decoding.libav_log import CODECS_THAT_HIDE_DAMAGE, ERROR_LOG, is_out_of_memory, undecoded_fraction
from recaption.decoding.messages import limit_text
from recaption.decoding.orientation import Orientation
from recaption.decoding.packet_index import MIN_SEEK_GAIN_FRAMES, FrameTimes, Keyframe, PacketIndex, read_packets
from recaption.errors import VideoError

NUM_CACHED_TIMES = 16
"""Files whose frame times are cached: all clips of a long video cost one demux."""
MAX_CACHED_FRAMES = 2_000_000
"""Of all of these files together: 0.3 GB where every frame is a keyframe."""
CODECS_WITHOUT_CHECKSUMS = frozenset({"vp8", "ffv1"})
"""Where data end inside a frame these decoders output uninitialised memory, and report it, if at all, only when decoding
in slices. Each packet is therefore decoded twice (with 2 threads and with 1): a difference is damage."""
BIT_EXACT_SCALING = Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
"""swscale flags for resizing: the same bytes on every CPU. 0.3 ms from 720p to 85x48."""
STILL_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
"""Cover art and thumbnails: streams of type video that are not the video."""


class SeekMismatchError(Exception):
    """After a seek the decoder did not output the frame that the packet index expects next."""


class VideoFile:
    """One input: a file that the parent opened, read from its start as often as needed."""

    def __init__(self, file: BinaryIO, limits: dict[str, Any]) -> None:
        self.limits = limits
        self.video_fields: dict[str, Any] = {}
        """Fields of records.Video that are certain so far; sent with an error too."""
        self.rates: tuple[Fraction | None, ...] = ()
        """Frame rates from the header."""
        self.was_counted = False
        """Whether frames were counted by decoding from the start, because a seek failed."""
        self.file = file
        status = os.fstat(self.file.fileno())
        self.num_bytes = status.st_size
        self.key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        self.is_webp = webp.is_animated_webp(self.file)

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[Any, Any]]:
        """(container, video stream), at the start of the file."""
        self.file.seek(0)
        options = {"fd": str(self.file.fileno()), "protocol_whitelist": "fd"}
        try:
            container = av.open("fd:", options=options, metadata_errors="replace")
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, MemoryError):
                raise
            raise VideoError("unreadable", f"not a video file: {error_text(error)}") from None
        with container:
            yield container, self._video_stream(container)

    def _video_stream(self, container: Any) -> Any:
        streams = [s for s in container.streams.video if not s.disposition & STILL_PICTURES]
        if not streams:
            types = sorted({s.type for s in container.streams})
            raise VideoError("no_video_stream", f"stream types in this file: {', '.join(types) or 'none'}")
        stream = streams[0]  # as `ffmpeg -map 0:v:0`; "the best" stream would depend on what probing happens to find
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all  # damage in audio or subtitles ends the demuxer early, without an error
        context = stream.codec_context
        if context is None:
            raise VideoError("unreadable", "no decoder for this codec")
        self.video_fields["codec"] = context.codec.canonical_name
        self.rates = (stream.average_rate, stream.base_rate, stream.guessed_rate)
        self._check_size(context.height, context.width)
        context.thread_count = 2 if self.video_fields["codec"] in CODECS_WITHOUT_CHECKSUMS else 1
        context.thread_type = "SLICE"
        context.options = {"max_pixels": str(self.limits["max_pixels"])}
        return stream

    def _check_size(self, height_px: int, width_px: int) -> None:
        limit = self.limits["max_pixels"]
        if height_px * width_px > limit:
            raise VideoError("too_large", f"{width_px}x{height_px} pixels, more than {limit_text('max_pixels', limit)}")

    def orientation_of(self, frame: Any) -> Orientation:
        """Rotation and flips of a frame. Where PyAV does not know some of its side data, only the angle is read."""
        try:
            matrices = [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
        except ValueError:
            return orientation.from_counterclockwise_degrees(frame.rotation)
        if not matrices:
            return Orientation()
        return orientation.from_display_matrix(np.frombuffer(matrices[0], "<i4").tolist())

    def scaler(self, times: FrameTimes, height_px: int, width_px: int) -> Scaler:
        """A scaler to `height_px` x `width_px` as displayed."""
        self._check_size(height_px, width_px)
        return Scaler(times.orientation, height_px, width_px)

    # --- numbering --------------------------------------------------------------------------------------------------

    def packet_index(self) -> PacketIndex:
        """Demux everything once.

        Raises:
            VideoError: truncated where the container's own table points past the end of the file; zero_frames;
                too_large.
        """
        if self.is_webp:
            self.video_fields["codec"] = "webp"
            num_packets = webp.count_frames(self.file, self.limits["max_pixels"])
            return PacketIndex(
                time_base=webp.TIME_BASE,
                ticks=np.zeros(0, np.int64),
                keyframes=(),
                num_packets=num_packets,
                num_stored=num_packets,
                is_seekable=False,
                may_start_mid_gop=False,
            )
        with self.opened() as (container, stream):
            try:
                index = read_packets(
                    container.demux(stream),
                    format_name=container.format.name,
                    codec=self.video_fields["codec"],
                    time_base=stream.time_base,
                    max_frames=self.limits["max_frames"],
                )
            except av.error.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                raise VideoError("truncated", f"packets end in an error: {error_text(error)}") from None
            if container.format.name.startswith("mov"):
                num_past_end = sum(entry.pos + entry.size > self.num_bytes for entry in stream.index_entries)
                if num_past_end:
                    detail = f"{num_past_end} of {len(stream.index_entries)} samples are past the end of the file"
                    raise VideoError("truncated", detail)
                if 0 < index.num_stored < len(stream.index_entries):
                    detail = f"only {index.num_stored} of {len(stream.index_entries)} samples can be read"
                    raise VideoError("truncated", detail)
            is_cut_off = any("ended prematurely" in line for line in ERROR_LOG.lines)
            if container.format.name.startswith("matroska") and is_cut_off:
                raise VideoError("truncated", f"the file ends inside a cluster, after {index.num_packets} packets")
        self.video_fields["duration_seconds"] = index.seconds
        if not index.num_packets:
            raise VideoError("zero_frames", "the video stream has no frames")
        limit = self.limits["max_video_seconds"]
        if index.seconds > limit:
            detail = f"{index.seconds:.1f} s of video, more than {limit_text('max_video_seconds', limit)}"
            raise VideoError("too_large", detail)
        return index

    def times(self) -> FrameTimes:
        """Number the frames: by packets where they can be trusted, else by decoding everything once."""
        times = _times_of_files.get(self.key)
        if times is not None:
            self._check_size(times.height_px, times.width_px)
            return times
        index = self.packet_index()
        with contextlib.closing(self.decoded(index)) as frames:
            first = next(frames, None)
            if first is None:
                raise VideoError("zero_frames", "there are packets, but none decodes to a frame")
            index = index.starting_at(first.pts)
            ticks = [first.pts] if index.is_seekable else [first.pts, *(frame.pts for frame in frames)]
        times = FrameTimes.from_index(index, ticks, first.height, first.width, self.orientation_of(first))
        self.cache_times(times)
        return times

    def cache_times(self, times: FrameTimes) -> None:
        """Cache the frame times for the next request about the same file."""
        _times_of_files[self.key] = times
        while len(_times_of_files) > 1 and (
            len(_times_of_files) > NUM_CACHED_TIMES
            or sum(len(one.ticks) for one in _times_of_files.values()) > MAX_CACHED_FRAMES
        ):
            _times_of_files.popitem(last=False)

    # --- decoding ---------------------------------------------------------------------------------------------------

    def decoded(self, index: PacketIndex) -> Generator[Any]:
        """All frames from the start, in display order.

        Raises:
            VideoError: unreadable where no frame decodes at all, truncated where damage follows good frames.
        """
        if self.is_webp:
            for webp_frame in webp.decode_frames(self.file, self.limits["max_pixels"]):
                frame = av.VideoFrame.from_ndarray(webp_frame.pixels_HWC, format="rgb24")
                frame.pts, frame.duration, frame.time_base = webp_frame.pts, webp_frame.duration, webp.TIME_BASE
                yield frame
            return
        with self.opened() as (container, stream):
            yield from self._decode_packets(container.demux(stream), index.may_start_mid_gop)

    def _decode_packets(self, packets: Iterator[Any], may_start_mid_gop: bool) -> Generator[Any]:
        num_decoded, failure = 0, ""
        second_decoder: Any = None
        hides_damage = self.video_fields["codec"] in CODECS_THAT_HIDE_DAMAGE
        ERROR_LOG.lines.clear()
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                frames = packet.decode()
                if second_decoder is None and self.video_fields["codec"] in CODECS_WITHOUT_CHECKSUMS:
                    second_decoder = _open_second_decoder(packet.stream.codec_context)
                if second_decoder is not None and not _frames_equal(frames, second_decoder.decode(packet)):
                    raise VideoError("truncated", f"two decodes of frame {num_decoded} differ: its data are damaged")
            except av.error.FFmpegError as error:
                if isinstance(error, MemoryError) or is_out_of_memory(self.limits["max_memory_bytes"]):
                    raise MemoryError from None
                failure = error_text(error)
                if num_decoded:
                    raise VideoError("truncated", f"decoding fails after {num_decoded} frames: {failure}") from None
                if may_start_mid_gop:
                    continue
                break
            if may_start_mid_gop and not num_decoded:
                ERROR_LOG.lines.clear()
            elif hides_damage and ERROR_LOG.lines:
                raise VideoError("truncated", f"damage near frame {num_decoded}: {ERROR_LOG.lines[0]}")
            for frame in frames:
                self._check_size(frame.height, frame.width)
                if frame.is_corrupt:
                    raise VideoError("truncated", f"frame {num_decoded} is damaged: the decoder had to conceal errors")
                if hides_damage and (share := undecoded_fraction(frame)):
                    raise VideoError("truncated", f"{share:.0%} of frame {num_decoded} was never decoded")
                num_decoded += 1
                yield frame
        if failure and not num_decoded:
            raise VideoError("unreadable", f"no frame decodes: {failure}")

    def frames_at(self, times: FrameTimes, indices: np.ndarray) -> Generator[Any]:
        """The frames with these indices (ascending, unique), decoded from the keyframe before where that is safe."""
        done = 0
        if times.index.is_seekable:
            with self.opened() as (container, stream), contextlib.suppress(SeekMismatchError):
                while done < len(indices):
                    numbered_frames = self._decode_from_keyframe(container, stream, times, indices[done])
                    with contextlib.closing(numbered_frames):
                        for number, frame in numbered_frames:
                            if number != indices[done]:
                                continue
                            yield frame
                            done += 1
                            if done == len(indices) or _should_seek(times.index, number, indices[done]):
                                break
                        else:
                            raise SeekMismatchError
        if done < len(indices):
            self.was_counted = True
            yield from self._frames_by_full_decode(times, indices[done:])

    def _decode_from_keyframe(
        self, container: Any, stream: Any, times: FrameTimes, index: int
    ) -> Generator[tuple[int, Any]]:
        """(index, frame) from the last keyframe before frame `index` on, each checked against the packet index.

        Frames displayed before the keyframe (leading pictures of an open GOP) lack their references: left out.
        """
        keyframe = times.index.keyframe_before(index)
        expected = times.index.first_frame_at(keyframe)
        target = keyframe or times.index.keyframes[0]
        try:
            container.seek(min(target.dts, target.pts), stream=stream)
            packets = _packets_from_keyframe(container.demux(stream), target)
            for frame in self._decode_packets(packets, times.index.may_start_mid_gop):
                if keyframe is not None and frame.pts is not None and frame.pts < keyframe.pts:
                    continue
                if expected >= len(times.ticks) or frame.pts != times.ticks[expected]:
                    raise SeekMismatchError
                yield expected, frame
                expected += 1
        except (av.error.FFmpegError, VideoError) as error:
            if isinstance(error, MemoryError):
                raise
            raise SeekMismatchError from None  # decoding from the start will report what is wrong

    def _frames_by_full_decode(self, times: FrameTimes, indices: np.ndarray) -> Generator[Any]:
        """The frames with these indices by decoding from the start and counting: right by definition."""
        remaining = iter(indices)
        target = next(remaining)
        with contextlib.closing(self.decoded(times.index)) as frames:
            for number, frame in enumerate(frames):
                if times.index.is_seekable and (number >= len(times.ticks) or frame.pts != times.ticks[number]):
                    raise VideoError("frame_mismatch", f"frame {number} of the packet index does not decode")
                if number == target:
                    yield frame
                    target = next(remaining, None)
                    if target is None:
                        return
        raise VideoError("frame_mismatch", f"frame {target} is in the packet index, but decoding ends before it")


class Scaler:
    """Converts decoded frames to RGB as displayed, at one size; the conversion is set up once."""

    def __init__(self, orientation: Orientation, height_px: int, width_px: int) -> None:
        self.orientation = orientation
        self.stored_height_px, self.stored_width_px = orientation.size(height_px, width_px)
        self.reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> np.ndarray:
        if (frame.height, frame.width) == (self.stored_height_px, self.stored_width_px):
            # nothing to interpolate: PyAV's own conversion, byte for byte, and 20 times faster than EXACT
            flags = Interpolation.BILINEAR
        else:
            shrinks = self.stored_height_px * self.stored_width_px < frame.height * frame.width
            flags = BIT_EXACT_SCALING | (Interpolation.AREA if shrinks else Interpolation.BICUBIC)
        rgb = self.reformatter.reformat(
            frame, self.stored_width_px, self.stored_height_px, "rgb24", interpolation=flags, threads=1
        )
        return self.orientation.apply(rgb.to_ndarray())


_times_of_files: OrderedDict[tuple[int, ...], FrameTimes] = OrderedDict()


def error_text(error: BaseException) -> str:
    """libav's message, without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def _open_second_decoder(context: Any) -> Any:
    second = av.CodecContext.create(context.name, "r")
    second.extradata, second.width, second.height, second.thread_count = (
        context.extradata,
        context.width,
        context.height,
        1,
    )
    return second


def _frames_equal(frames: list[Any], others: list[Any]) -> bool:
    pairs = zip(frames, others, strict=False)
    return len(frames) == len(others) and all(np.array_equal(a.to_ndarray(), b.to_ndarray()) for a, b in pairs)


def _should_seek(index: PacketIndex, current: int, target: int) -> bool:
    """Whether seeking from frame `current` to the keyframe before frame `target` skips enough frames."""
    return index.first_frame_at(index.keyframe_before(target)) > current + MIN_SEEK_GAIN_FRAMES


def _packets_from_keyframe(packets: Iterator[Any], target: Keyframe) -> Iterator[Any]:
    """Packets from keyframe `target` on. A seek may land earlier (MPEG-TS); landing later is an error."""
    for packet in packets:
        if packet.is_keyframe and packet.pts == target.pts:
            yield packet
            yield from packets
            return
        if not packet.size or (packet.dts is not None and packet.dts > target.dts):
            raise SeekMismatchError
