"""Decoded frames and the limits under which they are decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recaption.decoding.messages import BackendName
from recaption.inputs.open_input import MAX_FETCH_SECONDS, MAX_INPUT_BYTES


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """Limits on time, memory and size for decoding one untrusted file."""

    max_wall_seconds: float = 60.0
    """Timeout of one call before the length of the video is known."""
    seconds_per_video_second: float = 4.0
    """Added to the timeout per second of video: 2160p HEVC decodes at about a quarter of real time on one loaded core."""
    max_memory_bytes: int = 2 << 30
    """Address space of the decoder child (RLIMIT_AS), 0.4 GB of it for Python and libraries; of one with another backend
    what is resident, 0.1 GB (decord) or 0.8 GB (torchcodec) of it for libraries."""
    max_pixels: int = 8192 * 8192
    """Per frame. 8K is 33 million; a 16K frame costs 0.4 GB as RGB alone."""
    max_video_seconds: float = 36_000.0
    """Measured by presentation times: 10 hours."""
    max_frames: int = 2_200_000
    """10 hours at 60 frames per second."""
    max_kept_bytes: int = 1 << 30
    """Frames of one video that this process keeps: 17 minutes at 30 fps as `prepare` sees them. It decodes longer videos
    twice, the second time clip by clip; a single clip, or frames read at full size, that take more are `too_large`."""
    max_input_bytes: int = MAX_INPUT_BYTES
    """Of a remote input, checked while it is downloaded: 10 hours of 1080p at 7 Mbit/s."""
    max_fetch_seconds: float = MAX_FETCH_SECONDS
    """Timeout of a download."""
    backend: BackendName = "av"
    """Decoder of frames that are read by number (caption, shard, export, train captioner): `av` (PyAV), or the extras
    `decord` and `torchcodec` (docs/decoders.md). PyAV numbers the frames in any case, and decodes what another backend
    refuses, reports as damaged or shows at another time; `prepare` decodes every video whole, always with PyAV."""
    max_host_connections: int = 8
    """Downloads at a time from one HTTP host, over all processes of a machine."""
    page_videos: bool = False
    """Fetch the videos of web pages with yt-dlp (extra `recaption[yt-dlp]`). You answer for the right to use them."""
    on_damage: Literal["refuse", "trim"] = "refuse"
    """What becomes of a file that is damaged in part: `refuse` fails it, `trim` keeps the frames before the first damage
    that are proven right and counts the seconds lost (docs/picture.md). Each stage then decodes every file once more."""


@dataclass(frozen=True)
class Frames:
    """Decoded frames, in the order of the requested indices."""

    pixels_THWC: np.ndarray
    """uint8 RGB, as displayed."""
    pts_seconds: np.ndarray
    """(T,) float64 presentation times in the file's own clock (it need not start at 0)."""
    indices: np.ndarray
    """(T,) int64 frame numbers within the video."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, span: slice) -> Frames:
        """A view of a slice: `frames[10:20]`."""
        return Frames(self.pixels_THWC[span], self.pts_seconds[span], self.indices[span])
