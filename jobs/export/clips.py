"""Clips of an export: those of the run that pass the filters and have a text, and where every other clip stays.

    planned = plan_clips(run, recipe, settings, model, layout)
    planned.clips[0].caption, planned.counts["dropped"]          # "A red circle ...", {"blurry": 2, "too_short": 1}

The states are the ledger's: kept clips are exported whether they are in a shard or not, and the buckets of the shards do not
matter: a clip that the shards lack for `no_bucket`, or where transcoding failed, is exported.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

import pyarrow as pa

from jobs.export.clip_files import ExportClip
from jobs.export.layouts import Layout
from jobs.export.settings import ExportSettings
from jobs.export.video_models import VideoModel
from jobs.recipe.settings import Recipe
from packing.buckets import num_frames_in
from packing.shards.plan import check_key
from recaption.captions.mixture import captions_for_sample
from recaption.captions.repeated import read_repeated
from recaption.captions.sets import caption_set_pattern, caption_sets, default_caption_set, mark_repeated_captions
from recaption.captions.text import CAPTION_KINDS
from recaption.dedup.near_duplicates import read_pairs
from recaption.errors import UsageError
from recaption.inputs.names import TAR
from recaption.ledger.ledger import read_clips
from recaption.ledger.spans import read_clip_metadata
from recaption.quality.filters import HDR_TRANSFERS, PLUGIN_PREFIX, drop_reasons, plugin_scores
from recaption.quality.plugins import check_plugin_thresholds
from recaption.records import Caption, Clip, ClipScores, Video, from_table, schema_of
from recaption.run_folder import RunFolder

COPIED_CODECS = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4"})
"""Codecs of clips that are exported as they are stored: those that the trainers' decoders read in an mp4."""
VARIABLE_RATE = 0.002
"""A clip whose frames per second differ from its video's by more than this fraction gets its own average rate."""


@dataclass
class PlannedClips:
    """The clips of an export in the order of their ids, and the counts of all others."""

    clips: list[ExportClip] = field(default_factory=list)
    caption_set: str = ""
    total: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason (`errors.DROP_REASONS`) -> clips."""
    waiting: Counter[str] = field(default_factory=Counter)
    """Stage that they wait for -> clips."""
    seconds: dict[str, float] = field(default_factory=lambda: {"total": 0.0, "dropped": 0.0, "waiting": 0.0})
    """total, dropped, waiting; the rest is that of `clips`."""

    def drop(self, clip: Clip, reason: str) -> None:
        self.dropped[reason] += 1
        self.seconds["dropped"] += clip.duration_seconds


def plan_clips(
    run: RunFolder, recipe: Recipe, settings: ExportSettings, model: VideoModel, layout: Layout
) -> PlannedClips:
    """Decide for every clip of the run whether it is exported, and as what.

    Raises:
        UsageError: no clips or no such caption set.
    """
    table = read_clips(run)
    if not table.num_rows:
        raise UsageError(f"{run.uri} holds no clips yet: run `recaption prepare --videos ... --out {run.uri}` first")
    set_name = settings.captions or default_caption_set(run)
    if set_name is None or set_name not in caption_sets(run):
        missing = f"no caption set {set_name!r}" if set_name else "no captions yet"
        raise UsageError(f"{run.uri} has {missing}: run `recaption caption --run {run.uri}` first")
    captions = _captions(run, recipe, set_name)
    videos = {row.uri: row for row in from_table(run.read_tables("videos/part-*.parquet", schema_of(Video)), Video)}
    check_plugin_thresholds(recipe.filters, plugin_scores(table))
    reasons = drop_reasons(table, recipe.filters, read_pairs(run))
    planned = PlannedClips(caption_set=set_name, total=table.num_rows)
    listed = read_clip_metadata(run)
    clips, scores = from_table(table, Clip), _scores(table)
    seen: set[str] = set()
    for clip, clip_scores, reason in zip(clips, scores, reasons, strict=True):
        planned.seconds["total"] += clip.duration_seconds
        if reason is None and clip.clip_id in seen:  # without the filter of duplicates: one name, one file
            reason = "duplicate"
        if reason is not None:
            planned.drop(clip, reason)
            continue
        check_key(clip.clip_id)
        seen.add(clip.clip_id)
        size = _size(clip, videos[clip.uri], settings, model, layout)
        if isinstance(size, str):
            planned.drop(clip, size)
            continue
        texts = captions.get(clip.clip_id, [])
        exported = _export_clip(
            clip, videos[clip.uri], clip_scores, texts, size, settings, listed.get(clip.clip_id, {})
        )
        if exported is not None:
            planned.clips.append(exported)
        elif any(text.reason is not None and _is_wanted(text, settings.kinds) for text in texts):
            planned.drop(clip, "bad_caption")
        else:
            planned.waiting["caption"] += 1
            planned.seconds["waiting"] += clip.duration_seconds
    planned.clips.sort(key=lambda clip: clip.clip_id)
    return planned


def _scores(table: pa.Table) -> list[dict[str, float | None]]:
    """Name -> score of each clip, built-in ones and those of plug-ins."""
    names = [name for name in ClipScores.__dataclass_fields__ if name != "clip_id"]
    own = plugin_scores(table)
    columns = [table[name].to_pylist() for name in (*names, *(PLUGIN_PREFIX + name for name in own))]
    return [dict(zip((*names, *own), values, strict=True)) for values in zip(*columns, strict=True)]


def _captions(run: RunFolder, recipe: Recipe, set_name: str) -> dict[str, list[Caption]]:
    """Clip -> all its texts in the set, bad ones too."""
    table: pa.Table = run.read_tables(caption_set_pattern(set_name), schema_of(Caption))
    table = mark_repeated_captions(table, read_repeated(run, set_name), recipe.filters.max_clips_per_caption)
    texts: dict[str, list[Caption]] = {}
    for caption in from_table(table, Caption):
        texts.setdefault(caption.clip_id, []).append(caption)
    return texts


def _is_wanted(caption: Caption, kinds: Iterable[str]) -> bool:
    return (caption.source if caption.source == "original" else caption.kind) in kinds


@dataclass(frozen=True, slots=True)
class _Size:
    num_frames: int
    height_px: int
    width_px: int
    fps: Fraction


def _size(clip: Clip, video: Video, settings: ExportSettings, model: VideoModel, layout: Layout) -> _Size | str:
    """Frames, size and rate that the clip is exported at; or its drop reason."""
    min_frames = model.max_frames + 1 if layout.takes_windows else 1
    if not settings.fit:
        fps = native_fps(clip, video)
        even = clip.height_px - clip.height_px % 2, clip.width_px - clip.width_px % 2
        if not all(even):
            return "no_bucket"
        return _Size(clip.num_frames, *even, fps) if clip.num_frames >= min_frames else "too_short"
    num_frames = num_frames_in(clip.duration_seconds, model.fps)
    if not layout.takes_windows:
        num_frames = model.longest(num_frames, is_image=clip.num_frames == 1)
    if num_frames < min_frames:
        return "too_short"
    size = model.size_of(clip.height_px, clip.width_px)
    return "no_bucket" if size is None else _Size(num_frames, *size, Fraction(model.fps))


def is_read_as_stored(video: Video) -> bool:
    """Whether other readers see the picture that was captioned: a codec they know, and nothing that decoding puts right.

    Rotated, anamorphic, interlaced, transparent, HDR and damaged videos are read as people see them, and are encoded so.
    """
    is_plain = not (video.rotation_degrees or video.is_interlaced or video.has_alpha or video.truncated_seconds)
    return (
        is_plain
        and video.sample_aspect == "1:1"
        and video.transfer not in HDR_TRANSFERS
        and video.codec in COPIED_CODECS
    )


def native_fps(clip: Clip, video: Video) -> Fraction:
    """The exact rate of the video, or the average over the clip where frames are not evenly spaced."""
    rate = Fraction(video.fps_num, video.fps_den) if video.fps_num else Fraction(0)
    if rate and (abs(clip.fps / float(rate) - 1) <= VARIABLE_RATE or clip.num_frames == 1):
        return rate.limit_denominator(1001)
    return Fraction(clip.fps).limit_denominator(1001)


def _export_clip(
    clip: Clip,
    video: Video,
    scores: dict[str, float | None],
    texts: list[Caption],
    size: _Size,
    settings: ExportSettings,
    listed: dict[str, str],
) -> ExportClip | None:
    """None where the clip has no good text of the wanted kinds.

    Args:
        listed: what a list says of it.
    """
    end_seconds = clip.start_seconds + float(size.num_frames / size.fps) if settings.fit else clip.end_seconds
    found = captions_for_sample(texts, (*CAPTION_KINDS, "original"), clip.start_seconds, end_seconds)
    kind = next((kind for kind in settings.kinds if kind in found), None)
    if kind is None:
        return None
    is_whole = clip.start_frame == 0 and clip.end_frame == video.num_frames
    keeps_audio = video.has_audio and settings.audio == "keep"
    has_unwanted_audio = bool((video.num_audio_streams and not keeps_audio) or video.audio_detail)
    return ExportClip(
        clip_id=clip.clip_id,
        uri=clip.uri,
        start_frame=clip.start_frame,
        end_frame=clip.end_frame,
        start_seconds=clip.start_seconds,
        end_seconds=clip.end_seconds,
        source_width_px=clip.width_px,
        source_height_px=clip.height_px,
        num_frames=size.num_frames,
        width_px=size.width_px,
        height_px=size.height_px,
        fps=str(size.fps),
        may_copy=settings.cut == "auto" and not settings.fit and is_read_as_stored(video),
        is_whole=is_whole and not has_unwanted_audio,
        audio_codec=video.audio_codec if keeps_audio else "",
        may_copy_audio=settings.cut == "auto",
        source_audio_channels=video.audio_channels if keeps_audio else 0,
        source_audio_rate_hz=video.audio_rate_hz if keeps_audio else 0,
        source_bytes=video.num_bytes,
        caption=found[kind],
        captions=found,
        captioner=next((text.captioner for text in texts if text.is_main), ""),
        source=listed.get("source") or source_name(clip.uri, settings.local_paths),
        id=listed.get("id") or "",
        licence=listed.get("licence") or settings.licence,
        metadata=listed.get("metadata") or "",
        scores=scores,
    )


def source_name(uri: str, local_paths: bool) -> str:
    """The URI of a remote file, without credentials and query; of a local one its name, or its whole path if asked.

    Exports leave the machine: names of folders and signed URLs stay.
    """
    if uri.startswith(TAR):
        return source_name(uri.removeprefix(TAR), local_paths) if local_paths else posixpath.basename(uri)
    if "://" not in uri or uri.startswith("file://"):
        return uri if local_paths else posixpath.basename(uri)
    scheme, _, rest = uri.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
