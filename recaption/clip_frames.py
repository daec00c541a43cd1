"""The frames of a clip that a captioner sees: one rule for who writes captions and for who checks them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recaption.records import Clip
from recaption.video_io import DecodeLimits, read_frames

if TYPE_CHECKING:
    from recaption.captioners import Captioner


def frames_of(clip: Clip, captioner: Captioner, decode: DecodeLimits) -> np.ndarray:
    """(T, H, W, 3) uint8: `captioner.num_frames` frames spread evenly, the middle of each of as many equal spans.

    Raises:
        VideoError: as `read_frames`.
    """
    count = min(captioner.num_frames, clip.num_frames)
    indices = clip.start_frame + ((np.arange(count) + 0.5) * clip.num_frames / count).astype(np.int64)
    short_side = min(captioner.frame_px, clip.width_px, clip.height_px)
    return read_frames(clip.uri, indices, short_side_px=short_side, limits=decode).pixels_THWC
