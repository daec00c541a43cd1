"""The problems that `recaption verify` reports, and reading tables that may be damaged.

tables, problems = read_tables_or_problems(run, run.list("clips/part-*.parquet"), CLIPS_SCHEMA)
for problem in problems:
    problem.kind, problem.where, problem.detail      # "part_unreadable", "clips/part-00003.parquet", "does not open ..."
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from recaption.records import conform
from recaption.run_folder import TEMPORARY_SUFFIX, RunFolder

PROBLEM_KINDS = (
    "temporary_file",
    "path_outside",
    "part_unreadable",
    "recipe_mixed",
    "input_missing",
    "part_missing",
    "video_twice",
    "source_changed",
    "clip_id_wrong",
    "clip_without_video",
    "clips_do_not_tile",
    "span_missing",
    "span_without_clip",
    "seconds_do_not_add_up",
    "caption_without_clip",
    "caption_missing",
    "embedding_missing",
    "caption_of_other_clip",
    "clip_score_differs",
    "captions_shuffled",
    "shard_missing",
    "shard_unlisted",
    "shard_broken",
    "keys_scattered",
    "members_missing",
    "sample_missing",
    "sample_unlisted",
    "offset_wrong",
    "sha256_wrong",
    "json_unreadable",
    "bytes_differ",
    "text_differs",
    "caption_changed",
    "clip_in_two_shards",
    "sample_of_other_clip",
    "unknown_clip_in_shard",
    "dropped_clip_in_shard",
    "clip_missing_from_shards",
    "index_missing",
    "index_differs",
    "statistics_differ",
    "text_part_differs",
    "removal_unfinished",
)
"""Kinds of problems that `recaption verify` reports. Closed list: tests and reports read it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem in a run folder: its kind, the file or row, and details."""

    kind: str
    """One of `PROBLEM_KINDS`."""
    where: str
    """The file, relative to the run folder; with `:` and a clip id or uri where it concerns one row or sample."""
    detail: str

    def __post_init__(self) -> None:
        assert self.kind in PROBLEM_KINDS, self.kind


def check_temporary_files(run: RunFolder) -> Iterator[Problem]:
    """Find files that a killed run left under a temporary name."""
    prefix = run.root.rstrip("/") + "/"
    for path in sorted(str(p) for p in run.fs.glob(run.path("**/*" + TEMPORARY_SUFFIX))):
        detail = "left by a run that was killed; run the same command again to remove it"
        yield Problem(kind="temporary_file", where=path.removeprefix(prefix), detail=detail)


def read_tables_or_problems(
    run: RunFolder, names: Iterable[str], schema: pa.Schema, columns: Sequence[str] | None = None
) -> tuple[dict[str, pa.Table], list[Problem]]:
    """Tables by file name with the columns of `schema`, and a problem for each file that does not have them.

    Args:
        columns: the columns that are returned, all of `schema` by default. All are checked.
    """
    tables: dict[str, pa.Table] = {}
    problems = []
    for name in names:
        try:
            table = conform(run.read_table(name), schema)
            tables[name] = table if columns is None else table.select(list(columns))
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            detail = " ".join(str(error).split())[:200]
            problems.append(Problem(kind="part_unreadable", where=name, detail=f"does not open as a table: {detail}"))
    return tables, problems
