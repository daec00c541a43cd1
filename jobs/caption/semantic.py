"""Semantic near duplicates: pairs of clips with similar embeddings, over a whole run."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from jobs.prepare.duplicates import (
    FINGERPRINTS,
    hash_of_inputs,
    hash_of_settings,
    is_up_to_date,
    pair_table,
    read_hashes,
    sorted_pairs,
)
from recaption.dedup.near_duplicates import DuplicateSettings, semantic_pairs_file
from recaption.dedup.semantic import semantic_pairs
from recaption.errors import UsageError
from recaption.run_folder import RunFolder


def find_semantic(run: RunFolder, settings: DuplicateSettings, set_name: str) -> bool:
    """Write the pairs with similar embeddings; False if the existing table is up to date.

    Raises:
        UsageError: the caption set has no embeddings.
    """
    names = run.list(f"embeddings/{set_name}/part-*.parquet")
    if not names:
        raise UsageError(f"{run.uri} has no embeddings of caption set {set_name!r}")
    metadata = {"inputs_hash": hash_of_inputs(run, names), "settings_hash": hash_of_settings(settings)}
    if is_up_to_date(run, semantic_pairs_file(set_name), metadata):
        return False
    embedded = pa.concat_tables([run.read_table(name).select(["clip_id", "embedding"]) for name in names])
    embeddings = dict(zip(embedded["clip_id"].to_pylist(), embedded["embedding"].to_pylist(), strict=True))
    clips, _, _ = read_hashes(run, run.list(FINGERPRINTS))
    is_embedded = np.array([clip_id in embeddings for clip_id in clips.clip_id.tolist()], bool)
    clip_rows = np.flatnonzero(is_embedded)
    values_ND = (
        np.stack([np.frombuffer(embeddings[clips.clip_id[i]], "<f2") for i in clip_rows]) if len(clip_rows) else None
    )
    if values_ND is None:
        found, similarity = np.zeros((0, 2), np.int64), np.zeros(0)
    else:
        found, similarity = semantic_pairs(values_ND.astype(np.float32), settings.min_semantic_similarity)
        found = clip_rows[found]
    shorter = np.minimum(clips.seconds[found[:, 0]], clips.seconds[found[:, 1]])
    no_offset = np.zeros(len(found))
    table = pair_table(clips, found, "semantic", similarity, shorter, no_offset, no_offset)
    run.write_table(semantic_pairs_file(set_name), sorted_pairs([table]), metadata)
    return True
