"""Samples of shards, videos and latents: tar members and index rows."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from packing.buckets import Bucket, bucket_name
from packing.shards import latent_codec as latents
from packing.shards.plan import ShardClip
from recaption.errors import UsageError
from recaption.ledger.latent_statistics import ChannelStatistics
from recaption.records import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentSample(Sample):
    """One row of RUN/latents/<name>/index.parquet; `sha256` is that of the .npy member, and .scale.npy if there is one."""

    latent_channels: int
    latent_frames: int
    latent_height: int
    latent_width: int
    latent_dtype: str
    """One of `latents.LATENT_DTYPES`."""
    round_trip_psnr_db: float | None
    """Of the clip decoded from the latent in the tar, rounding included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One sample to be written into a tar, or the reason why it failed."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    """Extension without dot -> bytes; empty where `reason` is set."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Columns of the parquet row; the writer adds shard, offset_bytes, num_bytes, sha256 and status."""
    reason: str | None = None
    detail: str = ""
    statistics: ChannelStatistics | None = None
    """Of a latent, after rounding to its dtype."""


def video_entry(
    clip: ShardClip, bucket: Bucket, mp4: bytes, *, num_latent_tokens: int, audio: str = "", detail: str = ""
) -> Entry:
    """A transcoded clip as members .mp4 .json .txt. Without the path of the source: the bytes depend on content only.

    Args:
        audio: what audio is in the mp4, as `Sample.audio`.
        detail: what of its audio is lost, for the row.
    """
    description = {
        "clip_id": clip.clip_id,
        "caption": clip.caption,
        "bucket": bucket_name(bucket),
        **dataclasses.asdict(bucket),
        "source_start_seconds": clip.start_seconds,
        "source_end_seconds": clip.end_seconds,
    }
    if clip.other_texts:
        names = ("source", "kind", "window", "start_seconds", "end_seconds", "text")
        description["other_texts"] = [dict(zip(names, text, strict=True)) for text in clip.other_texts]
    if audio:
        description["audio"] = audio
    members = {"mp4": mp4, "json": _canonical_json(description), "txt": clip.caption.encode()}
    fields = _video_fields(clip, bucket, num_latent_tokens) | {"audio": audio}
    return Entry(key=clip.clip_id, members=members, fields=fields, detail=detail)


def failed_entry(clip: ShardClip, bucket: Bucket, *, reason: str, detail: str) -> Entry:
    """A clip that could not be transcoded: a row with a reason from `errors.FAILURE_REASONS`, no members."""
    return Entry(key=clip.clip_id, fields=_video_fields(clip, bucket, 0), reason=reason, detail=detail)


def _video_fields(clip: ShardClip, bucket: Bucket, num_latent_tokens: int) -> dict[str, Any]:
    return {
        "bucket": bucket_name(bucket),
        **dataclasses.asdict(bucket),
        "num_latent_tokens": num_latent_tokens,
        "num_caption_tokens": clip.num_caption_tokens,
        "caption": clip.caption,
    }


def latent_shard_name(compressor: str, shard: str) -> str:
    """Name of the latents shard of a video shard: `shards/B/000000.tar` -> `latents/<compressor>/B/000000`.

    Raises:
        UsageError: `compressor` cannot be the name of a folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", compressor):
        raise UsageError(f"{compressor!r} cannot name a folder of latents: use letters, digits, '.', '_' and '-'")
    bucket, number = shard.removesuffix(".tar").split("/")[-2:]
    return f"latents/{compressor}/{bucket}/{number}"


def latent_entry(
    sample: Sample,
    latent: np.ndarray,
    *,
    num_latent_tokens: int,
    dtype: str = "float16",
    measure: Callable[[np.ndarray], float] | None = None,
    details: dict[str, Any] | None = None,
) -> Entry:
    """A latent (C, t, h, w) as members .npy (and .scale.npy) and .json; one that `dtype` cannot hold becomes a failed entry.

    Args:
        dtype: one of `latents.LATENT_DTYPES`.
        measure: round-trip PSNR in dB of the latent after rounding.
        details: plain JSON values for the .json member (compressor).
    """
    latents.check_latent_dtype(dtype)
    shape = latent.shape
    fields = {name: getattr(sample, name) for name in _COPIED_COLUMNS} | {
        "num_latent_tokens": num_latent_tokens,
        **dict(zip(("latent_channels", "latent_frames", "latent_height", "latent_width"), shape)),
        "latent_dtype": dtype,
    }
    try:
        members = latents.encode_latent(latent, dtype)
    except ValueError as error:
        return Entry(key=sample.clip_id, fields=fields, reason="write_failed", detail=str(error))
    restored = latents.decode_latent(members, dtype, shape)
    measured = {"round_trip_psnr_db": round(measure(restored), 2)} if measure is not None else {}
    description = {"clip_id": sample.clip_id, "caption": sample.caption, "bucket": sample.bucket, "dtype": dtype}
    members["json"] = _canonical_json({**description, **measured, **(details or {})})
    fields |= measured
    return Entry(key=sample.clip_id, members=members, fields=fields, statistics=ChannelStatistics.from_latent(restored))


def failed_latent_entry(sample: Sample, *, reason: str, detail: str) -> Entry:
    """A sample that could not be encoded: a row with a reason from `errors.FAILURE_REASONS`, no members."""
    fields = {name: getattr(sample, name) for name in _COPIED_COLUMNS}
    return Entry(key=sample.clip_id, fields=fields, reason=reason, detail=detail)


_COPIED_COLUMNS = ("bucket", "num_frames", "height_px", "width_px", "fps", "num_caption_tokens", "caption")


def _canonical_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
