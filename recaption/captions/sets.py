"""Caption sets of a run folder: their names, the default one, and which captions count."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from recaption.records import Caption, schema_of
from recaption.run_folder import RunFolder

REJECTED = "shards/rejected.parquet"
"""Clips that no shard takes; its metadata names the caption set of the shards."""


CAPTION_STATE_SCHEMA = pa.schema(
    [schema_of(Caption).field(n) for n in ("clip_id", "source", "reason", "recipe_hash", "kind", "window", "fault")]
)


def chosen_set(run: RunFolder) -> str | None:
    """The caption set that the shards were made from; before there are shards the last by name; None without any."""
    sets = caption_sets(run)
    made_from = run.table_metadata(REJECTED).get("set") if run.exists(REJECTED) else None
    return made_from if made_from in sets else sets[-1] if sets else None


def set_pattern(set_name: str) -> str:
    return f"captions/{set_name}/part-*.parquet"


def caption_sets(run: RunFolder) -> list[str]:
    """Names of the caption sets, sorted."""
    return sorted({name.split("/")[1] for name in run.list("captions/*/part-*.parquet")})


def main_captions(captions: pa.Table) -> pa.Table:
    """`Caption.is_main` of a table: one row per clip at most."""
    is_main = pc.and_(pc.equal(captions["source"], "model"), pc.equal(captions["kind"], "descriptive"))
    return captions.filter(pc.and_(is_main, pc.equal(captions["window"], 0)))


def mark_repeated(captions: pa.Table, repeated: pa.Table, max_clips: int | None) -> pa.Table:
    """Captions as the gate over the whole set leaves them: good ones that are said of too many clips have a fault.

    Args:
        captions: with the columns of `CAPTION_STATE_SCHEMA`, and others.
        repeated: rows of `REPEATED_SCHEMA`.
    """
    if max_clips is None or not repeated.num_rows:
        return captions
    often = repeated.filter(pc.greater(repeated["num_clips"], max_clips))["clip_id"].combine_chunks()
    is_bad = pc.and_(pc.is_in(captions["clip_id"], value_set=often), pc.is_null(captions["reason"]))
    is_bad = pc.and_(is_bad, pc.and_(pc.equal(captions["kind"], "descriptive"), pc.equal(captions["window"], 0)))
    is_bad = pc.and_(is_bad, pc.equal(captions["source"], "model"))
    for name, value in (("reason", "bad_caption"), ("fault", "repeated")):
        place = captions.schema.get_field_index(name)
        column = pc.if_else(is_bad, value, captions[name])
        captions = captions.set_column(place, captions.schema.field(name), column)
    return captions
