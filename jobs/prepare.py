"""`recaption prepare`: raw videos -> RUN/videos, RUN/clips, RUN/fingerprints, RUN/previews. The first stretch of the river.

Every input becomes one row of videos/, readable or not; the clips of a readable one tile it, so that seconds add up.
A part is four files; videos/part-*.parquet is written last and says that the part is complete. A part that lacks a score
because its scorer was absent is made again once the scorer is there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from jobs import attempts
from jobs.cluster import Cluster
from jobs.duplicates import find_perceptual
from jobs.run_state import check_same_recipe, part_name, plan_inputs, write_recipe
from jobs.settings import PrepareSettings, Recipe, stage_hashes
from recaption.errors import ErrorBudgetError, VideoError
from recaption.fingerprints import ClipFingerprint, fingerprint_clip
from recaption.inputs import expand
from recaption.ledger import CLIPS_SCHEMA, account
from recaption.records import Clip, ClipPreview, ClipScores, Video, to_table
from recaption.run_folder import RunFolder, recipe_hash
from recaption.scorers import Scorers, absent_scorers, load_scorers
from recaption.scores import score_clip
from recaption.shots import cut_to_clips, find_shots_in
from recaption.video_io import Frames, Scan, scan

JPEG_QUALITY = 82
NO_SCORERS = Scorers()

BUDGET_AFTER_INPUTS = 50
"""From so many inputs on `max_failed_share` ends a run before its end; of fewer the share says little."""


def prepare(
    videos: Sequence[str], out: str, recipe: Recipe, cluster: Cluster, *, only: Collection[int] | None = None
) -> dict[str, Any]:
    """Probe, cut and score all inputs that are not yet in the run folder.

    Args:
        videos: paths to look for inputs in; those that the run folder lists already come without being named.
        only: parts that may be computed; default: all.

    Raises:
        UsageError: a path leads nowhere, or the folder belongs to another recipe.
        ErrorBudgetError: more than `max_failed_share` of the inputs failed.
    """
    uris = expand(videos) if videos else []
    run = RunFolder(out)
    check_same_recipe(run, recipe)
    run.remove_temporary_files()
    write_recipe(run, recipe)
    stage_hash = stage_hashes(recipe)["prepare"]
    absent_here = absent_scorers(recipe.prepare.scores)
    planned = plan_inputs(run, uris, recipe.prepare.part_size)
    parts: list[dict[str, Any]] = []
    absent_scores: dict[str, str] = {}
    for part, members in sorted(planned.items()):
        absent = _absent_if_done(run, part, members, stage_hash)
        if absent is not None and absent.keys() <= absent_here.keys():
            absent_scores |= absent
        elif only is None or part in only:
            parts.append({"part": part, "uris": members, "inputs_hash": recipe_hash(members)})
    settings = {"run_uri": run.uri, "settings": recipe.prepare, "stage_hash": stage_hash}
    seen = failed = 0
    for done in cluster.run_parts(PrepareWorker, settings, parts, title="prepare", unit="clips"):
        absent_scores |= done["absent_scores"]
        seen, failed = seen + done["videos"], failed + done["failed"]
        if seen >= BUDGET_AFTER_INPUTS:
            _check_error_budget(seen, failed, recipe.prepare.max_failed_share)
    if recipe.prepare.duplicates.perceptual:
        find_perceptual(run, recipe.prepare.duplicates, progress=cluster.progress)
    summary = account(run, recipe.filters).summary()
    _check_error_budget(summary["videos"]["total"], summary["videos"]["failed"], recipe.prepare.max_failed_share)
    return {
        **summary,
        "computed_parts": len(parts),
        "skipped_parts": len(planned) - len(parts),
        "absent_scores": absent_scores,
        "throughput": cluster.throughput(),
    }


def _absent_if_done(run: RunFolder, part: int, uris: list[str], stage_hash: str) -> dict[str, str] | None:
    """The scores that a finished part lacks, with the reasons; None for a part that is not finished."""
    name = part_name("videos", part)
    if not run.exists(name):
        return None
    metadata = run.table_metadata(name)
    if metadata.get("recipe_hash") != stage_hash or metadata.get("inputs_hash") != recipe_hash(uris):
        return None
    return dict(json.loads(metadata.get("absent_scores", "{}")))


def _check_error_budget(total: int, failed: int, max_failed_share: float) -> None:
    if total and failed / total > max_failed_share:
        raise ErrorBudgetError(
            f"{failed} of {total} inputs failed, more than max_failed_share = {max_failed_share:g} allows; "
            "the rows with their reasons are in the run folder"
        )


class PrepareWorker:
    """One per actor: keeps its decoder process between parts."""

    def __init__(self, run_uri: str, settings: PrepareSettings, stage_hash: str) -> None:
        self.run = RunFolder(run_uri)
        self.settings = settings
        self.stage_hash = stage_hash
        self.scorers = load_scorers(settings.scores)

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        videos: list[Video] = []
        clips: list[dict[str, Any]] = []
        fingerprints: list[ClipFingerprint] = []
        previews: list[ClipPreview] = []
        for uri in part["uris"]:
            try:
                attempts.begin(uri)
            except VideoError as error:
                videos.append(Video(video_id="", uri=uri, status="failed", reason=error.reason, detail=error.detail))
                continue
            found = scan(uri, limits=self.settings.decode)
            videos.append(found.video)
            if found.video.status != "ok":
                continue
            for clip, scores, fingerprint, preview in clips_of(found, self.settings, self.scorers):
                clips.append({**_columns(clip), **_columns(scores)})
                fingerprints.append(fingerprint)
                previews.append(preview)
        attempts.begin()
        metadata = {"recipe_hash": self.stage_hash, "inputs_hash": part["inputs_hash"]}
        metadata["absent_scores"] = json.dumps(self.scorers.absent, sort_keys=True)
        number = part["part"]
        self.run.write_table(part_name("previews", number), to_table(previews, ClipPreview), metadata)
        self.run.write_table(part_name("fingerprints", number), to_table(fingerprints, ClipFingerprint), metadata)
        self.run.write_table(part_name("clips", number), pa.Table.from_pylist(clips, schema=CLIPS_SCHEMA), metadata)
        self.run.write_table(part_name("videos", number), to_table(videos, Video), metadata)
        counts = {"videos": len(videos), "failed": sum(v.status == "failed" for v in videos), "clips": len(clips)}
        return {"part": number, **counts, "absent_scores": self.scorers.absent}


def _columns(record: Clip | ClipScores) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def clips_of(
    found: Scan, settings: PrepareSettings, scorers: Scorers = NO_SCORERS
) -> list[tuple[Clip, ClipScores, ClipFingerprint, ClipPreview]]:
    """Shots of one scanned video, cut to length, each with scores, a fingerprint and a picture."""
    video, pts_seconds = found.video, found.pts_seconds
    end_of_video = float(pts_seconds[0] + video.duration_seconds)
    shots = find_shots_in(found.small.pixels_THWC, pts_seconds, settings.shots)
    spans = cut_to_clips(
        shots,
        pts_seconds,
        end_of_video,
        min_seconds=settings.min_clip_seconds,
        max_seconds=settings.max_clip_seconds,
    )
    result = []
    for shot_index, start, end in spans:
        start_seconds = float(pts_seconds[start])
        end_seconds = float(pts_seconds[end]) if end < len(pts_seconds) else end_of_video
        clip = Clip(
            clip_id=f"{video.video_id}-{start:07d}-{end:07d}",
            video_id=video.video_id,
            uri=video.uri,
            shot_index=shot_index,
            start_frame=start,
            end_frame=end,
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            width_px=video.width_px,
            height_px=video.height_px,
            fps=(end - start) / max(end_seconds - start_seconds, 1e-9),
        )
        small, detail = _window(found.small, start, end), _window(found.detail, start, end)
        size_px = (video.height_px, video.width_px)
        scores = score_clip(clip.clip_id, small, detail, settings.scores, source_size_px=size_px)
        scores = scorers.add(scores, detail.pixels_THWC)
        fingerprint = fingerprint_clip(
            clip, small, bytes_per_second=video.num_bytes / max(video.duration_seconds, 1e-9)
        )
        result.append((clip, scores, fingerprint, _preview(clip.clip_id, detail, small, settings.preview_px)))
    return result


def _window(frames: Frames, start: int, end: int) -> Frames:
    """The frames whose source index lies in [start, end)."""
    chosen = (frames.indices >= start) & (frames.indices < end)
    return Frames(
        pixels_THWC=frames.pixels_THWC[chosen],
        pts_seconds=frames.pts_seconds[chosen],
        indices=frames.indices[chosen],
    )


def _preview(clip_id: str, detail: Frames, small: Frames, short_side_px: int) -> ClipPreview:
    frames = detail.pixels_THWC if len(detail.pixels_THWC) else small.pixels_THWC
    middle: np.ndarray = frames[len(frames) // 2]
    picture = Image.fromarray(middle)
    scale = min(1.0, short_side_px / min(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    encoded = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(encoded, "JPEG", quality=JPEG_QUALITY)
    return ClipPreview(clip_id=clip_id, jpeg=encoded.getvalue())
