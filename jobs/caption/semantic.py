"""Pairs of clips whose embeddings say that they mean the same, over a whole run."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from jobs.prepare.duplicates import (
    FINGERPRINTS,
    _inputs_hash,
    _is_made_from,
    _pair_table,
    _read_hashes,
    _settings_hash,
    _sorted,
)
from recaption.dedup.near_duplicates import DuplicateSettings, semantic_pairs_file
from recaption.dedup.semantic import semantic_pairs
from recaption.errors import UsageError
from recaption.run_folder import RunFolder


def find_semantic(run: RunFolder, settings: DuplicateSettings, set_name: str) -> bool:
    """Write the pairs whose embeddings are alike; False where the table there is already made from the same.

    Raises:
        UsageError: the caption set has no embeddings.
    """
    names = run.list(f"embeddings/{set_name}/part-*.parquet")
    if not names:
        raise UsageError(f"{run.uri} has no embeddings of caption set {set_name!r}")
    metadata = {"inputs_hash": _inputs_hash(run, names), "settings_hash": _settings_hash(settings)}
    if _is_made_from(run, semantic_pairs_file(set_name), metadata):
        return False
    embedded = pa.concat_tables([run.read_table(name).select(["clip_id", "embedding"]) for name in names])
    embeddings = dict(zip(embedded["clip_id"].to_pylist(), embedded["embedding"].to_pylist(), strict=True))
    clips, _, _ = _read_hashes(run, run.list(FINGERPRINTS))
    known = np.array([clip_id in embeddings for clip_id in clips.clip_id.tolist()], bool)
    places = np.flatnonzero(known)
    values_ND = np.stack([np.frombuffer(embeddings[clips.clip_id[i]], "<f2") for i in places]) if len(places) else None
    if values_ND is None:
        found, similarity = np.zeros((0, 2), np.int64), np.zeros(0)
    else:
        found, similarity = semantic_pairs(values_ND.astype(np.float32), settings.min_semantic_similarity)
        found = places[found]
    shorter = np.minimum(clips.seconds[found[:, 0]], clips.seconds[found[:, 1]])
    nothing = np.zeros(len(found))
    table = _pair_table(clips, found, "semantic", similarity, shorter, nothing, nothing)
    run.write_table(semantic_pairs_file(set_name), _sorted([table]), metadata)
    return True
