"""Worker of the prepare stage: probes the videos of a part; cuts, scores and fingerprints their clips; writes previews."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from jobs.cluster import attempts
from jobs.recipe.part_names import part_name
from jobs.recipe.stage_settings import PrepareSettings
from recaption.dedup.fingerprints import ClipFingerprint, fingerprint_clip
from recaption.errors import VideoError
from recaption.ledger.ledger import CLIPS_SCHEMA
from recaption.ledger.removed import read_removed
from recaption.quality.model_scorers import ModelScorers, load_scorers
from recaption.quality.plugins import find_plugins
from recaption.quality.scores import score_clip
from recaption.records import Clip, ClipPreview, ClipScores, Video, to_table
from recaption.run_folder import RunFolder
from recaption.shots.clips import cut_to_clips
from recaption.shots.detect import find_shots_in
from recaption.video_io.frames import Frames
from recaption.video_io.reader import Scan, scan

JPEG_QUALITY = 82
NO_SCORERS = ModelScorers()


class PrepareWorker:
    """Prepares the videos of a part. One per actor: it keeps its decoder process between parts."""

    def __init__(self, run_uri: str, settings: PrepareSettings, stage_hash: str) -> None:
        self.run = RunFolder(run_uri)
        self.settings = settings
        self.stage_hash = stage_hash
        self.scorers = load_scorers(settings.scores)
        self.plugins = find_plugins(settings.scores.plugins, settings.scores.num_model_frames)
        for plugin in self.plugins:
            plugin.open()
        self.removed = read_removed(self.run)

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        videos: list[Video] = []
        clips: list[dict[str, Any]] = []
        fingerprints: list[ClipFingerprint] = []
        previews: list[ClipPreview] = []
        plugin_rows: dict[str, list[dict[str, Any]]] = {plugin.name: [] for plugin in self.plugins}
        for uri in part["uris"]:
            try:
                attempts.begin(uri)
            except VideoError as error:
                videos.append(Video(video_id="", uri=uri, status="failed", reason=error.reason, detail=error.detail))
                continue
            found = scan(uri, limits=self.settings.decode)
            videos.append(self._unless_removed(found.video))
            if videos[-1].status != "ok":
                continue
            for clip, scores, fingerprint, preview in clips_of(found, self.settings, self.scorers):
                clips.append({**_columns(clip), **_columns(scores)})
                fingerprints.append(fingerprint)
                previews.append(preview)
                frames_THWC = _window(found.detail, clip.start_frame, clip.end_frame).pixels_THWC
                for plugin in self.plugins:
                    plugin_rows[plugin.name].append(plugin.score(clip.clip_id, frames_THWC))
        attempts.begin()
        metadata = {"recipe_hash": self.stage_hash, "inputs_hash": part["inputs_hash"]}
        metadata["absent_scores"] = json.dumps(self.scorers.unavailable, sort_keys=True)
        number = part["part"]
        for plugin in self.plugins:
            table = pa.Table.from_pylist(plugin_rows[plugin.name], schema=plugin.schema)
            plugin_metadata = {"recipe_hash": plugin.hash, "inputs_hash": part["inputs_hash"]}
            self.run.write_table(part_name(f"scores/{plugin.name}", number), table, plugin_metadata)
        self.run.write_table(part_name("previews", number), to_table(previews, ClipPreview), metadata)
        self.run.write_table(part_name("fingerprints", number), to_table(fingerprints, ClipFingerprint), metadata)
        self.run.write_table(part_name("clips", number), pa.Table.from_pylist(clips, schema=CLIPS_SCHEMA), metadata)
        self.run.write_table(part_name("videos", number), to_table(videos, Video), metadata)
        counts = {"videos": len(videos), "failed": sum(v.status == "failed" for v in videos), "clips": len(clips)}
        failures = {plugin.name: plugin.failures for plugin in self.plugins if plugin.failures}
        return {"part": number, **counts, "absent_scores": self.scorers.unavailable, "plugin_failures": failures}

    def _unless_removed(self, video: Video) -> Video:
        """The row of an input; of one that was taken out of the run, without anything of its content."""
        if not self.removed.has_input(video.uri, video.video_id):
            return video
        seconds = video.duration_seconds
        return Video(video_id="", uri=video.uri, duration_seconds=seconds, status="removed", reason="removed")


def _columns(record: Clip | ClipScores) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def clips_of(
    found: Scan, settings: PrepareSettings, scorers: ModelScorers = NO_SCORERS
) -> list[tuple[Clip, ClipScores, ClipFingerprint, ClipPreview]]:
    """Clips of one scanned video, each with scores, fingerprint and preview."""
    video, pts_seconds = found.video, found.pts_seconds
    end_of_video = float(pts_seconds[0] + video.duration_seconds)
    shots = find_shots_in(found.small.pixels_THWC, pts_seconds, settings.shots)
    spans = cut_to_clips(
        shots, pts_seconds, end_of_video, min_seconds=settings.min_clip_seconds, max_seconds=settings.max_clip_seconds
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
    """The frames with a source index in [start, end)."""
    chosen = (frames.indices >= start) & (frames.indices < end)
    return Frames(
        pixels_THWC=frames.pixels_THWC[chosen], pts_seconds=frames.pts_seconds[chosen], indices=frames.indices[chosen]
    )


def _preview(clip_id: str, detail: Frames, small: Frames, short_side_px: int) -> ClipPreview:
    frames = detail.pixels_THWC if len(detail.pixels_THWC) else small.pixels_THWC
    middle: np.ndarray = frames[len(frames) // 2]
    image = Image.fromarray(middle)
    scale = min(1.0, short_side_px / min(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    encoded = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(encoded, "JPEG", quality=JPEG_QUALITY)
    return ClipPreview(clip_id=clip_id, jpeg=encoded.getvalue())
