"""Caption sets of a run folder: their names, the default set, and marking of repeated captions."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from recaption.captions.text import PASSING_FAULTS
from recaption.records import Caption, schema_of
from recaption.run_folder import RunFolder

REJECTED_CLIPS = "shards/rejected.parquet"
"""Path of the table of clips in no shard; its metadata names the caption set of the shards."""
CAPTION_STATE_SCHEMA = pa.schema(
    [schema_of(Caption).field(n) for n in ("clip_id", "source", "reason", "recipe_hash", "kind", "window", "fault")]
)


def default_caption_set(run: RunFolder) -> str | None:
    """The caption set of the shards; before there are shards the last by name; None where there is no set."""
    sets = caption_sets(run)
    made_from = run.table_metadata(REJECTED_CLIPS).get("set") if run.exists(REJECTED_CLIPS) else None
    return made_from if made_from in sets else sets[-1] if sets else None


def caption_set_pattern(set_name: str) -> str:
    """Glob of the tables of a caption set."""
    return f"captions/{set_name}/part-*.parquet"


def caption_sets(run: RunFolder) -> list[str]:
    """Names of the caption sets, sorted."""
    return sorted({name.split("/")[1] for name in run.list("captions/*/part-*.parquet")})


def main_captions(captions: pa.Table) -> pa.Table:
    """Rows for which `Caption.is_main` holds: at most one per clip."""
    is_main = pc.and_(pc.equal(captions["source"], "model"), pc.equal(captions["kind"], "descriptive"))
    return captions.filter(pc.and_(is_main, pc.equal(captions["window"], 0)))


def without_open_captions(captions: pa.Table) -> pa.Table:
    """Captions without those that wait for an answer: they are no verdict on their clips."""
    return captions.filter(pc.invert(is_open(captions)))


def is_open(captions: pa.Table) -> pa.ChunkedArray:
    """Which captions wait for an answer: their endpoint gave none, and the next run asks again."""
    return pc.is_in(captions["fault"], value_set=pa.array(PASSING_FAULTS))


def mark_repeated_captions(captions: pa.Table, repeated: pa.Table, max_clips: int | None) -> pa.Table:
    """Captions in which good texts shared by more than `max_clips` clips have the fault `repeated`.

    Args:
        captions: has at least the columns of `CAPTION_STATE_SCHEMA`.
        repeated: rows of `REPEATED_SCHEMA`.
        max_clips: None: nothing is marked.
    """
    if max_clips is None or not repeated.num_rows:
        return captions
    repeated_ids = repeated.filter(pc.greater(repeated["num_clips"], max_clips))["clip_id"].combine_chunks()
    is_bad = pc.and_(pc.is_in(captions["clip_id"], value_set=repeated_ids), pc.is_null(captions["reason"]))
    is_bad = pc.and_(is_bad, pc.and_(pc.equal(captions["kind"], "descriptive"), pc.equal(captions["window"], 0)))
    is_bad = pc.and_(is_bad, pc.equal(captions["source"], "model"))
    for name, value in (("reason", "bad_caption"), ("fault", "repeated")):
        position = captions.schema.get_field_index(name)
        column = pc.if_else(is_bad, value, captions[name])
        captions = captions.set_column(position, captions.schema.field(name), column)
    return captions
