"""An exported dataset as a whole: its clips and what follows from them for a trainer's config."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from jobs.export.clip_files import ExportedClip
from jobs.export.video_models import VideoModel

NUM_FRAME_BUCKETS = 4
NUM_SIZE_BUCKETS = 8
"""More buckets waste batches: trainers fill a batch from one bucket."""


@dataclass(frozen=True)
class ExportedDataset:
    """What the index files and configs of a layout are made from."""

    root: str
    """Absolute path of the export, or its URI."""
    folder: str
    """Of the clips, below `root`."""
    clips: Sequence[ExportedClip]
    """In the order of their ids; only those that were written."""
    model: VideoModel
    licence: str

    def path(self, name: str = "") -> str:
        return f"{self.root}/{name}" if name else self.root

    @cached_property
    def _buckets(self) -> Counter[tuple[int, int, int]]:
        """(frames, height, width) as the model takes them -> clips. Clips that do not fit it are in none."""
        counts: Counter[tuple[int, int, int]] = Counter()
        for clip in self.clips:
            available = math.floor(clip.num_frames * self.model.fps / Fraction(clip.fps))
            num_frames = self.model.longest(available, is_image=clip.num_frames == 1)
            size = self.model.size_of(clip.height_px, clip.width_px)
            if num_frames and size:
                counts[num_frames, *size] += 1
        return counts

    @property
    def frame_buckets(self) -> list[int]:
        """At most `NUM_FRAME_BUCKETS` frame counts at the model's rate, ascending.

        They are quantiles of the clips' lengths, the shortest among them: every clip that fits the model has a bucket.
        """
        lengths = sorted(frames for (frames, _, _), count in self._buckets.items() for _ in range(count))
        if not lengths:
            return [self.model.max_frames]
        steps = range(NUM_FRAME_BUCKETS)
        return sorted({lengths[(len(lengths) - 1) * step // (NUM_FRAME_BUCKETS - 1)] for step in steps})

    @property
    def size_buckets(self) -> list[tuple[int, int, int]]:
        """The `NUM_SIZE_BUCKETS` most frequent (frames, height, width), most frequent first; frames of `frame_buckets`."""
        counts: Counter[tuple[int, int, int]] = Counter()
        for (frames, height_px, width_px), count in self._buckets.items():
            bucket = max(one for one in self.frame_buckets if one <= frames)
            counts[bucket, height_px, width_px] += count
        ordered = sorted(counts, key=lambda bucket: (-counts[bucket], bucket))
        return ordered[:NUM_SIZE_BUCKETS] or [(self.model.max_frames, *self._whole_area)]

    @property
    def largest_size(self) -> tuple[int, int]:
        """(height, width) of the most frequent bucket."""
        return self.size_buckets[0][1:]

    @property
    def _whole_area(self) -> tuple[int, int]:
        side = int(self.model.area_px**0.5) // self.model.size_multiple_px * self.model.size_multiple_px
        return side, side

    @property
    def side_px(self) -> int:
        """Side of a square with the area of the largest size: how many trainers name a resolution."""
        area_px = max(height * width for _, height, width in self.size_buckets)
        return round(area_px**0.5)

    @property
    def aspect_ratios(self) -> list[float]:
        """Distinct width / height of the sizes, ascending."""
        return sorted({round(width / height, 3) for _, height, width in self.size_buckets})

    @property
    def rates(self) -> dict[Fraction, list[ExportedClip]]:
        """Frames per second -> clips, ascending."""
        found: dict[Fraction, list[ExportedClip]] = {}
        for clip in self.clips:
            found.setdefault(Fraction(clip.fps), []).append(clip)
        return dict(sorted(found.items()))

    def totals(self) -> dict[str, Any]:
        """Counts for the card."""
        return {
            "clips": len(self.clips),
            "seconds": sum(clip.seconds for clip in self.clips),
            "bytes": sum(clip.num_video_bytes for clip in self.clips),
            **{how: sum(clip.cut == how for clip in self.clips) for how in ("copied", "cut", "encoded")},
            "with_audio": sum(bool(clip.audio) for clip in self.clips),
        }
