"""Perceptual fingerprints: 4 thumbnails a second and 64-bit DCT hashes of 7 crops of each.

    fingerprint = fingerprint_clip(clip, small, bytes_per_second=90_000)
    thumbnails_from_bytes(fingerprint.pictures).shape      # (N, 384): four thumbnails a second
    np.frombuffer(fingerprint.hashes, HASH_TYPE)           # (7 N) 64-bit hashes, of seven crops of each thumbnail

Robust to re-encoding, scaling, letterboxing, other frame rates and crops of up to 5 %. A thumbnail is the mean over half a
second of the frame without dark bars: 16x16 luma and 8x8 of each chroma channel. Because of the mean over time, a
thumbnail between two others is nearly their average, so that copies match whose start is shifted by a fraction of the
sampling step. Uniform frames get no hash and never match.

Array names: N thumbnails, P values of a thumbnail, V crops of a thumbnail, B bits, T frames, M moments of a thumbnail.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from recaption.records import Clip
from recaption.video_io.frames import Frames

THUMBNAILS_PER_SECOND = 4.0
FRAMES_PER_THUMBNAIL = 8
"""Moments averaged into one thumbnail, with triangular weights over two sampling steps."""
MAX_THUMBNAILS = 16_384
"""Of one clip: its first 68 minutes. Two frames ten hours apart are a clip of 144,000 thumbnails, and comparing two such
clips would cost the square of that."""
CHUNK_THUMBNAILS = 1024
"""Thumbnails computed at a time: 13 MB."""
LUMA_PX = 16
CHROMA_PX = 8
LUMA_VALUES = LUMA_PX * LUMA_PX
THUMBNAIL_VALUES = LUMA_VALUES + 2 * CHROMA_PX * CHROMA_PX
HASH_CROPS = (
    (0.0, 0.0, 0.0, 0.0),
    (0.03, 0.03, 0.03, 0.03),
    (0.06, 0.06, 0.06, 0.06),
    (0.05, 0.0, 0.05, 0.0),
    (0.05, 0.0, 0.0, 0.05),
    (0.0, 0.05, 0.05, 0.0),
    (0.0, 0.05, 0.0, 0.05),
)
"""Fractions cut off at the top, bottom, left and right before hashing. A copy cropped by 4 % on all sides is close to the
original's crop of 3 %; one cropped at the bottom only is closest to the crop of a corner."""
NUM_BITS = 64
HASH_TYPE = np.dtype("<u8")
NO_HASH = np.uint64(0)
"""Marks a thumbnail that is too uniform to hash; real hashes have about half their bits set."""
MIN_CONTRAST = 6.0
"""Minimum standard deviation of the luma (0..255) of a hashed thumbnail. A black or uniform frame has 0 to 2 after
encoding; the lowest of 49 real clips has 20."""
MAX_BAR_VALUE = 32
"""A border row or column is part of a bar if no RGB value ever exceeds this: codecs cause ringing at its edge."""
MAX_BAR_DEVIATION = 4.0
"""Maximum standard deviation within a bar, over its pixels and over time: a night sky is dark too, but varies more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFingerprint:
    """Fingerprint of one clip, and what ranks it among its duplicates. The fields are columns of RUN/fingerprints."""

    clip_id: str
    num_pixels: int
    """Pixels of a frame without dark bars."""
    seconds: float
    bytes_per_second: float
    """Bit rate of the source video file, in bytes."""
    num_samples: int
    """Number of thumbnails."""
    hashes: bytes
    """num_samples x len(HASH_CROPS) little-endian uint64; `NO_HASH` where the thumbnail is uniform."""
    pictures: bytes
    """Thumbnails: num_samples x THUMBNAIL_VALUES uint8: luma 16x16, then Cb and Cr 8x8 each, 128 = neutral."""


def fingerprint_clip(clip: Clip, small: Frames, *, bytes_per_second: float) -> ClipFingerprint:
    """Compute the fingerprint of one clip.

    Args:
        small: every frame of the clip, short side about 48 px.
        bytes_per_second: size of the video file over its length.
    """
    displayed_NM = _displayed_frames(small.pts_seconds - clip.start_seconds, clip.duration_seconds)
    used, index_NM = np.unique(displayed_NM, return_inverse=True)
    frames_THWC = small.pixels_THWC[used]
    top, bottom, left, right = content_box(frames_THWC.max(axis=3))  # maximum over RGB: a pure blue border is no bar
    frames_TP = np.stack([_thumbnail(frame[top:bottom, left:right]) for frame in frames_THWC])
    thumbnails_NP = _mean_over_time(frames_TP, index_NM.reshape(displayed_NM.shape))
    height, width = frames_THWC.shape[1:3]
    # The row or column next to a bar is partly bar: not counted, or a letterboxed copy could rank as the larger one.
    content_rows = bottom - top - (top > 0) - (bottom < height)
    content_columns = right - left - (left > 0) - (right < width)
    return ClipFingerprint(
        clip_id=clip.clip_id,
        num_pixels=round(clip.width_px * content_columns / width * (clip.height_px * content_rows / height)),
        seconds=clip.duration_seconds,
        bytes_per_second=bytes_per_second,
        num_samples=len(thumbnails_NP),
        hashes=hash_thumbnails(thumbnails_NP).astype(HASH_TYPE).tobytes(),
        pictures=thumbnails_NP.tobytes(),
    )


def thumbnails_from_bytes(pictures: bytes) -> np.ndarray:
    """(N, THUMBNAIL_VALUES) uint8 view of `ClipFingerprint.pictures`."""
    return np.frombuffer(pictures, np.uint8).reshape(-1, THUMBNAIL_VALUES)


# --- thumbnails -------------------------------------------------------------------------------------------------------


def _displayed_frames(times: np.ndarray, seconds: float) -> np.ndarray:
    """(N, M): index of the frame displayed at each of the M moments of each thumbnail; moments outside the clip are
    clamped to its first or last frame."""
    num_thumbnails = min(max(1, round(seconds * THUMBNAILS_PER_SECOND)), MAX_THUMBNAILS)
    centres = (np.arange(num_thumbnails) + 0.5) / THUMBNAILS_PER_SECOND
    moments = (
        np.arange(FRAMES_PER_THUMBNAIL) + 0.5
    ) / FRAMES_PER_THUMBNAIL * 2 - 1  # in sampling steps from the centre
    seconds_NM = np.clip(centres[:, None] + moments / THUMBNAILS_PER_SECOND, 0.0, max(seconds - 1e-6, 0.0))
    return np.clip(np.searchsorted(times, seconds_NM + 1e-6, side="right") - 1, 0, len(times) - 1)


def _mean_over_time(frames_TP: np.ndarray, index_NM: np.ndarray) -> np.ndarray:
    """(N, P) uint8: triangular-weighted mean over the M moments of each thumbnail."""
    moments = (np.arange(FRAMES_PER_THUMBNAIL) + 0.5) / FRAMES_PER_THUMBNAIL * 2 - 1
    weights = 1.0 - np.abs(moments)
    weights /= weights.sum()
    thumbnails_NP = np.empty((len(index_NM), frames_TP.shape[1]), np.uint8)
    for start in range(0, len(index_NM), CHUNK_THUMBNAILS):
        chunk = slice(start, start + CHUNK_THUMBNAILS)
        mean_NP = np.einsum("m,nmp->np", weights.astype(np.float32), frames_TP[index_NM[chunk]])
        thumbnails_NP[chunk] = np.clip(np.rint(mean_NP), 0, 255)
    return thumbnails_NP


def _thumbnail(frame_HWC: np.ndarray) -> np.ndarray:
    """(THUMBNAIL_VALUES,) float32 thumbnail of one frame, squashed to a square whatever its aspect ratio."""
    ycrcb = cv2.cvtColor(np.ascontiguousarray(frame_HWC), cv2.COLOR_RGB2YCrCb)
    luma = cv2.resize(ycrcb[..., 0].astype(np.float32), (LUMA_PX, LUMA_PX), interpolation=cv2.INTER_AREA)
    chroma = cv2.resize(ycrcb[..., 1:].astype(np.float32), (CHROMA_PX, CHROMA_PX), interpolation=cv2.INTER_AREA)
    return np.concatenate([luma.ravel(), chroma[..., 1].ravel(), chroma[..., 0].ravel()])


def content_box(max_rgb_THW: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right), half-open: the frame without dark bars; the whole frame where little would be left."""
    height, width = max_rgb_THW.shape[1:]
    top, bottom = _content_span(max_rgb_THW.max(axis=(0, 2)), max_rgb_THW.std(axis=(0, 2)))
    if bottom - top < height / 4:
        return 0, height, 0, width
    inner_THW = max_rgb_THW[:, top:bottom]
    left, right = _content_span(inner_THW.max(axis=(0, 1)), inner_THW.std(axis=(0, 1)))
    if right - left < width / 4:
        return 0, height, 0, width
    return top, bottom, left, right


def _content_span(brightest: np.ndarray, deviation: np.ndarray) -> tuple[int, int]:
    """(start, end) along one axis without dark bars at either end; (0, 0) if all of it is dark."""
    is_content = (brightest > MAX_BAR_VALUE) | (deviation > MAX_BAR_DEVIATION)
    if not is_content.any():
        return 0, 0
    return int(is_content.argmax()), len(is_content) - int(is_content[::-1].argmax())


# --- hashes -----------------------------------------------------------------------------------------------------------


@cache
def _hash_basis() -> np.ndarray:
    """(V, P, B): for each crop, the weights of the luma pixels in the 64 DCT coefficients of lowest frequency."""
    centres = (np.arange(LUMA_PX) + 0.5) / LUMA_PX
    frequencies = sorted(
        ((u, v) for u in range(LUMA_PX) for v in range(LUMA_PX) if u or v), key=lambda w: (w[0] ** 2 + w[1] ** 2, w)
    )[:NUM_BITS]
    bases = []
    for top, bottom, left, right in HASH_CROPS:
        (down_UY, inside_Y), (across_UX, inside_X) = (
            _cosines(centres, *ends) for ends in ((top, bottom), (left, right))
        )
        basis_BP = np.stack([np.outer(down_UY[u], across_UX[v]).ravel() for u, v in frequencies])
        mean_P = np.outer(inside_Y, inside_X).ravel()
        basis_BP -= basis_BP.sum(1, keepdims=True) * (mean_P / mean_P.sum())  # invariant to brightness
        bases.append(basis_BP.T)
    return np.stack(bases).astype(np.float32)


def _cosines(centres: np.ndarray, before: float, after: float) -> tuple[np.ndarray, np.ndarray]:
    """DCT cosines over one cropped axis, one row per frequency, and the fraction of each pixel inside the crop."""
    length = 1 - before - after
    inside = np.clip(np.minimum(centres - before, 1 - after - centres) * LUMA_PX + 0.5, 0, 1)
    return np.cos(np.pi * (centres - before) / length * np.arange(LUMA_PX)[:, None]) * inside, inside


def hash_thumbnails(thumbnails_NP: np.ndarray) -> np.ndarray:
    """(N, V) uint64: signs of the lowest DCT coefficients of each crop, lowest frequency in the highest bit."""
    luma_NP = thumbnails_NP[:, :LUMA_VALUES].astype(np.float32)
    coefficients_NVB = np.einsum("np,vpb->nvb", luma_NP, _hash_basis(), optimize=True)
    packed = np.packbits(coefficients_NVB > 0, axis=2)
    hashes_NV = packed.view(">u8")[..., 0].astype(np.uint64)
    hashes_NV[luma_NP.std(axis=1) < MIN_CONTRAST] = NO_HASH
    return hashes_NV
