"""Buckets: the few (frames, height, width, fps) that clips are written at, and the choice of one for each clip.

    table = BucketTable(fps=8, num_frames=(9, 17), max_areas_px=(96 * 96,))
    bucket = assign_bucket(2.5, 1920, 1080, table)      # Bucket(num_frames=17, height_px=64, width_px=112, fps=8)
    bucket_name(bucket)                                  # '17f-64x112-8fps'

Aspect ratios are kept up to a crop of less than one `size_multiple_px`; nothing is ever scaled up.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from recaption.errors import UsageError

FRAME_TOLERANCE = 0.05
"""In frames at the table's rate. Containers round times (1 ms in WebM and Matroska, 0.024 frames at 24 fps), so a clip
that is short by less than this fraction of one frame still counts that frame."""
CROP_WEIGHT = 4.0
"""Cropped content counts four times as much as the same fraction of resolution lost: it is gone, not just coarser."""


@dataclass(frozen=True, order=True, slots=True)
class Bucket:
    """Exact size of every sample in one folder of shards."""

    num_frames: int
    height_px: int
    width_px: int
    fps: int


def bucket_name(bucket: Bucket) -> str:
    """`17f-144x256-8fps` (frames, height x width, rate): a folder name."""
    return f"{bucket.num_frames}f-{bucket.height_px}x{bucket.width_px}-{bucket.fps}fps"


def parse_bucket(name: str) -> Bucket:
    """The inverse of `bucket_name`.

    Raises:
        UsageError: `name` is not the name of a bucket.
    """
    match = re.fullmatch(r"([1-9]\d*)f-([1-9]\d*)x([1-9]\d*)-([1-9]\d*)fps", name)
    if match is None:
        raise UsageError(f"{name!r} is not the name of a bucket, which looks like 17f-144x256-8fps")
    return Bucket(*(int(number) for number in match.groups()))


@dataclass(frozen=True, kw_only=True)
class BucketTable:
    """The buckets, and how samples are encoded and sharded."""

    fps: int = 8
    """Frames per second of every sample; clips are resampled to it by timestamp."""
    num_frames: tuple[int, ...] = (9, 17, 33)
    """Lengths in frames, each 4k+1: video autoencoders encode the first frame and then groups of four."""
    max_areas_px: tuple[int, ...] = (96 * 96,)
    """Target areas, height x width. A clip goes to the largest that is not above its own area."""
    size_multiple_px: int = 16
    """Heights and widths are multiples of this: spatial stride of the compressor x patch of the transformer."""
    max_crop_fraction: float = 0.2
    """A clip that would lose a larger fraction of its pixels to the crop has no bucket."""
    codec: str = "libx264"
    """Encoder: libx264, libx265 or libvpx-vp9."""
    crf: int = 12
    """Constant rate factor of the encoder: 0 is lossless, 12 is hard to tell from the source."""
    max_samples_per_shard: int = 128
    """One shard is one unit of work and of resume, so it should take minutes, not hours."""
    max_shard_bytes: int = 256 << 20
    """Target, by an estimate of the bytes per pixel: the samples of a shard are fixed before they are encoded."""

    def __post_init__(self) -> None:
        _check_distinct("num_frames", self.num_frames)
        _check_distinct("max_areas_px", self.max_areas_px)
        for num_frames in self.num_frames:
            if num_frames < 1 or num_frames % 4 != 1:
                below = max(1, (num_frames - 1) // 4 * 4 + 1)
                raise UsageError(
                    f"{num_frames=} is not 4k+1, so a video autoencoder would lose frames; use {below} or {below + 4}"
                )
        if self.size_multiple_px < 2 or self.size_multiple_px % 2:
            raise UsageError(
                f"size_multiple_px={self.size_multiple_px} must be even and positive: video codecs halve colour"
            )
        for area_px in self.max_areas_px:
            if area_px < self.size_multiple_px**2:
                raise UsageError(
                    f"max_areas_px={area_px} is less than a square of size_multiple_px={self.size_multiple_px}"
                )
        if not 0 <= self.max_crop_fraction < 1:
            raise UsageError(
                f"max_crop_fraction={self.max_crop_fraction} must be a fraction from 0 up to, not including, 1"
            )
        for name in ("fps", "max_samples_per_shard", "max_shard_bytes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")


def _check_distinct(name: str, values: tuple[int, ...]) -> None:
    if not values or len(set(values)) != len(values):
        raise UsageError(f"{name}={tuple(values)} must name at least one value, each once")


def num_frames_in(seconds: float, fps: int) -> int:
    """Frames of a clip of `seconds` at `fps`; at least 1, since even an image has one."""
    return max(1, math.floor(seconds * fps + FRAME_TOLERANCE))


def assign_bucket(seconds: float, width_px: int, height_px: int, table: BucketTable) -> Bucket | None:
    """The bucket of a clip, or None (drop reason `no_bucket`) where it is too short, too small or too elongated.

    Args:
        seconds: length of the clip.
        width_px: as displayed, like `height_px`.
    """
    available = num_frames_in(seconds, table.fps)
    fitting = [n for n in table.num_frames if n <= available]
    size = fit_size(height_px, width_px, tuple(table.max_areas_px), table.size_multiple_px, table.max_crop_fraction)
    if not fitting or size is None:
        return None
    return Bucket(max(fitting), *size, table.fps)


@lru_cache(maxsize=4096)
def fit_size(
    height_px: int, width_px: int, max_areas_px: tuple[int, ...], multiple_px: int, max_crop_fraction: float
) -> tuple[int, int] | None:
    """Height and width to write a clip at, by scaling to cover it and cropping less than one multiple along one axis.

    The target area is the largest of `max_areas_px` not above the clip's own, or the clip's own where all are larger.
    Of all multiples within it, the pair with the least 4 x fraction cropped + fraction of the target area unused.
    """
    native_area_px = height_px * width_px
    target_px = max((a for a in max_areas_px if a <= native_area_px), default=native_area_px)
    best: tuple[float, int, int] | None = None
    for height, width in _candidate_sizes(height_px, width_px, multiple_px):
        if height * width > target_px:
            continue
        crop = crop_fraction(height_px, width_px, height, width)
        if crop > max_crop_fraction:
            continue
        loss = CROP_WEIGHT * crop + 1 - height * width / target_px
        candidate = (loss, -height, -width)
        if best is None or candidate < best:
            best = candidate
    return None if best is None else (-best[1], -best[2])


def _candidate_sizes(height_px: int, width_px: int, multiple_px: int) -> set[tuple[int, int]]:
    """Each width with the height of the native aspect ratio, rounded down to a multiple; and vice versa."""
    sizes = set()
    for width in range(multiple_px, width_px + 1, multiple_px):
        sizes.add((width * height_px // width_px // multiple_px * multiple_px, width))
    for height in range(multiple_px, height_px + 1, multiple_px):
        sizes.add((height, height * width_px // height_px // multiple_px * multiple_px))
    return {(height, width) for height, width in sizes if height and width}


def crop_fraction(native_height_px: int, native_width_px: int, height_px: int, width_px: int) -> float:
    """Fraction of the source's pixels lost by scaling to cover `height_px` x `width_px` and centre-cropping."""
    across, down = height_px * native_width_px, width_px * native_height_px
    return 1 - min(across, down) / max(across, down)
