"""Whether the videos that a repair reads are still those that were prepared."""

from __future__ import annotations

from collections.abc import Iterable

from jobs.recipe.run_inputs import part_name
from jobs.verify.repair_scope import Repair
from recaption.errors import VideoError
from recaption.inputs.local_files import file_id, local_copy
from recaption.ledger.ledger import CLIPS_SCHEMA
from recaption.ledger.problems import read_tables_or_problems
from recaption.records import Video, schema_of
from recaption.run_folder import RunFolder

# --- sources ----------------------------------------------------------------------------------------------------------


def _id_now(job: Repair, uri: str) -> str:
    if uri not in job.sources:
        try:
            with local_copy(uri) as path:
                job.sources[uri] = file_id(path)[0]
        except (VideoError, OSError):
            job.sources[uri] = ""
    return job.sources[uri]


def _why_lost(job: Repair, expected: Iterable[tuple[str, str | None]]) -> str:
    """What became of the first source that is not what it was; empty where all are.

    Args:
        expected: (uri, video_id); None = not known any more, so that the file only has to be there.
    """
    for uri, video_id in expected:
        now = _id_now(job, uri)
        if video_id != now and not (video_id is None and now):
            return f"its source {uri} " + ("has other bytes now" if now else "is gone")
    return ""


def _expected_sources(run: RunFolder, number: int, uris: list[str]) -> list[tuple[str, str | None]]:
    """What is still known of the inputs of a part, from its videos or else from its clips."""
    known: dict[str, str] = {}
    tables, _ = read_tables_or_problems(run, [part_name("clips", number)], CLIPS_SCHEMA)
    for table in tables.values():
        known |= dict(zip(table["uri"].to_pylist(), table["video_id"].to_pylist()))
    tables, _ = read_tables_or_problems(run, [part_name("videos", number)], schema_of(Video))
    for table in tables.values():
        known |= dict(zip(table["uri"].to_pylist(), table["video_id"].to_pylist()))
    return [(uri, known.get(uri)) for uri in uris]
