"""Worker of the prepare stage: probes the videos of a part; cuts, scores and fingerprints their clips; writes previews."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from jobs.cluster import attempts
from jobs.prepare.clips import prepare_video
from jobs.prepare.earlier_part import EarlierPart, PreparedVideo
from jobs.prepare.listed_clips import has_spans
from jobs.prepare.plugin_scores import write_scores
from jobs.recipe.inputs_table import inputs_of_part
from jobs.recipe.part_names import part_name
from jobs.recipe.stage_settings import PrepareSettings
from recaption.dedup.fingerprints import ClipFingerprint
from recaption.errors import VideoError
from recaption.inputs.lists.listed import ListedSpan
from recaption.inputs.paths import REFUSED
from recaption.ledger.ledger import CLIPS_SCHEMA
from recaption.ledger.removed import read_removed
from recaption.ledger.spans import SPANS_SCHEMA, TEXTS_HASH, failed_rows, list_hash, read_listed, texts_of
from recaption.quality.model_scorers import load_scorers
from recaption.records import Clip, ClipPreview, ClipScores, Video, to_table
from recaption.run_folder import RunFolder, recipe_hash
from recaption.video_io.opened_video import failed_video


class PrepareWorker:
    """Prepares the videos of a part. One per actor: it keeps its decoder process between parts."""

    def __init__(self, run_uri: str, settings: PrepareSettings, stage_hash: str) -> None:
        self.run = RunFolder(run_uri)
        self.settings = settings
        self.stage_hash = stage_hash
        self.scorers = load_scorers(settings.scores)
        self.removed = read_removed(self.run)

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            part: `part` (its number) and, where an earlier computation of the part can be kept, `changed`: those of its
                inputs that are read again, and `relisted`: those of which lists say something else. `uris`: its inputs;
                default: those of the run folder's list.
        """
        number = part["part"]
        rows = [] if "uris" in part else inputs_of_part(self.run, number)
        uris = part["uris"] if "uris" in part else [row["uri"] for row in rows]
        refused = {row["uri"]: row["refusal"] for row in rows if row["refusal"]}
        listed = read_listed(self.run, number) if any(row["list_hash"] for row in rows) else {}
        changed, relisted = part.get("changed"), part.get("relisted", ())
        earlier = EarlierPart.read(self.run, number) if changed is not None else EarlierPart()
        prepared: list[PreparedVideo] = []
        for uri in uris:
            try:
                attempts.begin(uri)
                if uri in refused:
                    raise VideoError("unreadable", f"{REFUSED}{refused[uri]}")
            except VideoError as error:
                spans = listed.get(uri, ())
                video = dataclasses.replace(
                    failed_video(uri, error), list_hash=list_hash(spans), is_cut_by_list=has_spans(spans)
                )
                prepared.append(PreparedVideo(video, spans=failed_rows(video, spans)))
                continue
            is_suspect, is_relisted = changed is None or uri in changed, uri in relisted
            spans = listed.get(uri, ())
            kept = earlier.unchanged(uri, spans if is_relisted else (), is_suspect=is_suspect)
            prepared.append(kept or self._prepare(uri, spans))
        attempts.begin()
        self._write(number, prepared, recipe_hash(uris))
        videos = [one.video for one in prepared]
        counts = {"videos": len(videos), "failed": sum(v.status == "failed" for v in videos)}
        counts["clips"] = sum(len(one.clips) for one in prepared)
        failures = {plugin.name: plugin.failures for plugin in self.scorers.plugins if plugin.failures}
        return {"part": number, **counts, "absent_scores": self.scorers.unavailable, "plugin_failures": failures}

    def _prepare(self, uri: str, listed: Sequence[ListedSpan]) -> PreparedVideo:
        video, rows, spans = prepare_video(uri, self.settings, self.scorers, listed)
        video = self.removed.unless_removed(video)
        rows, spans = (rows, spans) if video.status == "ok" else ([], failed_rows(video, listed))
        return PreparedVideo(
            video,
            [{**_columns(row.clip), **_columns(row.scores)} for row in rows],
            [row.fingerprint for row in rows],
            [row.preview for row in rows],
            [plugin_row for row in rows for plugin_row in row.plugin_rows],
            spans,
        )

    def _write(self, number: int, prepared: list[PreparedVideo], inputs_hash: str) -> None:
        """Write the files of a part, the one that commits it last."""
        metadata = {"recipe_hash": self.stage_hash, "inputs_hash": inputs_hash}
        metadata["bytes_hash"] = recipe_hash([one.video.video_id for one in prepared])
        metadata["absent_scores"] = json.dumps(self.scorers.unavailable, sort_keys=True)
        tables = {
            "previews": to_table([row for one in prepared for row in one.previews], ClipPreview),
            "fingerprints": to_table([row for one in prepared for row in one.fingerprints], ClipFingerprint),
            "clips": pa.Table.from_pylist([row for one in prepared for row in one.clips], schema=CLIPS_SCHEMA),
            "videos": to_table([one.video for one in prepared], Video),
        }
        span_rows = [row for one in prepared for row in one.spans]
        if any(one.video.list_hash for one in prepared):
            texts = sorted(texts_of(span_rows).items())
            tables = {"spans": pa.Table.from_pylist(span_rows, schema=SPANS_SCHEMA), **tables}
            metadata[TEXTS_HASH] = recipe_hash(texts) if texts else ""
        write_scores(self.run, number, self.scorers.plugins, prepared, metadata["bytes_hash"])
        for folder, table in tables.items():
            self.run.write_table(part_name(folder, number), table, metadata)


def _columns(record: Clip | ClipScores) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}
