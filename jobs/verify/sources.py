"""Checks that the source videos of a repair have not changed since `prepare`."""

from __future__ import annotations

from collections.abc import Iterable

from jobs.recipe.part_names import part_name
from jobs.verify.repair_scope import RepairJob
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
