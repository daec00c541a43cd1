"""Fingerprints: what of a clip survives a copy. Made in `prepare` from frames at hand, compared in duplicates.py.

    made = fingerprint_clip(clip, small, num_bytes_per_second=90_000)
    samples_of(made.pictures).shape             # (N, 384): four samples a second
    np.frombuffer(made.hashes, HASH_TYPE)       # (7 N) 64-bit hashes, of seven crops of each sample

A sample is the mean over half a second of the lit part of the frame, 16x16 luma and 8x8 of each colour difference. The
mean over time makes samples between two others nearly their average, so that copies match whose start is shifted by any
part of a sample, or whose frame rate differs. What is cut off before: dark bars. Frames that are flat get no hash: black
says nothing about where it is from.

Array names: N samples, P pixels of a picture, V variants (crops) of a sample, B bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from recaption.records import Clip
from recaption.video_io.frames import Frames

SAMPLES_PER_SECOND = 4.0


FRAMES_PER_SAMPLE = 8
"""Moments averaged into one sample, weighted as a triangle over two sample distances."""


LUMA_PX = 16


COLOUR_PX = 8


LUMA_VALUES = LUMA_PX * LUMA_PX


PICTURE_VALUES = LUMA_VALUES + 2 * COLOUR_PX * COLOUR_PX


HASH_CROPS = (
    (0.0, 0.0, 0.0, 0.0),
    (0.03, 0.03, 0.03, 0.03),
    (0.06, 0.06, 0.06, 0.06),
    (0.05, 0.0, 0.05, 0.0),
    (0.05, 0.0, 0.0, 0.05),
    (0.0, 0.05, 0.05, 0.0),
    (0.0, 0.05, 0.0, 0.05),
)
"""Cut off top, bottom, left and right before hashing. A copy cropped by 4 % all around shows what the original shows
inside its crop of 3 %; one that has lost its lower edge is nearest to a crop of a corner."""


NUM_BITS = 64


HASH_TYPE = np.dtype("<u8")


NO_HASH = np.uint64(0)
"""Of a sample too flat to tell from others; real hashes have half their bits set, or nearly so."""


MIN_CONTRAST = 6.0
"""Standard deviation of the luma (0..255) of a sample from which it is hashed. A black or plain frame has 0 to 2 after
encoding; the flattest of 49 real clips has 20."""


DARK_BAR = 32
"""A border row or column is a bar where no colour of it ever exceeds this: codecs ring at its edge."""


MAX_BAR_DEVIATION = 4.0
"""Standard deviation within a bar, over its pixels and over time: night sky is dark, too, and has more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFingerprint:
    """What the search for near copies needs of one clip, and what tells the best copy."""

    clip_id: str
    num_pixels: int
    """Of a frame, without dark bars."""
    seconds: float
    bytes_per_second: float
    """Of the video file that the clip is in."""
    num_samples: int
    hashes: bytes
    """num_samples x len(HASH_CROPS) little-endian uint64; `NO_HASH` where the sample is flat."""
    pictures: bytes
    """num_samples x PICTURE_VALUES uint8: luma 16x16, then blue and red differences 8x8 each, 128 = none."""


def fingerprint_clip(clip: Clip, small: Frames, *, bytes_per_second: float) -> ClipFingerprint:
    """Fingerprint of one clip.

    Args:
        small: every frame of the clip, short side about 48 px.
        bytes_per_second: size of the video file over its length.
    """
    shown = _frames_shown(small.pts_seconds - clip.start_seconds, clip.duration_seconds)
    used, place_NM = np.unique(shown, return_inverse=True)
    frames_THWC = small.pixels_THWC[used]
    top, bottom, left, right = lit_box(frames_THWC.max(axis=3))  # of the brightest colour: blue is no bar
    pictures_TP = np.stack([_picture(frame[top:bottom, left:right]) for frame in frames_THWC])
    samples_NP = _mean_over_time(pictures_TP, place_NM.reshape(shown.shape))
    height, width = frames_THWC.shape[1:3]
    # The row or column beside a bar is partly bar: not counted, or a copy in bars would pass for the larger one.
    lit_rows = bottom - top - (top > 0) - (bottom < height)
    lit_columns = right - left - (left > 0) - (right < width)
    return ClipFingerprint(
        clip_id=clip.clip_id,
        num_pixels=round(clip.width_px * lit_columns / width * (clip.height_px * lit_rows / height)),
        seconds=clip.duration_seconds,
        bytes_per_second=bytes_per_second,
        num_samples=len(samples_NP),
        hashes=hash_samples(samples_NP).astype(HASH_TYPE).tobytes(),
        pictures=samples_NP.tobytes(),
    )


def samples_of(pictures: bytes) -> np.ndarray:
    """(N, PICTURE_VALUES) uint8."""
    return np.frombuffer(pictures, np.uint8).reshape(-1, PICTURE_VALUES)


# --- samples ----------------------------------------------------------------------------------------------------------


def _frames_shown(times: np.ndarray, seconds: float) -> np.ndarray:
    """(N, M) number of the frame on screen at each of the M moments of each sample; -1 outside the clip becomes its
    nearest frame."""
    num_samples = max(1, round(seconds * SAMPLES_PER_SECOND))
    centres = (np.arange(num_samples) + 0.5) / SAMPLES_PER_SECOND
    moments = (np.arange(FRAMES_PER_SAMPLE) + 0.5) / FRAMES_PER_SAMPLE * 2 - 1  # in sample distances from the centre
    wanted_NM = np.clip(centres[:, None] + moments / SAMPLES_PER_SECOND, 0.0, max(seconds - 1e-6, 0.0))
    return np.clip(np.searchsorted(times, wanted_NM + 1e-6, side="right") - 1, 0, len(times) - 1)


def _mean_over_time(pictures_TP: np.ndarray, place_NM: np.ndarray) -> np.ndarray:
    moments = (np.arange(FRAMES_PER_SAMPLE) + 0.5) / FRAMES_PER_SAMPLE * 2 - 1
    weights = 1.0 - np.abs(moments)
    weights /= weights.sum()
    mean_NP = np.einsum("m,nmp->np", weights.astype(np.float32), pictures_TP[place_NM])
    return np.clip(np.rint(mean_NP), 0, 255).astype(np.uint8)


def _picture(frame_HWC: np.ndarray) -> np.ndarray:
    """(PICTURE_VALUES,) float32. The lit part is squeezed into a square, whatever its shape: so are its copies."""
    colours = cv2.cvtColor(np.ascontiguousarray(frame_HWC), cv2.COLOR_RGB2YCrCb)
    luma = cv2.resize(colours[..., 0].astype(np.float32), (LUMA_PX, LUMA_PX), interpolation=cv2.INTER_AREA)
    rest = cv2.resize(colours[..., 1:].astype(np.float32), (COLOUR_PX, COLOUR_PX), interpolation=cv2.INTER_AREA)
    return np.concatenate([luma.ravel(), rest[..., 1].ravel(), rest[..., 0].ravel()])


def lit_box(bright_THW: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right), half-open: the frame without its dark bars; all of it where nothing is left."""
    height, width = bright_THW.shape[1:]
    top, bottom = _lit_span(bright_THW.max(axis=(0, 2)), bright_THW.std(axis=(0, 2)))
    if bottom - top < height / 4:
        return 0, height, 0, width
    lit_THW = bright_THW[:, top:bottom]
    left, right = _lit_span(lit_THW.max(axis=(0, 1)), lit_THW.std(axis=(0, 1)))
    if right - left < width / 4:
        return 0, height, 0, width
    return top, bottom, left, right


def _lit_span(brightest: np.ndarray, deviation: np.ndarray) -> tuple[int, int]:
    is_lit = (brightest > DARK_BAR) | (deviation > MAX_BAR_DEVIATION)
    if not is_lit.any():
        return 0, 0
    return int(is_lit.argmax()), len(is_lit) - int(is_lit[::-1].argmax())


# --- hashes -----------------------------------------------------------------------------------------------------------


@cache
def _hash_basis() -> np.ndarray:
    """(V, P, B): for each crop the weights of the luma's pixels in each of 64 cosine coefficients of lowest frequency."""
    places = (np.arange(LUMA_PX) + 0.5) / LUMA_PX
    waves = sorted(
        ((u, v) for u in range(LUMA_PX) for v in range(LUMA_PX) if u or v), key=lambda w: (w[0] ** 2 + w[1] ** 2, w)
    )[:NUM_BITS]
    bases = []
    for top, bottom, left, right in HASH_CROPS:
        (down_UY, inside_Y), (across_UX, inside_X) = (_waves(places, *ends) for ends in ((top, bottom), (left, right)))
        basis_BP = np.stack([np.outer(down_UY[u], across_UX[v]).ravel() for u, v in waves])
        mean_P = np.outer(inside_Y, inside_X).ravel()
        basis_BP -= basis_BP.sum(1, keepdims=True) * (mean_P / mean_P.sum())  # blind to brightness
        bases.append(basis_BP.T)
    return np.stack(bases).astype(np.float32)


def _waves(places: np.ndarray, before: float, after: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines over what is left of one axis, one row per frequency, and how much of each pixel is left."""
    length = 1 - before - after
    inside = np.clip(np.minimum(places - before, 1 - after - places) * LUMA_PX + 0.5, 0, 1)
    return np.cos(np.pi * (places - before) / length * np.arange(LUMA_PX)[:, None]) * inside, inside


def hash_samples(samples_NP: np.ndarray) -> np.ndarray:
    """(N, V) uint64: the signs of the lowest cosine coefficients, lowest frequency in the highest bit."""
    luma_NP = samples_NP[:, :LUMA_VALUES].astype(np.float32)
    coefficients_NVB = np.einsum("np,vpb->nvb", luma_NP, _hash_basis(), optimize=True)
    packed = np.packbits(coefficients_NVB > 0, axis=2)
    hashes_NV = packed.view(">u8")[..., 0].astype(np.uint64)
    hashes_NV[luma_NP.std(axis=1) < MIN_CONTRAST] = NO_HASH
    return hashes_NV
