"""Fingerprints of frames in memory, without a video file."""

from __future__ import annotations

import cv2
import numpy as np

from recaption.dedup.fingerprints import HASH_CROPS, HASH_TYPE, ClipFingerprint, fingerprint_clip
from recaption.records import Clip
from recaption.video_io.frames import Frames


def downscaled(pixels_THWC: np.ndarray) -> np.ndarray:
    """Frames with a short side of 48 px, like those of `scan`."""
    height, width = pixels_THWC.shape[1:3]
    scale = 48 / min(height, width)
    size = (round(width * scale), round(height * scale))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in pixels_THWC])


def fingerprint_of(
    pixels_THWC: np.ndarray, fps: float = 8.0, *, clip_id: str = "clip", start_seconds: float = 0.0
) -> ClipFingerprint:
    """Fingerprint of a clip with these frames that starts at `start_seconds` of its video."""
    num_frames, height_px, width_px = pixels_THWC.shape[:3]
    frames = Frames(downscaled(pixels_THWC), start_seconds + np.arange(num_frames) / fps, np.arange(num_frames))
    clip = Clip(
        clip_id=clip_id,
        video_id="0",
        uri="",
        shot_index=0,
        start_frame=0,
        end_frame=num_frames,
        fps=fps,
        start_seconds=start_seconds,
        end_seconds=start_seconds + num_frames / fps,
        width_px=width_px,
        height_px=height_px,
    )
    return fingerprint_clip(clip, frames, bytes_per_second=1000.0)


def hashes_of(fingerprint: ClipFingerprint) -> np.ndarray:
    """(N, V) uint64 hashes: thumbnails x crops."""
    return np.frombuffer(fingerprint.hashes, HASH_TYPE).reshape(fingerprint.num_samples, len(HASH_CROPS))
