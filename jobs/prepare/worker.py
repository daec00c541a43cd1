"""Worker of the prepare stage: probes the videos of a part; cuts, scores and fingerprints their clips; writes previews."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from jobs.cluster import attempts
from jobs.prepare.earlier_part import EarlierPart, PreparedVideo
from jobs.prepare.plugin_scores import write_scores
from jobs.recipe.part_names import part_name
from jobs.recipe.stage_settings import PrepareSettings
from recaption.dedup.fingerprints import ClipFingerprint, fingerprint_clip
from recaption.errors import VideoError
from recaption.inputs.paths import REFUSED
from recaption.ledger.ledger import CLIPS_SCHEMA
from recaption.ledger.removed import read_removed
from recaption.quality.model_scorers import ModelScorers, load_scorers
from recaption.quality.plugins import find_plugins
from recaption.quality.scores import score_clip
from recaption.records import Clip, ClipPreview, ClipScores, Video, to_table
from recaption.run_folder import RunFolder, recipe_hash
from recaption.shots.clips import cut_to_clips
from recaption.shots.detect import find_shots_in
from recaption.video_io.frames import Frames
from recaption.video_io.opened_video import Scan, failed_video
from recaption.video_io.reader import scan

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
        """
        Args:
            part: `part` (its number), `uris`, `inputs_hash`, `refused` (uri -> why it cannot be an input) and, where an
                earlier computation of the part can be kept, `changed`: those of the uris that are read again.
        """
        number, refused = part["part"], part.get("refused", {})
        changed = part.get("changed")
        earlier = EarlierPart.read(self.run, number) if changed is not None else EarlierPart()
        prepared: list[PreparedVideo] = []
        for uri in part["uris"]:
            try:
                attempts.begin(uri)
                if uri in refused:
                    raise VideoError("unreadable", f"{REFUSED}{refused[uri]}")
            except VideoError as error:
                prepared.append(PreparedVideo(failed_video(uri, error)))
                continue
            kept = earlier.unchanged(uri, is_suspect=changed is None or uri in changed)
            prepared.append(kept or self._prepare(uri))
        attempts.begin()
        self._write(number, prepared, part["inputs_hash"])
        videos = [one.video for one in prepared]
        counts = {"videos": len(videos), "failed": sum(v.status == "failed" for v in videos)}
        counts["clips"] = sum(len(one.clips) for one in prepared)
        failures = {plugin.name: plugin.failures for plugin in self.plugins if plugin.failures}
        return {"part": number, **counts, "absent_scores": self.scorers.unavailable, "plugin_failures": failures}

    def _prepare(self, uri: str) -> PreparedVideo:
        found = scan(uri, limits=self.settings.decode)
        one = PreparedVideo(self.removed.unless_removed(found.video))
        if one.video.status == "ok":
            for clip, scores, fingerprint, preview in clips_of(found, self.settings, self.scorers):
                one.clips.append({**_columns(clip), **_columns(scores)})
                one.fingerprints.append(fingerprint)
                one.previews.append(preview)
                frames_THWC = _window(found.detail, clip.start_frame, clip.end_frame).pixels_THWC
                one.plugin_rows += [(plugin.name, plugin.score(clip.clip_id, frames_THWC)) for plugin in self.plugins]
        return one

    def _write(self, number: int, prepared: list[PreparedVideo], inputs_hash: str) -> None:
        """Write the four files of a part, the one that commits it last."""
        metadata = {"recipe_hash": self.stage_hash, "inputs_hash": inputs_hash}
        metadata["bytes_hash"] = recipe_hash([one.video.video_id for one in prepared])
        metadata["absent_scores"] = json.dumps(self.scorers.unavailable, sort_keys=True)
        tables = {
            "previews": to_table([row for one in prepared for row in one.previews], ClipPreview),
            "fingerprints": to_table([row for one in prepared for row in one.fingerprints], ClipFingerprint),
            "clips": pa.Table.from_pylist([row for one in prepared for row in one.clips], schema=CLIPS_SCHEMA),
            "videos": to_table([one.video for one in prepared], Video),
        }
        write_scores(self.run, number, self.plugins, prepared, metadata["bytes_hash"])
        for folder, table in tables.items():
            self.run.write_table(part_name(folder, number), table, metadata)


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
