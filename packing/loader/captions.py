"""Captions of samples in shards, sampled from all texts of a caption set; the shards themselves stay as they are.

blend = read_blend(run, samples, CaptionMixtureSettings(weights=("descriptive=0.9", "short=0.1")))
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
    run: RunFolder, samples: Sequence[Sample], settings: CaptionMixtureSettings, *, window_captions: bool = False
) -> CaptionMixture | None:
    """Read the caption mixture of these samples; None where every text is the caption in the shards.

    Args:
        window_captions: samples are cropped in time: also keep the captions of windows of their clips.

    Raises:
        UsageError: weights that are invalid, or a caption set that does not exist.
    """
    weights = parse_mixture_weights(settings.weights)
    set_of_shards = run.table_metadata(REJECTED_CLIPS).get("set", "") if run.exists(REJECTED_CLIPS) else ""
    set_name = settings.caption_set or set_of_shards
    parts = run.list(caption_set_pattern(set_name)) if set_name else []
    if settings.caption_set and not parts:
        raise UsageError(f"{run.uri} has no caption set {set_name!r}: run `recaption caption --set {set_name}` first")
    index_of = {sample.clip_id: index for index, sample in enumerate(samples)}
    wanted = pa.array(list(index_of), pa.string())
    texts_by_kind: dict[int, dict[str, str]] = {}
    windows: dict[int, tuple[float, list[Caption]]] = {}
    for name in parts:
        for clip_id, captions in _read_captions(run, name, wanted).items():
            index = index_of[clip_id]
            sample = samples[index]
            start = min(caption.start_seconds for caption in captions)
            end = start + sample.num_frames / sample.fps
            texts = captions_for_sample(captions, {*weights, "descriptive"}, start, end)
            if window_captions and len({(caption.start_seconds, caption.end_seconds) for caption in captions}) > 1:
                windows[index] = start, captions
            if any(text != sample.caption for text in texts.values()):
                texts_by_kind.setdefault(index, texts)
    if not texts_by_kind and not windows:
        return None
    clip_ids, shard_captions = [sample.clip_id for sample in samples], [sample.caption for sample in samples]
    return CaptionMixture(clip_ids, shard_captions, texts_by_kind, weights, settings.seed, windows)


def _read_captions(run: RunFolder, name: str, clip_ids: pa.Array) -> dict[str, list[Caption]]:
    """Clip id -> its good captions in one part of the set; a clip is in one part only."""
    table = conform(run.read_table(name), schema_of(Caption))
    is_good = pc.and_(pc.is_in(table["clip_id"], value_set=clip_ids), pc.is_null(table["reason"]))
    found: dict[str, list[Caption]] = defaultdict(list)
    for caption in from_table(table.filter(is_good), Caption):
        found[caption.clip_id].append(caption)
    return found
