"""The texts of a caption set for samples that lie in shards: read beside the shards, which stay as they are.

blend = read_blend(run, rows, BlendSettings(ratios=("descriptive=0.9", "short=0.1")))
blend.text(index, epoch)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from recaption.blend import Blend, BlendSettings, parse_ratios, texts_of_sample
from recaption.errors import UsageError
from recaption.ledger import REJECTED, set_pattern
from recaption.records import Caption, Sample, conform, from_table, schema_of
from recaption.run_folder import RunFolder


def read_blend(run: RunFolder, rows: Sequence[Sample], settings: BlendSettings) -> Blend | None:
    """What each sample shows; None where that is its caption in the shards, in every epoch.

    Raises:
        UsageError: ratios that make no sense, or a caption set by name that is not there.
    """
    ratios = parse_ratios(settings.ratios)
    made_from = run.table_metadata(REJECTED).get("set", "") if run.exists(REJECTED) else ""
    set_name = settings.captions or made_from
    parts = run.list(set_pattern(set_name)) if set_name else []
    if settings.captions and not parts:
        raise UsageError(f"{run.uri} has no caption set {set_name!r}: run `recaption caption --set {set_name}` first")
    said = _captions_of(run, parts, pa.array([row.clip_id for row in rows], pa.string()))
    texts = []
    for row in rows:
        captions = said.get(row.clip_id, [])
        start = min((caption.start_seconds for caption in captions), default=0.0)
        found = texts_of_sample(captions, {*ratios, "descriptive"}, start, start + row.num_frames / row.fps)
        texts.append({"descriptive": row.caption} | found)
    if all(one[kind] == row.caption for row, one in zip(rows, texts, strict=True) for kind in one):
        return None
    return Blend([row.clip_id for row in rows], texts, ratios, settings.seed)


def _captions_of(run: RunFolder, parts: Sequence[str], wanted: pa.Array) -> dict[str, list[Caption]]:
    """Clip id -> its good rows; one part in memory at a time."""
    found: dict[str, list[Caption]] = defaultdict(list)
    for name in parts:
        table = conform(run.read_table(name), schema_of(Caption))
        is_wanted = pc.and_(pc.is_in(table["clip_id"], value_set=wanted), pc.is_null(table["reason"]))
        for row in from_table(table.filter(is_wanted), Caption):
            found[row.clip_id].append(row)
    return found
