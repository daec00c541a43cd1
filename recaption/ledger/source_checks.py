"""Checks that the source videos still have the bytes that `prepare` hashed.

    check_sources(run)            # [Problem(kind="source_changed", where="videos/part-00003.parquet:/data/a.mp4", ...)]

Every local input is looked at; only one whose size, times or inode differ is hashed. A source that is gone is no problem,
nor a proof: its clips are in the shards. Remote sources are compared where clips of them are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from recaption.errors import VideoError
from recaption.inputs.open_input import InputState, local_state, open_input
from recaption.ledger.problems import Problem, read_tables_or_problems
from recaption.records import Video, schema_of
from recaption.run_folder import RunFolder

NUM_THREADS = 16
"""A stat takes a millisecond on a network file system."""
Track = Callable[[Sequence[dict[str, Any]]], Iterable[dict[str, Any]]]
COLUMNS = ("uri", "status", *InputState.__dataclass_fields__)


def check_sources(run: RunFolder, *, track: Track = iter) -> list[Problem]:
    """A problem per local source whose bytes are others now.

    Args:
        track: wraps the rows of sources that have to be hashed, for a progress bar.
    """
    suspects: list[dict[str, Any]] = []
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for name in run.list("videos/part-*.parquet"):
            tables, _ = read_tables_or_problems(
                run, [name], schema_of(Video), COLUMNS
            )  # `verify` reports unreadable ones
            rows = [row for table in tables.values() for row in table.to_pylist() if row["status"] == "ok"]
            states = threads.map(local_state, [row["uri"] for row in rows])
            for row, now in zip(rows, states, strict=True):
                if now is not None and not now.has_same_stat(state_in(row)):
                    suspects.append({**row, "part": name})
    problems = []
    for row in track(suspects):
        try:
            with open_input(row["uri"], expected=state_in(row)):
                pass
        except VideoError as error:
            if error.reason == "source_changed":
                problems.append(source_changed(row["part"], row["uri"], error.detail))
    return problems


def source_changed(part: str, uri: str, detail: str) -> Problem:
    """
    Args:
        part: of RUN/videos.
    """
    return Problem(kind="source_changed", where=f"{part}:{uri}", detail=f"its source has other bytes now: {detail}")


def state_in(row: dict[str, Any]) -> InputState:
    """The recorded state in a row of RUN/videos."""
    return InputState(**{name: row[name] for name in InputState.__dataclass_fields__})
