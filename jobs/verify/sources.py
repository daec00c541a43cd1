"""The source videos of a repair: whether they are those that were prepared, and another try at those out of reach."""

from __future__ import annotations

from collections.abc import Iterable

from jobs.caption.caption import caption
from jobs.prepare.prepare import prepare
from jobs.recipe.part_names import part_name, part_number
from jobs.recipe.settings import stage_hashes
from jobs.shard import shard
from jobs.verify.repair_scope import RepairJob
from recaption.captions.sets import caption_set_pattern, caption_sets, default_caption_set
from recaption.errors import VideoError
from recaption.inputs.open_input import open_input
from recaption.ledger.ledger import CLIPS_SCHEMA
from recaption.ledger.problems import read_tables_or_problems
from recaption.records import Video, schema_of
from recaption.run_folder import RunFolder


def _current_video_id(job: RepairJob, uri: str) -> str:
    """Hash of the current bytes of a source, cached; empty if it cannot be read."""
    if uri not in job.sources:
        try:
            with open_input(uri) as opened:
                job.sources[uri] = opened.video_id()
        except VideoError:
            job.sources[uri] = ""
    return job.sources[uri]


def source_problem(job: RepairJob, expected: Iterable[tuple[str, str | None]]) -> str:
    """Why the sources cannot be used: the first one that is gone or changed; empty if all are unchanged.

    Args:
        expected: (uri, video_id); None if the id is lost, so that the file only has to exist.
    """
    for uri, video_id in expected:
        now = _current_video_id(job, uri)
        if video_id != now and not (video_id is None and now):
            return f"its source {uri} " + ("has other bytes now" if now else "is gone")
    return ""


def fetch_again(job: RepairJob) -> bool:
    """Try the inputs and clips once more that failed because their source could not be fetched; whether any are there now.

    Only in a run folder without damage.
    """
    run, before = job.run, len(job.repaired)
    failed = _fetch_failures(run, "videos/part-*.parquet")
    if failed:
        prepare([], run.uri, job.recipe, job.cluster, only={part_number(name) for name in failed})
    _add_repaired(job, "videos/part-*.parquet", failed)
    for set_name in caption_sets(run):
        pattern = caption_set_pattern(set_name)
        failed = _fetch_failures(run, pattern)
        same = stage_hashes(job.recipe)["caption"]
        if failed and all(run.table_metadata(name).get("recipe_hash") == same for name in failed):
            caption(run, job.recipe, set_name, job.cluster, only={part_number(name) for name in failed})
            _add_repaired(job, pattern, failed)
    failed, shards_set = _fetch_failures(run, "shards/*/*.parquet"), default_caption_set(run)
    if failed and shards_set is not None:
        shard(run, job.recipe, shards_set, job.cluster, only={name.removesuffix(".parquet") for name in failed})
        _add_repaired(job, "shards/*/*.parquet", failed)
    return len(job.repaired) > before


def _fetch_failures(run: RunFolder, pattern: str) -> dict[str, int]:
    """File -> its rows that failed because their source could not be fetched, where there are any."""
    reasons = {name: run.read_columns(name, ["reason"])["reason"].to_pylist() for name in run.list(pattern)}
    return {name: count for name, found in reasons.items() if (count := found.count("fetch_failed"))}


def _add_repaired(job: RepairJob, pattern: str, before: dict[str, int]) -> None:
    after = _fetch_failures(job.run, pattern) if before else {}
    job.repaired += [f"{name} (fetched)" for name, count in before.items() if after.get(name, 0) < count]


def expected_sources(run: RunFolder, number: int, uris: list[str]) -> list[tuple[str, str | None]]:
    """(uri, video_id) of the inputs of a part, from its table of videos or else of clips; id None if both are lost."""
    video_ids: dict[str, str] = {}
    tables, _ = read_tables_or_problems(run, [part_name("clips", number)], CLIPS_SCHEMA)
    for table in tables.values():
        video_ids |= dict(zip(table["uri"].to_pylist(), table["video_id"].to_pylist()))
    tables, _ = read_tables_or_problems(run, [part_name("videos", number)], schema_of(Video))
    for table in tables.values():
        video_ids |= dict(zip(table["uri"].to_pylist(), table["video_id"].to_pylist()))
    return [(uri, video_ids.get(uri)) for uri in uris]
