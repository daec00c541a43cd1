"""RUN/inputs.parquet: the inputs of a run and the parts that they belong to, in order.

for number, rows in iter_parts(run): ...      # 3, [{"uri": "/data/a.mp4", "part": 3, "refusal": "", "list_hash": ""}, ...]

Ten million rows are read and written some thousands at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from recaption.errors import StorageError
from recaption.inputs.paths import REFUSED
from recaption.ledger.ledger import INPUTS_SCHEMA
from recaption.run_folder import RunFolder

INPUTS = "inputs.parquet"
LISTED_INPUTS_SCHEMA = pa.schema([*INPUTS_SCHEMA, ("refusal", pa.string()), ("list_hash", pa.string())])
"""What is written; the ledger counts by the first columns. `refusal`: why what is named cannot be an input (a folder that
may not be read, an empty entry of a list); else "". `list_hash`: of what lists say of it; "" where none does."""
ROWS_PER_GROUP = 8192


def iter_inputs(run: RunFolder) -> Iterator[dict[str, Any]]:
    """Rows of the list of inputs, in order; none where there is no list yet."""
    if run.exists(INPUTS):
        for batch in run.read_batches(INPUTS):
            for row in batch.to_pylist():
                yield {
                    "uri": row["uri"],
                    "part": row["part"],
                    "refusal": row.get("refusal") or "",
                    "list_hash": row.get("list_hash") or "",
                }


def iter_parts(run: RunFolder) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(number, its rows) of each part, in order."""
    for number, rows in itertools.groupby(iter_inputs(run), lambda row: row["part"]):
        yield number, list(rows)


def read_inputs(run: RunFolder) -> list[dict[str, Any]]:
    """All rows in memory: 0.4 kB each."""
    return list(iter_inputs(run))


def inputs_of_part(run: RunFolder, number: int) -> list[dict[str, Any]]:
    """The rows of one part; the others are hardly read.

    Raises:
        StorageError: there is no list of inputs any more.
    """
    try:
        return list(run.read_rows_of(INPUTS, "part", number).to_pylist())
    except FileNotFoundError:
        raise StorageError(
            f"{run.path(INPUTS)} vanished while `prepare` ran: was the run folder removed? Run it again"
        ) from None


def write_inputs(run: RunFolder, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the list of inputs."""
    iterator = iter(rows)
    batches = iter(lambda: list(itertools.islice(iterator, ROWS_PER_GROUP)), [])
    tables = (pa.Table.from_pylist(batch, schema=LISTED_INPUTS_SCHEMA) for batch in batches)
    run.write_batches(INPUTS, LISTED_INPUTS_SCHEMA, tables)


def parts_of(rows: Iterable[Mapping[str, Any]]) -> dict[int, list[str]]:
    """Part -> its inputs, in order."""
    parts: dict[int, list[str]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row["uri"])
    return parts


def refusals_in(videos: Iterable[dict[str, Any]]) -> dict[str, str]:
    """What is refused -> why, by rows of RUN/videos: to rebuild the list of inputs."""
    refused = [row for row in videos if not row["video_id"] and row["detail"].startswith(REFUSED)]
    return {row["uri"]: row["detail"].removeprefix(REFUSED) for row in refused}
