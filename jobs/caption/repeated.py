"""Captions that the same words repeat over too many clips, marked over a whole caption set."""

from __future__ import annotations

from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc

from jobs.prepare.duplicates import METHOD, _inputs_hash, _is_made_from
from recaption.captions.repeated import REPEATED_SCHEMA, RepeatedCaptionSettings, find_repeated_texts, repeated_name
from recaption.captions.sets import caption_set_pattern, main_captions
from recaption.dedup.near_duplicates import PERCEPTUAL_PAIRS
from recaption.records import Caption, conform, schema_of
from recaption.run_folder import RunFolder, recipe_hash

REPEATED_INPUT = pa.schema(
    [schema_of(Caption).field(n) for n in ("clip_id", "text", "source", "reason", "kind", "window")]
)


def find_repeated_captions(run: RunFolder, settings: RepeatedCaptionSettings, set_name: str) -> bool:
    """Write which captions of a set are said of several clips; False where the table there is already made from the same."""
    names = run.list(caption_set_pattern(set_name))
    same = [PERCEPTUAL_PAIRS] if run.exists(PERCEPTUAL_PAIRS) else []
    metadata = {
        "inputs_hash": _inputs_hash(run, names + same),
        "settings_hash": recipe_hash([METHOD, asdict(settings)]),
    }
    if _is_made_from(run, repeated_name(set_name), metadata):
        return False
    text_of: dict[str, str] = {}
    for name in names:
        rows = main_captions(conform(run.read_table(name), REPEATED_INPUT))
        rows = rows.filter(pc.is_null(rows["reason"]))
        text_of |= dict(zip(rows["clip_id"].to_pylist(), rows["text"].to_pylist(), strict=True))
    pairs = [
        (row["clip_id_a"], row["clip_id_b"])
        for name in same
        for row in run.read_columns(name, ["clip_id_a", "clip_id_b", "similarity"]).to_pylist()
        if row["similarity"] >= settings.min_duplicate_similarity
    ]
    found = find_repeated_texts(text_of, duplicate_pairs=pairs, min_similarity=settings.min_similarity)
    table = [{"clip_id": clip_id, **asdict(repeated)} for clip_id, repeated in found.items()]
    run.write_table(repeated_name(set_name), pa.Table.from_pylist(table, schema=REPEATED_SCHEMA), metadata)
    return True
