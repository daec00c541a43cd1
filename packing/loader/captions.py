"""The texts of a caption set for samples that lie in shards: read beside the shards, which stay as they are.

blend = read_blend(run, rows, CaptionMixtureSettings(weights=("descriptive=0.9", "short=0.1")))
blend.text(index, epoch)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from recaption.captions.mixture import (
    CaptionMixture,
    CaptionMixtureSettings,
    captions_for_sample,
    parse_mixture_weights,
)
from recaption.captions.sets import REJECTED_CLIPS, caption_set_pattern
from recaption.errors import UsageError
from recaption.records import Caption, Sample, conform, from_table, schema_of
from recaption.run_folder import RunFolder


def read_blend(
    run: RunFolder, rows: Sequence[Sample], settings: CaptionMixtureSettings, *, window_texts: bool = False
) -> CaptionMixture | None:
    """What each sample shows; None where that is its caption in the shards, in every epoch.

    Args:
        window_texts: samples are shown in parts too: keep what the set says of windows of their clips.

    Raises:
        UsageError: weights that are invalid, or a caption set by name that is not there.
    """
    weights = parse_mixture_weights(settings.weights)
    made_from = run.table_metadata(REJECTED_CLIPS).get("set", "") if run.exists(REJECTED_CLIPS) else ""
    set_name = settings.caption_set or made_from
    parts = run.list(caption_set_pattern(set_name)) if set_name else []
    if settings.caption_set and not parts:
        raise UsageError(f"{run.uri} has no caption set {set_name!r}: run `recaption caption --set {set_name}` first")
    index_of = {row.clip_id: index for index, row in enumerate(rows)}
    wanted = pa.array(list(index_of), pa.string())
    texts_by_kind: dict[int, dict[str, str]] = {}
    windows: dict[int, tuple[float, list[Caption]]] = {}
    for name in parts:
        for clip_id, captions in _captions_in(run, name, wanted).items():
            row = rows[index_of[clip_id]]
            start = min(caption.start_seconds for caption in captions)
            found = captions_for_sample(captions, {*weights, "descriptive"}, start, start + row.num_frames / row.fps)
            if window_texts and len({(caption.start_seconds, caption.end_seconds) for caption in captions}) > 1:
                windows[index_of[clip_id]] = start, captions
            if any(text != row.caption for text in found.values()):
                texts_by_kind.setdefault(index_of[clip_id], found)
    if not texts_by_kind and not windows:
        return None
    return CaptionMixture(
        [row.clip_id for row in rows], [row.caption for row in rows], texts_by_kind, weights, settings.seed, windows
    )


def _captions_in(run: RunFolder, name: str, wanted: pa.Array) -> dict[str, list[Caption]]:
    """Clip id -> its good rows in one part, which holds all of them."""
    table = conform(run.read_table(name), schema_of(Caption))
    is_wanted = pc.and_(pc.is_in(table["clip_id"], value_set=wanted), pc.is_null(table["reason"]))
    found: dict[str, list[Caption]] = defaultdict(list)
    for row in from_table(table.filter(is_wanted), Caption):
        found[row.clip_id].append(row)
    return found
