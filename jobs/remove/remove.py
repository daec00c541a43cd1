"""`recaption prepare --out RUN --remove FILE`: takes videos out of a run folder, down to the last byte (takedown).

    what is listed -> all inputs of the same bytes -> rows, previews, captions, embeddings, samples, latents, encoded texts

The list is written into the run folder first and removed last: killed in between and run again, a removal ends the same.
A removed video is remembered by a hash of its id, so that a later `prepare` of the same bytes does not bring it back. Other
samples of a shard keep their bytes. Clips that were dropped as duplicates of a removed one are rejected, not brought in.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from jobs.caption.repeated import find_repeated_captions
from jobs.caption.semantic import find_semantic
from jobs.prepare.duplicates import find_perceptual
from jobs.prepare.verdicts import add_part, import_verdicts
from jobs.recipe.settings import Recipe
from jobs.remove.tables import remove_rows
from jobs.remove.targets import Targets, find_targets, read_names
from jobs.remove.tars import remove_samples
from jobs.remove.texts import remove_encoded_texts, remove_quotations
from jobs.shard import planned_shards
from packing.shards.index import build_index, build_latents_index, is_committed
from recaption.captions.repeated import REPEATED_SCHEMA
from recaption.captions.sets import default_caption_set
from recaption.dedup.near_duplicates import PERCEPTUAL_PAIRS, caption_set_of
from recaption.errors import StorageError, UsageError
from recaption.folder_lock import FolderLock
from recaption.ledger.ledger import build_ledger
from recaption.ledger.removed import REMOVED, REMOVED_SCHEMA, UNFINISHED, key_of, read_removed
from recaption.run_folder import RunFolder

COPY_REASON = "same footage as a removed video"
"""Reason of the verdict on clips that were duplicates of a removed one."""
BY = "recaption prepare --remove"


def decide(
    run: RunFolder, recipe: Recipe, *, verdicts: str | None, takedown: str | None, progress: bool = False
) -> dict[str, Any]:
    """Take in a file of verdicts, or one of videos to remove, while the run folder is locked.

    Raises:
        FolderInUseError: another command works on the run.
        UsageError: as `import_verdicts` and `remove`.
    """
    with FolderLock(run, "recaption prepare"):
        if verdicts:
            return import_verdicts(run, recipe, verdicts)
        assert takedown
        return remove(run, recipe, takedown, progress=progress)


def remove(run: RunFolder, recipe: Recipe, file: str, *, progress: bool = False) -> dict[str, Any]:
    """Take the videos that `file` names out of a run folder.

    Raises:
        UsageError: a name that the run does not have, or a table that cannot be read.
    """
    try:
        run.remove_temporary_files()
        targets, rows = find_targets(run, read_names(file), recipe)
        targets = targets.merged(Targets(current_shards=_current_shards(run, recipe)))
        run.write_bytes(UNFINISHED, json.dumps(asdict(targets)).encode())
        _remember(run, rows)
        _reject_copies(run, targets)
        summary = _remove_all(run, recipe, targets, progress=progress)
    except pa.ArrowException as error:
        detail = " ".join(str(error).split())[:200]
        raise StorageError(
            f"a table of {run.uri} is damaged, run `recaption verify --repair` first: {detail}"
        ) from error
    run.remove(UNFINISHED)
    sums = build_ledger(run, recipe.filters).summary()
    clips, seconds = sum(row["num_clips"] for row in rows), sum(row["duration_seconds"] for row in rows)
    return {
        "removed": {"videos": len(rows), "clips": clips, "seconds": seconds, **summary},
        "similar_videos": targets.similar_uris,
        **({"warnings": warnings} if (warnings := _warnings(run, targets, rows)) else {}),
        **{key: sums[key] for key in ("videos", "clips", "seconds")},
    }


def _remove_all(run: RunFolder, recipe: Recipe, targets: Targets, *, progress: bool) -> dict[str, Any]:
    num_samples, _ = remove_samples(run, targets, recipe)
    num_texts = remove_encoded_texts(run, targets.texts, keep=recipe.train_dit.dit.sample_prompts)
    tables = remove_rows(run, targets)
    if run.exists("index.parquet"):
        build_index(run)
    for name in run.list("latents/*/index.parquet"):
        build_latents_index(run, name.split("/")[1])
    for name in run.list("duplicates/*.parquet"):
        if name == PERCEPTUAL_PAIRS:
            find_perceptual(run, recipe.prepare.duplicates, progress=progress)
        elif run.list(f"embeddings/{caption_set_of(name)}/part-*.parquet"):
            find_semantic(run, recipe.prepare.duplicates, caption_set_of(name))
    for name in run.list("captions/*/repeated.parquet"):  # its rows quote a text of one of their clips
        run.write_table(name, REPEATED_SCHEMA.empty_table())  # without the hashes that say it is up to date
        find_repeated_captions(run, recipe.caption.repeats, name.split("/")[1])
    files = remove_quotations(run, targets.texts, targets.video_ids)
    if run.exists("plan.json"):
        run.remove("plan.json")
        files.append("plan.json")
    _mark_current(run, recipe, targets)
    return {"samples": num_samples, "texts": num_texts, "tables": len(tables), "files": files}


def _remember(run: RunFolder, rows: list[dict[str, Any]]) -> None:
    """Add the inputs to the table of removed ones; those that are there, or were recognised as removed, are not added."""
    removed = read_removed(run)
    known = {(row["video_key"], row["uri_key"]) for row in removed.table.to_pylist()}
    now = datetime.now(UTC)
    new = [
        {"video_key": key_of(row["video_id"]), "uri_key": key_of(row["uri"]), "time": now}
        | {name: row[name] for name in ("duration_seconds", "num_clips")}
        for row in rows
        if row["status"] != "removed"
    ]
    new = [row for row in new if (row["video_key"], row["uri_key"]) not in known]
    if new:
        table = pa.concat_tables([removed.table, pa.Table.from_pylist(new, schema=REMOVED_SCHEMA)])
        run.write_table(REMOVED, table.sort_by([("video_key", "ascending"), ("uri_key", "ascending")]))


def _reject_copies(run: RunFolder, targets: Targets) -> None:
    rows = [
        {"clip_id": clip_id, "verdict": "reject", "reason": COPY_REASON, "by": BY, "time": datetime.now(UTC)}
        for clip_id in targets.near_copies
        if clip_id.partition("-")[0] not in targets.video_ids
    ]
    add_part(run, rows)


def _current_shards(run: RunFolder, recipe: Recipe) -> list[str]:
    """Shards that are what the recipe and the captions give now."""
    hashes = _plan(run, recipe)[1]
    return [name for name, key in hashes.items() if is_committed(run, name, key)]


def _plan(run: RunFolder, recipe: Recipe) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Shard -> its clips, and -> the hash of its plan; {} where there are no captions or shards."""
    set_name = default_caption_set(run)
    if set_name is None or not run.exists("index.parquet"):
        return {}, {}
    try:
        planned, _, hashes = planned_shards(run, recipe, set_name)
    except UsageError:
        return {}, {}
    return {shard.name: [clip.clip_id for clip in shard.clips] for shard in planned}, hashes


def _mark_current(run: RunFolder, recipe: Recipe, targets: Targets) -> None:
    """A shard that was up to date and now has the clips that are planned for it is up to date again."""
    clips, hashes = _plan(run, recipe)
    for name in targets.current_shards:
        table_name = f"{name}.parquet"
        if name in hashes and run.exists(table_name) and not run.table_metadata(table_name).get("plan_hash"):
            table = run.read_table(table_name)
            if table["clip_id"].to_pylist() == clips[name]:
                run.write_table(table_name, table, run.table_metadata(table_name) | {"plan_hash": hashes[name]})


def _warnings(run: RunFolder, targets: Targets, rows: list[dict[str, Any]]) -> list[str]:
    warnings = []
    if targets.similar_uris:
        warnings.append(
            f"{len(targets.similar_uris)} other videos look like removed ones, such as {targets.similar_uris[0]}: remove "
            "them too if they must go (their names: --json); clips that were dropped as copies stay out"
        )
    trained = sorted({name.split("/")[1] for name in run.list("train/*/metrics.jsonl")})
    if trained and rows:
        warnings.append(f"models that were trained before have seen it: {', '.join(trained)}; train them again")
    return warnings
