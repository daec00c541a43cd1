"""`recaption export`: writes the kept clips with their texts into a folder, in the layout that a trainer reads.

Clips are divided into parts, sorted by id. A part is committed by its table, EXPORT/.recaption/parts/<nnnnnn>.parquet, or by
that beside its tar; clips that a killed export has finished are not written again. Lists, configs and the card follow from
the tables, so the same run and settings give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.cluster.cluster import Cluster
from jobs.export.clip_files import ExportClip, ExportedClip
from jobs.export.clips import PlannedClips, plan_clips, source_name
from jobs.export.dataset import ExportedDataset
from jobs.export.files.card import card
from jobs.export.files.lance_table import FRAGMENTS, commit, import_lance
from jobs.export.folder import check_folder, committed_parts, remove_stale
from jobs.export.layouts import Layout, layout_of
from jobs.export.settings import ExportSettings
from jobs.export.video_models import VideoModel, video_model
from jobs.export.worker import EXPORTED_SCHEMA, ExportWorker
from jobs.recipe.run_inputs import source_is_back, source_states
from jobs.recipe.settings import Recipe
from recaption.errors import UsageError
from recaption.inputs.open_input import InputState
from recaption.records import from_table
from recaption.run_folder import RunFolder, recipe_hash

CLIPS, SUMMARY, CARD = "clips.parquet", "export.json", "README.md"


def export(
    run: RunFolder, recipe: Recipe, settings: ExportSettings, out: str, cluster: Cluster, *, dry_run: bool = False
) -> dict[str, Any]:
    """Write the clips that are not in the export yet, then its lists, configs and card.

    Args:
        dry_run: only count, and estimate the bytes.

    Raises:
        UsageError: no such layout, model or caption set; or a folder with other files or another export.
    """
    layout = layout_of(settings.to)
    model = video_model(
        settings.model or layout.model, fps=settings.fps, max_frames=settings.max_frames, area_px=settings.area_px
    )
    settings = dataclasses.replace(settings, model=model.name)
    planned = plan_clips(run, recipe, settings, model, layout)
    if layout.container == "lance":
        import_lance()
    if dry_run:
        return _estimate(planned, settings)
    folder = RunFolder(out)
    check_folder(folder, settings)
    parts = _parts(planned.clips, recipe, settings, layout)
    hashes = {part["name"]: part["plan_hash"] for part in parts}
    states = source_states(run, {clip.uri: clip.clip_id.partition("-")[0] for clip in planned.clips})
    uris = {clip.clip_id: clip.uri for clip in planned.clips}
    committed = committed_parts(
        folder,
        layout,
        hashes,
        is_worth_a_try=lambda clip_id, reason: reason == "fetch_failed" or source_is_back(uris[clip_id], states),
    )
    missing = [part | {"sources": _sources(part, states)} for part in parts if part["name"] not in committed]
    worker = {"out_uri": folder.uri, "settings": settings, "decode": recipe.prepare.decode}
    for _ in cluster.run_parts(ExportWorker, worker, missing, title="export", unit="clips"):
        pass
    removed = remove_stale(folder, layout, hashes, {clip.clip_id for clip in planned.clips})
    if layout.container == "lance":
        commit(folder, layout.folder, [folder.table_metadata(f"{name}.parquet")[FRAGMENTS] for name in hashes])
    table = folder.read_parts([f"{name}.parquet" for name in hashes], EXPORTED_SCHEMA)
    files = _write_lists(folder, layout, model, settings, table)
    summary = _account(planned, table)
    document = {"settings": settings.to_dict(), "captions": planned.caption_set, **summary}
    document["failures"] = [failure | {"uri": source_name(failure["uri"], settings.local_paths)}
                            for failure in summary["failures"]]  # fmt: skip
    folder.write_bytes(SUMMARY, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    throughput = cluster.throughput()
    return {
        "layout": layout.name,
        "export": folder.uri,
        "captions": planned.caption_set,
        **summary,
        "files": [*files, CLIPS, SUMMARY],
        "computed_parts": len(missing),
        "skipped_parts": len(parts) - len(missing),
        "removed_files": removed,
        "decoder_fallbacks": throughput.get("decoder_fallbacks", {}),
        "throughput": throughput,
    }


def _parts(clips: list[ExportClip], recipe: Recipe, settings: ExportSettings, layout: Layout) -> list[dict[str, Any]]:
    """Consecutive clips, up to the number and bytes of a shard: the JSON that workers get."""
    limits = recipe.shard.buckets
    groups: list[list[ExportClip]] = []
    num_bytes = 0
    for clip in clips:
        estimate = clip.estimated_bytes(settings.quality)
        is_full = groups and (
            len(groups[-1]) >= limits.max_samples_per_shard or num_bytes + estimate > limits.max_shard_bytes
        )
        if not groups or is_full:
            groups.append([])
            num_bytes = 0
        groups[-1].append(clip)
        num_bytes += estimate
    parts = []
    for number, group in enumerate(groups):
        rows = [dataclasses.asdict(clip) for clip in group]
        key = recipe_hash([settings.video_hash, recipe.prepare.decode.backend, rows])
        parts.append({"name": layout.part_name(number), "plan_hash": key, "clips": rows})
    return parts


def _sources(part: dict[str, Any], states: dict[str, InputState]) -> dict[str, dict[str, Any]]:
    """Uri -> what `prepare` recorded of it. Not part of the plan: a file that was copied elsewhere and back is the same."""
    return {uri: dataclasses.asdict(states[uri]) for uri in {row["uri"] for row in part["clips"]}}


def _write_lists(
    folder: RunFolder, layout: Layout, model: VideoModel, settings: ExportSettings, table: pa.Table
) -> list[str]:
    """Write clips.parquet, the layout's files and the card; the names of the latter two."""
    folder.write_table(CLIPS, table, {"layout": layout.name})
    written = from_table(table.filter(pc.equal(table["status"], "ok")), ExportedClip)
    dataset = ExportedDataset(folder.uri, layout.folder, written, model, settings.licence)
    contents = {name: write(dataset) for name, write in layout.files.items()}
    if layout.file_set is not None:
        contents |= layout.file_set(dataset)
    contents[CARD] = card(layout, dataset)
    for name, content in contents.items():
        folder.write_bytes(name, content.encode())
    return sorted(contents)


def _account(planned: PlannedClips, table: pa.Table) -> dict[str, Any]:
    """Counts and seconds of every clip of the run: total = exported + dropped + failed + waiting (+ trimmed seconds)."""
    rows = {row["clip_id"]: row for row in table.select(["clip_id", "status", "reason", "detail"]).to_pylist()}
    ok = table.filter(pc.equal(table["status"], "ok"))
    failed: Counter[str] = Counter()
    seconds = {"exported": 0.0, "trimmed": 0.0, "failed": 0.0, **planned.seconds}
    failures = []
    for clip in planned.clips:
        row = rows[clip.clip_id]
        if row["status"] == "ok":
            exported = min(clip.seconds, clip.source_seconds)
            seconds["exported"] += exported
            seconds["trimmed"] += clip.source_seconds - exported
            continue
        failed[row["reason"]] += 1
        seconds["failed"] += clip.source_seconds
        failures.append({"uri": clip.uri, "clip_id": clip.clip_id, "reason": row["reason"], "detail": row["detail"]})
    made = Counter(ok["cut"].to_pylist())
    return {
        "clips": {
            "total": planned.total,
            "exported": ok.num_rows,
            "dropped": _sorted(planned.dropped),
            "failed": _sorted(failed),
            "waiting": _sorted(planned.waiting),
        },
        "seconds": {name: round(value, 6) for name, value in sorted(seconds.items())},
        "bytes": pc.sum(ok["num_video_bytes"]).as_py() or 0,
        **{how: made[how] for how in ("copied", "cut", "encoded")},
        "failures": failures,
    }


def _estimate(planned: PlannedClips, settings: ExportSettings) -> dict[str, Any]:
    """Of `--dry-run`: what would be exported, if nothing fails."""
    if not planned.clips:
        raise UsageError(
            f"nothing to export: of {planned.total} clips, dropped {_sorted(planned.dropped)}, waiting "
            f"{_sorted(planned.waiting)}"
        )
    return {
        "layout": settings.to,
        "captions": planned.caption_set,
        "dry_run": True,
        "clips": {
            "total": planned.total,
            "to_export": len(planned.clips),
            "dropped": _sorted(planned.dropped),
            "waiting": _sorted(planned.waiting),
        },
        "seconds": {"total": planned.seconds["total"], "to_export": sum(clip.seconds for clip in planned.clips)},
        "estimated_bytes": sum(clip.estimated_bytes(settings.quality) for clip in planned.clips),
        "copied_at_most": sum(clip.may_copy and clip.is_whole for clip in planned.clips),
        "cut_or_copied_at_most": sum(clip.may_copy for clip in planned.clips),
    }


def _sorted(counts: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(counts).items()))
