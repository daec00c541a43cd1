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
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.stream import Discard

from recaption.decoding import orientation, webp
from recaption.decoding.backends.interface import Backend
from recaption.decoding.backends.stream_checks import frame_obstacle
from recaption.decoding.damage import matroska, trim
from recaption.decoding.damage.checked_decoder import CODECS_WITHOUT_CHECKSUMS, CheckedDecoder, check_size, error_text
from recaption.decoding.libav_log import ERROR_LOG
from recaption.decoding.messages import limit_text
from recaption.decoding.orientation import Orientation
from recaption.decoding.packet_index import MIN_SEEK_GAIN_FRAMES, FrameTimes, Keyframe, PacketIndex, read_packets
from recaption.decoding.picture import streams
from recaption.decoding.picture.deinterlace import deinterlaced
from recaption.decoding.picture.scaler import Scaler
from recaption.errors import VideoError

NUM_CACHED_TIMES = 16
"""Files whose frame times are cached: all clips of a long video cost one demux."""
MAX_CACHED_FRAMES = 2_000_000
"""Of all of these files together: 0.3 GB where every frame is a keyframe."""


class SeekMismatchError(Exception):
    """After a seek the decoder did not output the frame that the packet index expects next."""


class ColdStartError(Exception):
    """An interlaced frame is wanted, and decoding began at the keyframe before it: that is too late."""


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
        self.sample_aspect = Fraction(1)
        """Width of a pixel / its height; certain once a frame is decoded."""
        self.is_interlaced = False
        """Whether an interlaced frame was wanted so far."""
        self.cut: trim.Cut | None = None
        """Where the file is trimmed; certain once it is numbered."""
        self.total_seconds = 0.0
        """Length with what is trimmed."""
        self.seconds_passed = 0.0
        """Seconds of video that were decoded only to find damage."""
        self.on_first_pass: Callable[[float], None] = lambda seconds: None
        """Called with `seconds_passed` before that grows."""
        self.backend: Backend | None = None
        """Decodes frames by number in PyAV's place (backends/), wherever it can."""
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
        stream = streams.choose_stream(container)
        if stream is None:
            types = sorted({s.type for s in container.streams})
            raise VideoError("no_video_stream", f"stream types in this file: {', '.join(types) or 'none'}")
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
        check_size(height_px, width_px, self.limits["max_pixels"])

    def orientation_of(self, frame: Any) -> Orientation:
        """Rotation and flips of a frame. Where PyAV does not know some of its side data, only the angle is read."""
        try:
            matrices = [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
        except ValueError:
            return orientation.from_counterclockwise_degrees(frame.rotation)
        if not matrices:
            return Orientation()
        return orientation.from_display_matrix(np.frombuffer(matrices[0], "<i4").tolist())

    def frame_times(self, index: PacketIndex, ticks: list[int | None], frame: Any) -> FrameTimes:
        """Timestamps, and size and orientation by the first frame."""
        width_px = streams.square_pixel_width(frame.width, self.sample_aspect)
        self._check_size(frame.height, width_px)
        times = FrameTimes.from_index(index, ticks, frame.height, width_px, self.orientation_of(frame))
        return replace(times, cut=self.cut, obstacle=frame_obstacle(frame))

    def scaler(self, times: FrameTimes, height_px: int, width_px: int) -> Scaler:
        """A scaler to `height_px` x `width_px` as displayed."""
        self._check_size(height_px, width_px)
        return Scaler(times.orientation, height_px, width_px)

    # --- numbering --------------------------------------------------------------------------------------------------

    def packet_index(self) -> PacketIndex:
        """Demux everything once; where damage is to be trimmed, decode everything first and find out where it is.

        Raises:
            VideoError: truncated where the container's own table points past the end of the file; zero_frames;
                too_large.
        """
        if self.is_webp:
            return self._webp_index()
        if self.limits["on_damage"] == "trim":
            self.cut = trim.find_cut(self._index_to_trim, self._decoded_to_trim)
        index = self._read_index(self.cut)
        if index.damage is not None:
            raise VideoError("truncated", index.damage.detail)
        self._check_index(index)
        return index

    def _webp_index(self) -> PacketIndex:
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

    def _read_index(self, cut: trim.Cut | None) -> PacketIndex:
        with self.opened() as (container, stream):
            packets = container.demux(stream)
            ERROR_LOG.lines.clear()  # what probing read is read once more
            index = read_packets(
                packets if cut is None else trim.limit_packets(packets, cut.num_packets),
                format_name=container.format.name,
                codec=self.video_fields["codec"],
                time_base=stream.time_base,
                max_frames=self.limits["max_frames"],
            )
            if cut is not None:
                return index.ending_at(cut.last_tick)
            header_seconds = max(
                (container.duration or 0) / av.time_base, float((stream.duration or 0) * stream.time_base)
            )
            self.total_seconds = trim.total_seconds(index, header_seconds, self.limits["max_video_seconds"])
            damage = self._container_damage(container, stream, index)
            if damage is None or (damage.lost_dts is None and index.damage is not None):
                damage = index.damage
            return replace(index, damage=damage)

    def _container_damage(self, container: Any, stream: Any, index: PacketIndex) -> trim.Damage | None:
        if container.format.name.startswith("mov"):
            entries = stream.index_entries
            past_end = [i for i, entry in enumerate(entries) if entry.pos + entry.size > self.num_bytes]
            if past_end:
                detail = f"{len(past_end)} of {len(entries)} samples are past the end of the file"
                first = past_end[0]
                ends = past_end[-1] - first + 1 == len(past_end) and past_end[-1] + 1 == len(entries)
                return trim.Damage(detail, first, entries[first].timestamp if ends else None)
            if 0 < index.num_stored < len(entries):
                return trim.Damage(f"only {index.num_stored} of {len(entries)} samples can be read", index.num_stored)
        is_cut_off = any("ended prematurely" in line for line in ERROR_LOG.lines)
        if container.format.name.startswith("matroska") and is_cut_off:
            detail = f"the file ends inside a cluster, after {index.num_packets} packets"
            ends = matroska.is_cut_off(self.file, self.num_bytes)
            return trim.Damage(detail, index.num_stored, index.last_dts if ends else None)
        return None

    def _check_index(self, index: PacketIndex) -> None:
        self.video_fields["duration_seconds"] = index.seconds
        if not index.num_packets:
            raise VideoError("zero_frames", "the video stream has no frames")
        limit = self.limits["max_video_seconds"]
        if index.seconds > limit:
            detail = f"{index.seconds:.1f} s of video, more than {limit_text('max_video_seconds', limit)}"
            raise VideoError("too_large", detail)

    def _index_to_trim(self, cut: trim.Cut | None) -> PacketIndex:
        index = self._read_index(cut)
        if index.damage is None:
            self._check_index(index)
        self.seconds_passed += index.seconds
        self.on_first_pass(self.seconds_passed)
        return index

    def _decoded_to_trim(self, cut: trim.Cut | None, index: PacketIndex, watch: trim.PacketWatch) -> Generator[Any]:
        self.cut = cut
        return self.decoded(index, watch)

    def times(self) -> FrameTimes:
        """Number the frames: by packets where they can be trusted, else by decoding everything once."""
        times = _times_of_files.get(self._cache_key)
        if times is not None:
            self._check_size(times.height_px, times.width_px)
            self.cut = times.cut
            return times
        index = self.packet_index()
        with contextlib.closing(self.decoded(index)) as frames:
            first = next(frames, None)
            if first is None:
                raise VideoError("zero_frames", "there are packets, but none decodes to a frame")
            index = index.starting_at(first.pts)
            ticks = [first.pts] if index.is_seekable else [first.pts, *(frame.pts for frame in frames)]
        times = self.frame_times(index, ticks, first)
        self.cache_times(times)
        return times

    @property
    def _cache_key(self) -> tuple[Any, ...]:
        return (self.key, self.limits["on_damage"])

    def cache_times(self, times: FrameTimes) -> None:
        """Cache the frame times for the next request about the same file."""
        _times_of_files[self._cache_key] = times
        while len(_times_of_files) > 1 and (
            len(_times_of_files) > NUM_CACHED_TIMES
            or sum(len(one.ticks) for one in _times_of_files.values()) > MAX_CACHED_FRAMES
        ):
            _times_of_files.popitem(last=False)

    # --- decoding ---------------------------------------------------------------------------------------------------

    def pictures(self, index: PacketIndex, watch: Callable[[Iterator[Any]], Iterator[Any]]) -> Generator[Any]:
        """All frames from the start, in display order, without interlacing.

        Args:
            watch: gets the frames as they are decoded, and passes them on.
        """
        with contextlib.closing(self.decoded(index)) as frames:
            for _, frame in deinterlaced(enumerate(watch(frames))):
                yield frame

    def decoded(self, index: PacketIndex, watch: trim.PacketWatch | None = None) -> Generator[Any]:
        """All frames from the start, in display order, as they are stored.

        Raises:
            VideoError: unreadable where no frame decodes at all, truncated where damage follows good frames.
        """
        if self.is_webp:
            yield from webp.decode_frames(self.file, self.limits["max_pixels"])
            return
        with self.opened() as (container, stream):
            packets = container.demux(stream)
            if self.cut is not None:
                packets = trim.limit_packets(packets, self.cut.num_packets)
            yield from self._decode_packets(stream, packets if watch is None else watch(packets), index)

    def _decode_packets(self, stream: Any, packets: Iterator[Any], index: PacketIndex) -> Generator[Any]:
        codec = self.video_fields["codec"]
        decoder = CheckedDecoder(stream, codec, self.limits, may_start_mid_gop=index.may_start_mid_gop)
        for frame in decoder.frames(packets):
            if self.cut is not None and self.cut.is_after(frame.pts):
                return
            if decoder.num_decoded == 1:
                self.sample_aspect = streams.sample_aspect(stream)
            yield frame

    def frames_at(self, times: FrameTimes, indices: np.ndarray) -> Generator[Any]:
        """The frames with these indices (ascending, unique), decoded from the keyframe before where that is safe.

        Where an interlaced frame is wanted, decoding starts one keyframe earlier: its neighbours are needed, and H.264
        decoders know only after some frames whether one is interlaced.
        """
        done = 0
        if times.index.is_seekable:
            with self.opened() as (container, stream), contextlib.suppress(SeekMismatchError):
                while done < len(indices):
                    wanted = set(indices[done:].tolist())
                    start = self._start(times.index, indices[done])
                    frames = self._decode_from_keyframe(container, stream, times, start)
                    with contextlib.suppress(ColdStartError), contextlib.closing(frames):
                        for number, frame in deinterlaced(self._warm(frames, times.index, start, wanted), wanted):
                            if number != indices[done]:
                                continue
                            yield frame
                            done += 1
                            if done == len(indices) or self._should_seek(times.index, number, indices[done]):
                                break
                        else:
                            raise SeekMismatchError
        if done < len(indices):
            self.was_counted = True
            yield from self._frames_by_full_decode(times, indices[done:])

    def _start(self, index: PacketIndex, number: int) -> Keyframe | None:
        """The keyframe to start decoding from for frame `number`; None: the start of the file."""
        keyframe = index.keyframe_before(number)
        if self.is_interlaced and keyframe is not None:
            first = index.first_frame_at(keyframe)
            keyframe = index.keyframe_before(first - 1) if first else None
        return keyframe

    def _should_seek(self, index: PacketIndex, current: int, target: int) -> bool:
        """Whether seeking from frame `current` to the start for frame `target` skips enough frames."""
        return index.first_frame_at(self._start(index, target)) > current + MIN_SEEK_GAIN_FRAMES

    def _warm(
        self, frames: Iterator[tuple[int, Any]], index: PacketIndex, start: Keyframe | None, wanted: set[int]
    ) -> Iterator[tuple[int, Any]]:
        """Passes frames on until a wanted one is interlaced and decoding began at the keyframe before it."""
        for number, frame in frames:
            if frame.interlaced_frame and number in wanted:
                self.is_interlaced = True
                if start is not None and index.keyframe_before(number) == start:
                    raise ColdStartError
            yield number, frame

    def _decode_from_keyframe(
        self, container: Any, stream: Any, times: FrameTimes, keyframe: Keyframe | None
    ) -> Generator[tuple[int, Any]]:
        """(index, frame) from a keyframe (None: the start of the file) on, each checked against the packet index.

        Frames displayed before the keyframe (leading pictures of an open GOP) lack their references: left out.
        """
        expected = times.index.first_frame_at(keyframe)
        target = keyframe or times.index.keyframes[0]
        try:
            container.seek(min(target.dts, target.pts), stream=stream)
            packets = _packets_from_keyframe(container.demux(stream), target)
            if self.cut is not None:
                packets = trim.limit_packets(packets, self.cut.num_packets - target.position)
            for frame in self._decode_packets(stream, packets, times.index):
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
        num_done = 0
        with contextlib.closing(self.decoded(times.index)) as frames:
            for _, frame in deinterlaced(_as_numbered(frames, times), set(indices.tolist())):
                yield frame
                num_done += 1
                if num_done == len(indices):
                    return
        detail = f"frame {indices[num_done]} is in the packet index, but decoding ends before it"
        raise VideoError("frame_mismatch", detail)


_times_of_files: OrderedDict[tuple[Any, ...], FrameTimes] = OrderedDict()


def _as_numbered(frames: Iterator[Any], times: FrameTimes) -> Iterator[tuple[int, Any]]:
    """Frames of a sequential decode with their numbers, each checked against the packet index where that is trusted."""
    for number, frame in enumerate(frames):
        if times.index.is_seekable and (number >= len(times.ticks) or frame.pts != times.ticks[number]):
            raise VideoError("frame_mismatch", f"frame {number} of the packet index does not decode")
        yield number, frame


def _packets_from_keyframe(packets: Iterator[Any], target: Keyframe) -> Iterator[Any]:
    """Packets from keyframe `target` on. A seek may land earlier (MPEG-TS); landing later is an error."""
    for packet in packets:
        if packet.is_keyframe and packet.pts == target.pts:
            yield packet
            yield from packets
            return
        if not packet.size or (packet.dts is not None and packet.dts > target.dts):
            raise SeekMismatchError
