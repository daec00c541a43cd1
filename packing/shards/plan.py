"""Assigns clips to shards: names and contents of all shards are fixed before anything is written.

    shards, rejects = plan_shards(clips, table)
    plan_hash(shards[0], recipe_hash)              # changes with the contents of the shard

The same clips give the same shards, in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from packing.buckets import Bucket, BucketTable, assign_bucket, bucket_name
from recaption.errors import UsageError
from recaption.run_folder import recipe_hash

BYTES_PER_PIXEL = 0.25
"""Estimate that turns `max_shard_bytes` into a number of samples: H.264 at crf 12 takes 1 to 2 bits per pixel."""
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""WebDataset keys end at the first dot; with their extension they stay below the 100 bytes of a ustar name."""
OtherText = tuple[str, str, int, float, float, str]
"""(source, kind, window, start_seconds, end_seconds, text): a further text of a clip, besides its caption."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardClip:
    """One captioned clip that passed the filters, with what sharding needs of it."""

    clip_id: str
    uri: str
    start_frame: int
    end_frame: int
    """Half-open, in the source's own numbering."""
    start_seconds: float
    end_seconds: float
    width_px: int
    height_px: int
    caption: str
    num_caption_tokens: int = 0
    other_texts: tuple[OtherText, ...] = ()
    audio: str = ""
    """`keep` or `encode` where its video has audio that the sample is to have (`ShardSettings.audio`); else ""."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedShard:
    """The clips of one tar. `name` is its path in the run folder without extension."""

    name: str
    bucket: Bucket
    clips: tuple[ShardClip, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedClip:
    """A clip that is in no shard."""

    clip_id: str
    reason: str
    detail: str


def plan_shards(
    clips: Iterable[ShardClip], table: BucketTable, *, folder: str = "shards"
) -> tuple[list[PlannedShard], list[RejectedClip]]:
    """Divide the clips of each bucket, sorted by clip_id, into shards of about equal size, whatever the order of `clips`.

    Raises:
        UsageError: two clips share a clip_id, or one cannot be the key of a sample.
    """
    per_bucket: dict[Bucket, list[ShardClip]] = {}
    rejects = []
    previous = ""
    for clip in sorted(clips, key=lambda c: c.clip_id):
        if clip.clip_id == previous:
            raise UsageError(f"clip {clip.clip_id} is listed twice")
        check_key(clip.clip_id)
        previous = clip.clip_id
        seconds = clip.end_seconds - clip.start_seconds
        bucket = assign_bucket(seconds, clip.width_px, clip.height_px, table)
        if bucket is None:
            detail = f"{seconds:.2f} s of {clip.height_px}x{clip.width_px}"
            rejects.append(RejectedClip(clip_id=clip.clip_id, reason="no_bucket", detail=detail))
        else:
            per_bucket.setdefault(bucket, []).append(clip)
    shards = []
    for bucket in sorted(per_bucket):
        for number, group in enumerate(_even_groups(per_bucket[bucket], _samples_per_shard(bucket, table))):
            name = f"{folder}/{bucket_name(bucket)}/{number:06d}"
            shards.append(PlannedShard(name=name, bucket=bucket, clips=tuple(group)))
    return shards, rejects


def _samples_per_shard(bucket: Bucket, table: BucketTable) -> int:
    estimate = bucket.num_frames * bucket.height_px * bucket.width_px * BYTES_PER_PIXEL
    return max(1, min(table.max_samples_per_shard, int(table.max_shard_bytes / estimate)))


def _even_groups(clips: list[ShardClip], limit: int) -> list[list[ShardClip]]:
    num_groups = -(-len(clips) // limit)
    edges = [len(clips) * i // num_groups for i in range(num_groups + 1)]
    return [clips[start:end] for start, end in pairwise(edges)]


def plan_hash(shard: PlannedShard, recipe: str) -> str:
    """Hash of the clips of a shard, their spans, captions, bucket and the recipe; paths do not count."""
    clips = [
        (
            c.clip_id,
            c.start_seconds,
            c.end_seconds,
            c.caption,
            *c.other_texts,
            *([f"audio {c.audio}"] if c.audio else []),
        )
        for c in shard.clips
    ]
    return recipe_hash([shard.name, clips, recipe])


def check_key(key: str) -> None:
    if not KEY_PATTERN.fullmatch(key):
        raise UsageError(f"{key!r} cannot be the key of a sample: up to 80 letters, digits, '_' and '-', no dots")
