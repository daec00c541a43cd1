"""Worker of the export: writes the clips of a part with their texts, then the table that commits the part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from jobs.cluster import attempts
from jobs.export.clip_files import ExportClip, ExportedClip, described, sidecar
from jobs.export.clip_video import ClipVideo, clip_video, with_audio_columns
from jobs.export.files.lance_table import FRAGMENTS, write_fragments
from jobs.export.layouts import layout_of
from jobs.export.settings import ExportSettings
from packing.shards.samples import Entry
from packing.shards.write import write_shard
from recaption.errors import VideoError
from recaption.inputs.open_input import InputState
from recaption.records import schema_of, shard_schema
from recaption.run_folder import RunFolder
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.opened_video import OpenVideos

EXPORTED_SCHEMA = shard_schema(ExportedClip)


class ExportWorker:
    """Writes one part per call. One per actor."""

    def __init__(self, out_uri: str, settings: ExportSettings, decode: DecodeLimits) -> None:
        self.out = RunFolder(out_uri)
        self.settings = settings
        self.layout = layout_of(settings.to)
        self.videos = OpenVideos(decode)

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        clips = [ExportClip(**row) for row in part["clips"]]
        states = {uri: InputState(**state) for uri, state in part["sources"].items()}
        self.videos.forget_failures()
        if self.layout.container == "tars":
            entries = self._entries(clips, states)
            report = write_shard(self.out, part["name"], entries, plan_hash=part["plan_hash"], record=ExportedClip)
            written = report.num_samples
        else:
            metadata = {"plan_hash": part["plan_hash"]}
            if self.layout.container == "lance":
                rows: list[dict[str, Any]] = []
                ok_rows = self._rows_with_video(clips, states, rows)
                metadata[FRAGMENTS] = write_fragments(f"{self.out.uri}/{self.layout.folder}", ok_rows)
            else:
                rows = list(self._written_rows(clips, states))
            written = sum(row["status"] == "ok" for row in rows)
            table = pa.Table.from_pylist(rows, schema=EXPORTED_SCHEMA)
            self.out.write_table(f"{part['name']}.parquet", table, metadata)
        return {"name": part["name"], "clips": written, "failed": len(clips) - written}

    def _clip_video(self, clip: ExportClip, states: dict[str, InputState]) -> ClipVideo:
        opened = self.videos.open(clip.uri, states[clip.uri])
        return clip_video(opened, clip, crf=self.settings.quality, fit=self.settings.fit)

    # --- clips as files -----------------------------------------------------------------------------------------------

    def _written_rows(self, clips: list[ExportClip], states: dict[str, InputState]) -> Iterator[dict[str, Any]]:
        """Write the files of each clip; the rows of all, failed ones too."""
        for clip in clips:
            row = _BLANK | described(clip)
            try:
                attempts.begin(clip.clip_id)
                row |= self._write_clip(clip, states, row)
            except VideoError as error:
                yield row | {"status": "failed", "reason": error.reason, "detail": error.detail}
                continue
            yield row | {"status": "ok", "reason": None}
        attempts.begin()

    def _write_clip(self, clip: ExportClip, states: dict[str, InputState], row: dict[str, Any]) -> dict[str, Any]:
        """Write the clip's video if it is not there, and its sidecars; the columns that are known now."""
        name = self.layout.clip_path(clip.clip_id)
        if self.out.exists(name):  # complete, and of the same settings: a killed export left it
            mp4 = self.out.read_bytes(name)
            video = ClipVideo.of(mp4, clip)
            if clip.audio_codec:
                video = with_audio_columns(video, self.videos.open(clip.uri, states[clip.uri]), clip)
        else:
            video = self._clip_video(clip, states)
            mp4 = video.mp4
            self.out.write_bytes(name, mp4)
        columns = _columns(video) | {"file": name, "num_bytes": len(mp4), "detail": video.detail}
        for extension in self.layout.sidecars:
            self.out.write_bytes(self.layout.sidecar_path(clip.clip_id, extension), sidecar(extension, row | columns))
        return columns

    # --- clips in tars ------------------------------------------------------------------------------------------------

    def _entries(self, clips: list[ExportClip], states: dict[str, InputState]) -> Iterator[Entry]:
        for clip in clips:
            row = _BLANK | described(clip)
            try:
                attempts.begin(clip.clip_id)
                video = self._clip_video(clip, states)
            except VideoError as error:
                yield Entry(key=clip.clip_id, fields=row, reason=error.reason, detail=error.detail)
                continue
            row |= _columns(video)
            members = {"mp4": video.mp4, "txt": sidecar("txt", row), "json": sidecar("json", row)}
            yield Entry(key=clip.clip_id, members=members, fields=row, detail=video.detail)
        attempts.begin()

    # --- clips in a Lance table ---------------------------------------------------------------------------------------

    def _rows_with_video(
        self, clips: list[ExportClip], states: dict[str, InputState], rows: list[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The row and the mp4 of each clip that is written; all rows, failed ones too, are added to `rows`."""
        for entry in self._entries(clips, states):
            if entry.reason is not None:
                rows.append(entry.fields | {"status": "failed", "reason": entry.reason, "detail": entry.detail})
                continue
            place = {"shard": self.layout.folder, "num_bytes": len(entry.members["mp4"])}
            rows.append(entry.fields | place | {"status": "ok", "reason": None, "detail": entry.detail})
            yield rows[-1], entry.members["mp4"]


_BLANK: dict[str, Any] = {f.name: "" if pa.types.is_string(f.type) else 0 for f in schema_of(ExportedClip)}


def _columns(video: ClipVideo) -> dict[str, Any]:
    return {
        "cut": video.cut,
        "audio": video.audio,
        "width_px": video.width_px,
        "height_px": video.height_px,
        "num_video_bytes": len(video.mp4),
        "sha256": hashlib.sha256(video.mp4).hexdigest(),
    }
