"""Finds captions that are repeated over many clips of a caption set (RUN/captions/<set>/repeated.parquet)."""

from __future__ import annotations

from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc

from jobs.prepare.duplicates import METHOD_VERSION, hash_of_inputs, is_up_to_date
from recaption.captions.repeated import REPEATED_SCHEMA, RepeatedCaptionSettings, find_repeated_texts, repeated_name
from recaption.captions.sets import caption_set_pattern, main_captions
from recaption.dedup.near_duplicates import PERCEPTUAL_PAIRS
from recaption.records import Caption, conform, schema_of
from recaption.run_folder import RunFolder, recipe_hash

REPEATED_INPUT = pa.schema(
    [schema_of(Caption).field(n) for n in ("clip_id", "text", "source", "reason", "kind", "window")]
)


def find_repeated_captions(run: RunFolder, settings: RepeatedCaptionSettings, set_name: str) -> bool:
    """Write the table of repeated captions of a set; False if the existing table is up to date."""
    names = run.list(caption_set_pattern(set_name))
    duplicates = [PERCEPTUAL_PAIRS] if run.exists(PERCEPTUAL_PAIRS) else []
    metadata = {
        "inputs_hash": hash_of_inputs(run, names + duplicates),
        "settings_hash": recipe_hash([METHOD_VERSION, asdict(settings)]),
    }
    if is_up_to_date(run, repeated_name(set_name), metadata):
        return False
    text_of: dict[str, str] = {}
    for name in names:
        rows = main_captions(conform(run.read_table(name), REPEATED_INPUT))
        rows = rows.filter(pc.is_null(rows["reason"]))
        text_of |= dict(zip(rows["clip_id"].to_pylist(), rows["text"].to_pylist(), strict=True))
    pairs = [
        (row["clip_id_a"], row["clip_id_b"])
        for name in duplicates
        for row in run.read_columns(name, ["clip_id_a", "clip_id_b", "similarity"]).to_pylist()
        if row["similarity"] >= settings.min_duplicate_similarity
    ]
    found = find_repeated_texts(text_of, duplicate_pairs=pairs, min_similarity=settings.min_similarity)
    table = [{"clip_id": clip_id, **asdict(repeated)} for clip_id, repeated in found.items()]
    run.write_table(repeated_name(set_name), pa.Table.from_pylist(table, schema=REPEATED_SCHEMA), metadata)
    return True
