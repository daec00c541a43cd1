"""The frames of a clip that a captioner sees: one rule for who writes captions and for who checks them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recaption.records import Clip
from recaption.video_io import DecodeLimits, read_frames

if TYPE_CHECKING:
    from recaption.captioners import Captioner


def frames_of(clip: Clip, captioner: Captioner, decode: DecodeLimits, *, snap_seconds: float = 0.0) -> np.ndarray:
    """(T, H, W, 3) uint8: `captioner.num_frames` frames spread evenly, the middle of each of as many equal spans.

    Args:
        snap_seconds: a keyframe of the clip this close may stand in for a frame; see `read_frames`.

    Raises:
        VideoError: as `read_frames`.
    """
    count = min(captioner.num_frames, clip.num_frames)
    indices = clip.start_frame + ((np.arange(count) + 0.5) * clip.num_frames / count).astype(np.int64)
    short_side = min(captioner.frame_px, clip.width_px, clip.height_px)
    within = (clip.start_frame, clip.end_frame)
    frames = read_frames(
        clip.uri, indices, short_side_px=short_side, snap_seconds=snap_seconds, snap_within=within, limits=decode
    )
    return frames.pixels_THWC
