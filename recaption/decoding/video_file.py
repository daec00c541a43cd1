"""One untrusted video file: its packets numbered, its frames decoded, damage refused. Runs in the decoder child.

    video = VideoFile("a.mp4", b"", limits)
    times = video.times()                                   # all frames numbered, by packets where they can be trusted
    for frame in video.frames_at(times, np.array([0, 48])): ...

Files are opened by descriptor with every other protocol switched off, so a playlist named .mp4 opens nothing. Frames are
numbered as a sequential decode shows them; a damaged frame is refused, never handed out.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Discard, Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from recaption.decoding import orientation
from recaption.decoding import webp as animated_webp
from recaption.decoding.libav_log import CODECS_THAT_HIDE_DAMAGE, LOGGED, is_out_of_memory, undecoded_share
from recaption.decoding.orientation import Orientation
from recaption.decoding.packet_index import SEEK_GAIN_FRAMES, FrameTimes, Keyframe, PacketIndex, read_packets
from recaption.errors import VideoError

NUM_CACHED_TIMES = 16
"""Files whose frame times are remembered: all clips of a long video cost one demux."""


CODECS_WITHOUT_CHECKSUMS = frozenset({"vp8", "ffv1"})
"""Where their data run out inside a picture they show stale memory, and say so, if at all, only when they decode in slices.
A second decoder that does not has to agree: it sees other memory."""


EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
"""swscale flags for resizing: every kind of processor gives the same bytes. 0.3 ms from 720p to 85x48."""


PICTURES_BESIDE_SOUND = Disposition.attached_pic | Disposition.timed_thumbnails


class OutOfStepError(Exception):
    """After a seek the decoder did not show the frame that the index expects next."""


class VideoFile:
    """One input, opened as often as needed: by path, or from bytes in an unnamed temporary file."""

    def __init__(self, path: str | None, payload: bytes, limits: dict[str, Any]) -> None:
        self.limits = limits
        self.known: dict[str, Any] = {}
        """What is certain about the video so far (fields of records.Video); travels with an error too."""
        self.rates: tuple[Fraction | None, ...] = ()
        """Frame rates that the header claims."""
        self.was_counted = False
        """Whether frames had to be counted from the start after a seek went wrong."""
        self.file: Any = open(path, "rb") if path is not None else tempfile.TemporaryFile()  # noqa: SIM115
        if path is None:
            self.file.write(payload)
            self.file.flush()
        status = os.fstat(self.file.fileno())
        self.num_bytes = status.st_size
        self.key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) if path is not None else None
        self.is_webp = animated_webp.is_animated_webp(self.file)

    def close(self) -> None:
        self.file.close()

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
        streams = [s for s in container.streams.video if not s.disposition & PICTURES_BESIDE_SOUND]
        if not streams:
            kinds = sorted({s.type for s in container.streams})
            raise VideoError("no_video_stream", f"kinds of streams in this file: {', '.join(kinds) or 'none'}")
        stream = streams[0]  # as `ffmpeg -map 0:v:0`; "the best" would change with what probing happens to find
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all  # damage in sound or subtitles ends the demuxer early, without an error
        context = stream.codec_context
        if context is None:
            raise VideoError("unreadable", "no decoder for this codec")
        self.known["codec"] = context.codec.canonical_name
        self.rates = (stream.average_rate, stream.base_rate, stream.guessed_rate)
        self._check_size(context.height, context.width)
        context.thread_count = 2 if self.known["codec"] in CODECS_WITHOUT_CHECKSUMS else 1
        context.thread_type = "SLICE"
        context.options = {"max_pixels": str(self.limits["max_pixels"])}
        return stream

    def _check_size(self, height_px: int, width_px: int) -> None:
        limit = self.limits["max_pixels"]
        if height_px * width_px > limit:
            raise VideoError("too_large", f"{width_px}x{height_px} pixels, more than max_pixels = {limit}")

    def orientation_of(self, frame: Any) -> Orientation:
        """How to lay a frame down. PyAV cannot list side data newer than itself; then the angle alone is read."""
        try:
            matrices = [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
        except ValueError:
            return orientation.from_counterclockwise_degrees(frame.rotation)
        if not matrices:
            return Orientation()
        return orientation.from_display_matrix(np.frombuffer(matrices[0], "<i4").tolist())

    def scaler(self, times: FrameTimes, height_px: int, width_px: int) -> Scaler:
        """For frames of `height_px` x `width_px` as displayed."""
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
            self.known["codec"] = "webp"
            num_packets = animated_webp.num_pictures(self.file, self.limits["max_pixels"])
            return PacketIndex(
                time_base=animated_webp.TIME_BASE,
                ticks=np.zeros(0, np.int64),
                keyframes=(),
                num_packets=num_packets,
                num_stored=num_packets,
                is_seekable=False,
                may_start_anywhere=False,
            )
        with self.opened() as (container, stream):
            try:
                index = read_packets(
                    container.demux(stream),
                    format_name=container.format.name,
                    codec=self.known["codec"],
                    time_base=stream.time_base,
                    max_frames=self.limits["max_frames"],
                )
            except av.error.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                raise VideoError("truncated", f"packets end in an error: {error_text(error)}") from None
            if container.format.name.startswith("mov"):
                beyond = sum(entry.pos + entry.size > self.num_bytes for entry in stream.index_entries)
                if beyond:
                    raise VideoError("truncated", f"{beyond} of {len(stream.index_entries)} samples lie past the end")
                if 0 < index.num_stored < len(stream.index_entries):
                    detail = f"only {index.num_stored} of {len(stream.index_entries)} samples can be read"
                    raise VideoError("truncated", detail)
            is_cut_off = any("ended prematurely" in line for line in LOGGED.lines)
            if container.format.name.startswith("matroska") and is_cut_off:
                raise VideoError("truncated", f"the file ends inside a cluster, after {index.num_packets} packets")
        self.known["duration_seconds"] = index.seconds
        if not index.num_packets:
            raise VideoError("zero_frames", "the video stream holds no frames")
        limit = self.limits["max_video_seconds"]
        if index.seconds > limit:
            raise VideoError("too_large", f"{index.seconds:.1f} s of video, more than max_video_seconds = {limit}")
        return index

    def times(self) -> FrameTimes:
        """Number the frames: by packets where they can be trusted, else by decoding everything once."""
        times = _times_of_files.get(self.key) if self.key is not None else None
        if times is not None:
            self._check_size(times.height_px, times.width_px)
            return times
        index = self.packet_index()
        with contextlib.closing(self.decoded(index)) as frames:
            first = next(frames, None)
            if first is None:
                raise VideoError("zero_frames", "packets, but no frame to show")
            index = index.starting_at(first.pts)
            ticks = [first.pts] if index.is_seekable else [first.pts, *(frame.pts for frame in frames)]
        times = FrameTimes.shown(index, ticks, first.height, first.width, self.orientation_of(first))
        self.remember(times)
        return times

    def remember(self, times: FrameTimes) -> None:
        """Keep the times for the next request about the same file."""
        if self.key is not None:
            _times_of_files[self.key] = times
            while len(_times_of_files) > NUM_CACHED_TIMES:
                _times_of_files.popitem(last=False)

    # --- decoding ---------------------------------------------------------------------------------------------------

    def decoded(self, index: PacketIndex) -> Generator[Any]:
        """All frames from the start, in the order in which they are shown.

        Raises:
            VideoError: unreadable where no frame comes at all, truncated where damage follows good frames.
        """
        if self.is_webp:
            for picture in animated_webp.pictures(self.file, self.limits["max_pixels"]):
                frame = av.VideoFrame.from_ndarray(picture.pixels_HWC, format="rgb24")
                frame.pts, frame.duration, frame.time_base = picture.pts, picture.duration, animated_webp.TIME_BASE
                yield frame
            return
        with self.opened() as (container, stream):
            yield from self._frames_of(container.demux(stream), index.may_start_anywhere)

    def _frames_of(self, packets: Iterator[Any], may_start_anywhere: bool) -> Generator[Any]:
        num_shown, failure = 0, ""
        witness: Any = None
        hides_damage = self.known["codec"] in CODECS_THAT_HIDE_DAMAGE
        LOGGED.lines.clear()
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                frames = packet.decode()
                if witness is None and self.known["codec"] in CODECS_WITHOUT_CHECKSUMS:
                    witness = _second_decoder(packet.stream.codec_context)
                if witness is not None and not _same_pictures(frames, witness.decode(packet)):
                    raise VideoError("truncated", f"frame {num_shown} has no certain picture: its data are damaged")
            except av.error.FFmpegError as error:
                if isinstance(error, MemoryError) or is_out_of_memory(self.limits["max_memory_bytes"]):
                    raise MemoryError from None
                failure = error_text(error)
                if num_shown:
                    raise VideoError("truncated", f"decoding fails after {num_shown} frames: {failure}") from None
                if may_start_anywhere:
                    continue
                break
            if may_start_anywhere and not num_shown:
                LOGGED.lines.clear()
            elif hides_damage and LOGGED.lines:
                raise VideoError("truncated", f"damage near frame {num_shown}: {LOGGED.lines[0]}")
            for frame in frames:
                self._check_size(frame.height, frame.width)
                if frame.is_corrupt:
                    raise VideoError("truncated", f"frame {num_shown} is damaged: the decoder had to conceal errors")
                if hides_damage and (share := undecoded_share(frame)):
                    raise VideoError("truncated", f"{share:.0%} of frame {num_shown} was never decoded")
                num_shown += 1
                yield frame
        if failure and not num_shown:
            raise VideoError("unreadable", f"no frame decodes: {failure}")

    def frames_at(self, times: FrameTimes, wanted: np.ndarray) -> Generator[Any]:
        """The frames with these numbers (rising, unique), decoding from the nearest keyframe where that is safe."""
        done = 0
        if times.index.is_seekable:
            with self.opened() as (container, stream), contextlib.suppress(OutOfStepError):
                while done < len(wanted):
                    with contextlib.closing(self._from_keyframe(container, stream, times, wanted[done])) as numbered:
                        for number, frame in numbered:
                            if number != wanted[done]:
                                continue
                            yield frame
                            done += 1
                            if done == len(wanted) or _should_jump(times.index, number, wanted[done]):
                                break
                        else:
                            raise OutOfStepError
        if done < len(wanted):
            self.was_counted = True
            yield from self._counted_frames(times, wanted[done:])

    def _from_keyframe(self, container: Any, stream: Any, times: FrameTimes, wanted: int) -> Generator[tuple[int, Any]]:
        """(number, frame) from the last keyframe before frame `wanted` on, each checked against the index.

        Frames shown before the keyframe itself (leading pictures of an open GOP) lack their references: left out.
        """
        keyframe = times.index.keyframe_before(wanted)
        expected = times.index.first_frame_from(keyframe)
        target = keyframe or times.index.keyframes[0]
        try:
            container.seek(min(target.dts, target.pts), stream=stream)
            packets = _packets_from(container.demux(stream), target)
            for frame in self._frames_of(packets, times.index.may_start_anywhere):
                if keyframe is not None and frame.pts is not None and frame.pts < keyframe.pts:
                    continue
                if expected >= len(times.ticks) or frame.pts != times.ticks[expected]:
                    raise OutOfStepError
                yield expected, frame
                expected += 1
        except (av.error.FFmpegError, VideoError) as error:
            if isinstance(error, MemoryError):
                raise
            raise OutOfStepError from None  # counting from the start will say what is wrong

    def _counted_frames(self, times: FrameTimes, wanted: np.ndarray) -> Generator[Any]:
        """The same by decoding everything from the start and counting: right by definition."""
        remaining = iter(wanted)
        target = next(remaining)
        with contextlib.closing(self.decoded(times.index)) as frames:
            for number, frame in enumerate(frames):
                if times.index.is_seekable and (number >= len(times.ticks) or frame.pts != times.ticks[number]):
                    raise VideoError("frame_mismatch", f"frame {number} of the packet index does not come")
                if number == target:
                    yield frame
                    target = next(remaining, None)
                    if target is None:
                        return
        raise VideoError("frame_mismatch", f"frame {target} is promised, but decoding ends before it")


class Scaler:
    """Decoded frames to RGB as displayed, at one size; the conversion is set up once."""

    def __init__(self, turned: Orientation, height_px: int, width_px: int) -> None:
        self.turned = turned
        self.stored_height_px, self.stored_width_px = turned.size(height_px, width_px)
        self.reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> np.ndarray:
        if (frame.height, frame.width) == (self.stored_height_px, self.stored_width_px):
            # nothing to interpolate: PyAV's own conversion, byte for byte, and 20 times faster than EXACT
            flags = Interpolation.BILINEAR
        else:
            shrinks = self.stored_height_px * self.stored_width_px < frame.height * frame.width
            flags = EXACT | (Interpolation.AREA if shrinks else Interpolation.BICUBIC)
        rgb = self.reformatter.reformat(
            frame,
            self.stored_width_px,
            self.stored_height_px,
            "rgb24",
            interpolation=flags,
            threads=1,
        )
        return self.turned.apply(rgb.to_ndarray())


_times_of_files: OrderedDict[tuple[int, ...], FrameTimes] = OrderedDict()


def error_text(error: BaseException) -> str:
    """What libav says about it, without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def _second_decoder(context: Any) -> Any:
    second = av.CodecContext.create(context.name, "r")
    second.extradata, second.width, second.height, second.thread_count = (
        context.extradata,
        context.width,
        context.height,
        1,
    )
    return second


def _same_pictures(frames: list[Any], others: list[Any]) -> bool:
    pairs = zip(frames, others, strict=False)
    return len(frames) == len(others) and all(np.array_equal(a.to_ndarray(), b.to_ndarray()) for a, b in pairs)


def _should_jump(index: PacketIndex, number: int, wanted: int) -> bool:
    return index.first_frame_from(index.keyframe_before(wanted)) > number + SEEK_GAIN_FRAMES


def _packets_from(packets: Iterator[Any], target: Keyframe) -> Iterator[Any]:
    """Packets from the keyframe on. A seek may land earlier (MPEG-TS); landing later is an error."""
    for packet in packets:
        if packet.is_keyframe and packet.pts == target.pts:
            yield packet
            yield from packets
            return
        if not packet.size or (packet.dts is not None and packet.dts > target.dts):
            raise OutOfStepError
