"""Verdicts: what people decided on clips, in RUN/verdicts/part-*.parquet; of several on a clip the last one wins.

    verdicts = read_verdicts(run)                 # one row per clip: clip_id, verdict, reason, by, time
    clips = add_verdicts(clips, verdicts)         # with the column `verdict`, which the filters read

`keep` stands above the thresholds of filters, but brings back no duplicate, no failure and no clip without a good caption
or a bucket; `reject` drops a clip (reason `rejected`); `none` takes an earlier verdict back. A part is never changed.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from recaption.quality.filters import VERDICT_COLUMN
from recaption.records import conform
from recaption.run_folder import RunFolder

VERDICTS = ("keep", "reject", "none")
VERDICT_PARTS = "verdicts/part-*.parquet"
VERDICT_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("by", pa.string()),
        ("time", pa.timestamp("us", tz="UTC")),
    ]
)
"""`verdict`: one of `VERDICTS`; `reason` and `by` (who) are free text, "" where unknown."""


def read_verdicts(run: RunFolder) -> pa.Table:
    """The verdict on each clip that has one, by clip id."""
    return last_verdicts([run.read_tables(VERDICT_PARTS, VERDICT_SCHEMA)])


def last_verdicts(parts: Iterable[pa.Table]) -> pa.Table:
    """Of each clip the last row of all parts, in their order, unless it says `none`."""
    rows = pa.concat_tables([VERDICT_SCHEMA.empty_table(), *(conform(part, VERDICT_SCHEMA) for part in parts)])
    rows = rows.append_column("row", pa.array(range(rows.num_rows), pa.int64()))
    last = rows.group_by("clip_id").aggregate([("row", "max")])["row_max"]
    rows = rows.take(last).sort_by("clip_id").select(VERDICT_SCHEMA.names)
    return rows.filter(pc.not_equal(rows["verdict"], "none"))


def add_verdicts(clips: pa.Table, verdicts: pa.Table) -> pa.Table:
    """Clips with the column `verdict`, null where there is none; without it where there are no verdicts at all."""
    if not verdicts.num_rows:
        return clips
    position = pc.index_in(clips["clip_id"].combine_chunks(), value_set=verdicts["clip_id"].combine_chunks())
    return clips.append_column(VERDICT_COLUMN, verdicts["verdict"].combine_chunks().take(position))
