"""One video, opened once for all that is read of it: one download, one comparison with what was prepared, one demux.

    with open_video("s3://bucket/a.mp4", expected=InputState.of(video)) as opened:
        for clip in clips: opened.read_clip(clip.start_seconds, num_frames=17, ...)

    with OpenVideos(limits) as videos:              # the same for clips that come one by one
        for clip in clips: videos.open(clip.uri, states[clip.uri]).read_frames([clip.start_frame])

The parent opens the file; the decoder child gets the descriptor, and numbers the frames of a file once.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from recaption.decoding.audio.sound import SoundLevels
from recaption.decoding.audio.tracks import ClipAudio, from_message
from recaption.decoding.messages import (
    AudioRequest,
    ClipRequest,
    CutRequest,
    ProbeRequest,
    ReadRequest,
    Request,
    ScanRequest,
    TimesRequest,
)
from recaption.errors import PASSING_REASONS, UsageError, VideoError
from recaption.inputs.open_input import InputState, OpenedInput, local_state, open_input
from recaption.records import Video
from recaption.video_io import process as decoder_process
from recaption.video_io.client import DecodeResponse, FrameSink
from recaption.video_io.frames import DecodeLimits, Frames

MAX_OPEN_VIDEOS = 4
"""Of one worker: clips of a video come one after another, but in `shard` once per bucket."""
MAX_HELD_BYTES = 4 << 30
"""Of downloads that are held open for later clips; the newest one is held in any case."""


@dataclass(frozen=True)
class Scan:
    """Metadata, timestamps and downscaled frames of one video, from one decode."""

    video: Video
    """`num_frames` is the number that decodes. Where `video.status` is "failed", there are no frames below."""
    pts_seconds: np.ndarray
    """(N,) float64, presentation time of every frame."""
    small: Frames
    """Every frame, short side `small_px`."""
    detail: Frames
    """One frame per `detail_every_seconds`, short side `detail_px`."""


def failed_scan(video: Video) -> Scan:
    """Of a video that cannot be used: no frames."""
    no_frames = Frames(np.zeros((0, 0, 0, 3), np.uint8), np.zeros(0), np.zeros(0, np.int64))
    return Scan(video, np.zeros(0), no_frames, no_frames)


class CutVideo(NamedTuple):
    """What was cut out of a video without encoding it."""

    mp4: bytes
    """Empty where that is not possible."""
    obstacle: str
    """Why it is not."""
    audio: str = ""
    """Its audio tracks, as `ClipAudio.description`."""
    lost: tuple[str, ...] = ()
    """Audio streams that are left out, and why."""


class OpenedVideo:
    """A video whose bytes are those expected, for as long as it is open."""

    def __init__(self, opened: OpenedInput, limits: DecodeLimits) -> None:
        self.input, self.limits, self.uri = opened, limits, opened.uri
        self.sound: SoundLevels | None = None
        """Of the first scan; later ones do not decode the audio again."""

    def probe(self) -> Video:
        """As `reader.probe`."""
        return self._decode_whole(ProbeRequest())[0]

    def scan(self, *, small_px: int = 48, detail_px: int = 256, detail_every_seconds: float = 0.5) -> Scan:
        """As `reader.scan`."""
        request = ScanRequest(small_px=small_px, detail_px=detail_px, detail_every_seconds=detail_every_seconds)
        video, response = self._decode_whole(request)
        if video.status != "ok" or response is None:
            return failed_scan(video)
        pts_seconds = response.pts_seconds
        small = Frames(response.buffers["small"].filled(), pts_seconds, np.arange(len(pts_seconds)))
        indices = np.array(response.header["detail"], np.int64)
        detail = Frames(response.buffers["detail"].filled(), pts_seconds[indices], indices)
        return Scan(video, pts_seconds, small, detail)

    def scan_into(
        self, sink: FrameSink, *, small_px: int = 48, detail_px: int = 256, detail_every_seconds: float = 0.5
    ) -> tuple[Video, np.ndarray]:
        """As `scan`, with frames that go to `sink` as they come: (the video, failed or not; its presentation times)."""
        request = ScanRequest(
            small_px=small_px,
            detail_px=detail_px,
            detail_every_seconds=detail_every_seconds,
            measures_audio=self.sound is None,
        )
        video, response = self._decode_whole(request, sink)
        return video, np.zeros(0) if response is None else response.pts_seconds

    def read_frames(
        self,
        indices: Sequence[int] | np.ndarray | None,
        *,
        short_side_px: int | None = None,
        snap_seconds: float = 0.0,
        snap_within: tuple[int, int] = (0, 1 << 62),
    ) -> Frames:
        """As `reader.read_frames`.

        Raises:
            VideoError: as there, or source_changed.
        """
        frame_indices = None if indices is None else [int(i) for i in indices]
        if frame_indices == []:
            raise UsageError("read_frames: indices is empty; pass None for all frames")
        request = ReadRequest(
            indices=frame_indices, short_side_px=short_side_px, snap_seconds=snap_seconds, snap_within=snap_within
        )
        return self._read(request)

    def read_clip(
        self,
        start_seconds: float,
        *,
        num_frames: int,
        fps: float,
        height_px: int,
        width_px: int,
        start_frame: int,
        end_frame: int,
    ) -> np.ndarray:
        """As `reader.read_clip`.

        Raises:
            VideoError: as there, or source_changed.
        """
        request = ClipRequest(
            start_seconds=float(start_seconds),
            num_frames=num_frames,
            fps=float(fps),
            height_px=height_px,
            width_px=width_px,
            start_frame=int(start_frame),
            end_frame=int(end_frame),
        )
        return self._read(request).pixels_THWC

    def cut(self, start_frame: int, end_frame: int, *, audio_seconds: tuple[float, float] | None = None) -> CutVideo:
        """Frames [start_frame, end_frame) as they are stored, in an mp4, if that is possible.

        Args:
            audio_seconds: start and end of the span, whose audio is wanted too.

        Raises:
            VideoError: the file cannot be used, does not have these frames, or has other bytes than expected.
        """
        request = CutRequest(start_frame=int(start_frame), end_frame=int(end_frame), audio_seconds=audio_seconds)
        try:
            response = DecodeResponse(self.input.file, self.limits, request)
            response.raise_for_error(self.uri)
        except VideoError as error:
            if audio_seconds is None or error.reason in PASSING_REASONS:
                raise
            return self.cut(start_frame, end_frame)._replace(lost=(f"{error.reason}: {error.detail}",))
        self.input.check_unchanged()
        header = response.header
        return CutVideo(bytes(response.payload), header["obstacle"], header["audio"], tuple(header["lost"]))

    def frame_seconds(self, start_frame: int, end_frame: int) -> np.ndarray:
        """(N,) float64 presentation times of frames [start_frame, end_frame); nothing is decoded for them.

        Raises:
            VideoError: as `read_frames`.
        """
        request = TimesRequest(start_frame=int(start_frame), end_frame=int(end_frame))
        response = DecodeResponse(self.input.file, self.limits, request)
        response.raise_for_error(self.uri)
        self.input.check_unchanged()
        return response.pts_seconds

    def read_audio(self, start_seconds: float, end_seconds: float, *, may_copy: bool = True) -> ClipAudio:
        """The audio of a span, ready to be written into an mp4. What is damaged is lost, which is said; no error is raised.

        Args:
            may_copy: whether packets may be copied; else all is encoded anew, and no byte of the source is in it.

        Raises:
            VideoError: of `PASSING_REASONS`, such as source_changed: later everything may be there.
        """
        seconds = {"start_seconds": float(start_seconds), "end_seconds": float(end_seconds)}
        request = AudioRequest(**seconds, may_copy=may_copy)
        try:
            response = DecodeResponse(self.input.file, self.limits, request)
            response.raise_for_error(self.uri)
            audio = from_message(response.header, bytes(response.payload))
        except VideoError as error:
            if error.reason in PASSING_REASONS:
                raise
            audio = ClipAudio(lost=(f"{error.reason}: {error.detail}",))
        self.input.check_unchanged()
        return audio

    def _read(self, request: ReadRequest | ClipRequest) -> Frames:
        frames = decode(self.input.file, self.uri, self.limits, request)
        self.input.check_unchanged()
        return frames

    def _decode_whole(self, request: Request, sink: FrameSink | None = None) -> tuple[Video, DecodeResponse | None]:
        """Send a request that decodes everything: (the video, failed or not; the response where there is one)."""
        response: DecodeResponse | None = None
        fields: dict[str, Any] = {}
        try:
            state = asdict(self.input.state())
        except VideoError as error:
            return failed_video(self.uri, error), None
        try:
            response = DecodeResponse(self.input.file, self.limits, request, sink)
            fields |= response.header["video"]
            response.raise_for_error(self.uri)
            if isinstance(request, ScanRequest):
                if self.sound is None:
                    first = float(response.pts_seconds[0])
                    self.sound = SoundLevels.from_bytes(response.payload, first, fields)
                fields |= self.sound.columns
        except VideoError as error:
            fields |= {"status": "failed", "reason": error.reason, "detail": error.detail}
        try:
            self.input.check_unchanged()
        except VideoError as error:
            return failed_video(self.uri, error), None
        return Video(uri=self.uri, **state, **fields), response


def failed_video(uri: str, error: VideoError) -> Video:
    """An input that could not be read to its end; with its stat, so that the next run sees whether it changed."""
    state: dict[str, Any] = asdict(local_state(uri) or InputState())
    return Video(uri=uri, **state, status="failed", reason=error.reason, detail=error.detail)


def decode(file: Any, uri: str, limits: DecodeLimits, request: ReadRequest | ClipRequest) -> Frames:
    """The frames of one request.

    Raises:
        VideoError: the file cannot be used, or (frame_mismatch) it does not have these frames.
    """
    try:
        response = DecodeResponse(file, limits, request)
    except VideoError as error:
        raise VideoError(error.reason, error.detail, uri=uri) from None
    response.raise_for_error(uri)
    return response.frames(np.array(response.header["indices"], np.int64))


@contextlib.contextmanager
def open_video(
    uri: str | os.PathLike[str], *, expected: InputState | str | None = None, limits: DecodeLimits | None = None
) -> Iterator[OpenedVideo]:
    """Open a video for any number of reads.

    Args:
        expected: the state that `prepare` recorded, or a video_id: the bytes have to be those. None = whatever is there.

    Raises:
        VideoError: unreadable, too_large, fetch_failed, or source_changed where it has other bytes than expected.
    """
    limits = limits or DecodeLimits()
    with open_input(
        uri,
        expected=expected,
        max_bytes=limits.max_input_bytes,
        max_seconds=limits.max_fetch_seconds,
        max_host_connections=limits.max_host_connections,
        page_videos=limits.page_videos,
    ) as opened:
        yield OpenedVideo(opened, limits)


class OpenVideos:
    """The last few videos, held open across their clips. Close it, or use it in a `with` statement.

    Raises:
        UsageError: the backend of the limits does not work on this machine.
    """

    def __init__(self, limits: DecodeLimits) -> None:
        if limits.backend != "av":
            decoder_process.start(limits.backend)  # one that is not installed is an error at once
        self.limits = limits
        self._open: OrderedDict[
            tuple[str, InputState | None], tuple[contextlib.ExitStack, OpenedVideo | VideoError]
        ] = OrderedDict()

    def open(self, uri: str, expected: InputState | None) -> OpenedVideo:
        """The open video, or a newly opened one in the place of the one that was used longest ago.

        Raises:
            VideoError: as `open_video`; the same one again for the next clips of this video.
        """
        key = (uri, expected)
        if key not in self._open:
            stack = contextlib.ExitStack()
            try:
                found: OpenedVideo | VideoError = stack.enter_context(
                    open_video(uri, expected=expected, limits=self.limits)
                )
            except VideoError as error:
                found = error
            self._open[key] = (stack, found)
        self._open.move_to_end(key)
        self._close_oldest()
        found = self._open[key][1]
        if isinstance(found, VideoError):
            raise VideoError(found.reason, found.detail, uri=found.uri)
        return found

    def _close_oldest(self) -> None:
        while len(self._open) > 1 and (len(self._open) > MAX_OPEN_VIDEOS or self._num_held_bytes() > MAX_HELD_BYTES):
            _, (stack, _) = self._open.popitem(last=False)
            stack.close()

    def _num_held_bytes(self) -> int:
        videos = [video for _, video in self._open.values() if isinstance(video, OpenedVideo)]
        return sum(os.fstat(one.input.file.fileno()).st_size for one in videos if not one.input.is_local)

    def forget_failures(self) -> None:
        """Try videos that could not be opened once more from here on."""
        for key in [key for key, (_, found) in self._open.items() if isinstance(found, VideoError)]:
            del self._open[key]

    def close(self) -> None:
        """Close all videos."""
        while self._open:
            self._open.popitem()[1][0].close()

    def __enter__(self) -> OpenVideos:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
