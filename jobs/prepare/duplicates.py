"""Finds perceptual near duplicates of a whole run: RUN/fingerprints -> RUN/duplicates/perceptual.parquet.

    find_perceptual(run, recipe.prepare.duplicates)        # at the end of `prepare`; False if the table is up to date

Also the table helpers of jobs/caption/semantic.py (RUN/duplicates/semantic-<set>.parquet) and jobs/caption/repeated.py
(RUN/captions/<set>/repeated.parquet). Each table stores a hash of its inputs; if they are unchanged, only metadata is read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from recaption.dedup.candidates import candidate_pairs
from recaption.dedup.fingerprints import HASH_TYPE, thumbnails_from_bytes
from recaption.dedup.matching import Matches, match_pairs
from recaption.dedup.near_duplicates import PAIRS_SCHEMA, PERCEPTUAL_PAIRS, DuplicateSettings
from recaption.run_folder import RunFolder, recipe_hash

FINGERPRINTS = "fingerprints/part-*.parquet"
METHOD_VERSION = 2
"""Increase it when the same fingerprints and settings give other pairs: existing tables are then computed again."""
RANK_COLUMNS = ("clip_id", "num_pixels", "seconds", "bytes_per_second")
FULL_COPY_SIMILARITY, FULL_COPY_FRACTION = 0.95, 0.9
"""Minimum similarity, and fraction of the worse clip that is covered, for a pair to count towards `max_matches_per_clip`."""
PAIRS_PER_BATCH = 4096
"""Their thumbnails are in memory: 4096 pairs of clips of 6 s take 75 MB."""


@dataclass(frozen=True)
class ClipColumns:
    """Columns of the unique clips of a run, best copy first (pixels, length, bitrate, id)."""

    clip_id: np.ndarray
    num_pixels: np.ndarray
    seconds: np.ndarray
    bytes_per_second: np.ndarray
    name: np.ndarray
    """File of the clip's fingerprint."""
    row: np.ndarray
    """Row in that file."""


def find_perceptual(run: RunFolder, settings: DuplicateSettings, *, progress: bool = True) -> bool:
    """Write the visually similar pairs; False if the existing table is up to date.

    The result does not depend on the order of inputs or the number of workers: clips are sorted first.
    """
    names = run.list(FINGERPRINTS)
    metadata = {"inputs_hash": hash_of_inputs(run, names), "settings_hash": hash_of_settings(settings)}
    if is_up_to_date(run, PERCEPTUAL_PAIRS, metadata):
        return False
    clips, hashes, clip_rows = read_hashes(run, names)
    found = candidate_pairs(
        hashes,
        clip_rows,
        num_tables=settings.num_tables,
        key_bits=settings.key_bits,
        max_hash_distance=settings.max_hash_distance,
        max_candidates_per_hash=settings.max_candidates_per_hash,
    )
    found = found[_rank_among_better(found) < settings.max_comparisons_per_clip]
    bar = tqdm(total=len(found), desc="near copies", unit="pair", file=sys.stderr, disable=not progress)
    tables = [PAIRS_SCHEMA.empty_table()]
    num_full_copies = np.zeros(len(clips.clip_id), np.int64)
    with bar:
        while len(found):
            now = _rank_among_better(found) < settings.max_matches_per_clip
            for candidates in _batches_by_file(clips, found[now]):
                matches = _matched(run, clips, candidates)
                worse = candidates[:, 1]
                is_full_copy = (matches.similarity >= FULL_COPY_SIMILARITY) & (
                    matches.overlap_seconds >= FULL_COPY_FRACTION * clips.seconds[worse]
                )
                np.add.at(num_full_copies, worse[is_full_copy], 1)
                tables.append(_matched_pair_table(clips, candidates, matches, settings.min_similarity))
                bar.update(len(candidates))
            found = found[~now]
            is_open = num_full_copies[found[:, 1]] < settings.max_matches_per_clip
            bar.update(int((~is_open).sum()))
            found = found[is_open]
    run.write_table(PERCEPTUAL_PAIRS, sorted_pairs(tables), metadata)
    return True


def _rank_among_better(found: np.ndarray) -> np.ndarray:
    """(C,) per pair: with how many clips better than its first clip the second one is also paired."""
    order = np.lexsort((found[:, 0], found[:, 1]))
    worse = found[order, 1]
    is_new = np.append(True, worse[1:] != worse[:-1])
    rank = np.arange(len(found)) - np.maximum.accumulate(np.where(is_new, np.arange(len(found)), 0))
    ranks = np.empty(len(found), np.int64)
    ranks[order] = rank
    return ranks


def hash_of_settings(settings: DuplicateSettings) -> str:
    return recipe_hash([METHOD_VERSION, asdict(settings)])


def hash_of_inputs(run: RunFolder, names: list[str]) -> str:
    """Hash of the names and metadata of the parts, which determine their rows."""
    return recipe_hash([(name, sorted(run.table_metadata(name).items())) for name in names])


def is_up_to_date(run: RunFolder, name: str, metadata: dict[str, str]) -> bool:
    return run.exists(name) and metadata.items() <= run.table_metadata(name).items()


# --- reading ----------------------------------------------------------------------------------------------------------


def read_hashes(run: RunFolder, names: list[str]) -> tuple[ClipColumns, np.ndarray, np.ndarray]:
    """(clips, all their hashes, row of the clip of each hash)."""
    columns: dict[str, list[Any]] = {name: [] for name in (*RANK_COLUMNS, "name", "row", "hashes")}
    for name in names:
        table = run.read_columns(name, [*RANK_COLUMNS, "hashes"])
        for column in (*RANK_COLUMNS, "hashes"):
            columns[column] += table[column].to_pylist()
        columns["name"] += [name] * table.num_rows
        columns["row"] += range(table.num_rows)
    clip_ids = columns["clip_id"]
    first = {clip_id: row for row, clip_id in reversed(list(enumerate(clip_ids)))}
    rates, seconds, pixels = columns["bytes_per_second"], columns["seconds"], columns["num_pixels"]
    order = sorted(first.values(), key=lambda row: (-pixels[row], -seconds[row], -rates[row], clip_ids[row]))
    hashes = [np.frombuffer(columns["hashes"][row], HASH_TYPE).astype(np.uint64) for row in order]
    clip_rows = np.repeat(np.arange(len(order)), [len(one) for one in hashes])
    sorted_columns = (
        {
            name: np.array(values, dtype=object if name in ("clip_id", "name") else None)[order]
            for name, values in columns.items()
            if name != "hashes"
        }
        if order
        else _empty_columns()
    )
    return ClipColumns(**sorted_columns), np.concatenate(hashes) if hashes else np.zeros(0, np.uint64), clip_rows


def _empty_columns() -> dict[str, np.ndarray]:
    dtypes: dict[str, Any] = {"clip_id": object, "name": object, "num_pixels": np.int64, "row": np.int64}
    return {name: np.zeros(0, dtypes.get(name, np.float64)) for name in (*RANK_COLUMNS, "name", "row")}


def _batches_by_file(clips: ClipColumns, found: np.ndarray) -> Iterator[np.ndarray]:
    """Batches of candidate pairs, sorted by the files of their clips, so that few files are read per batch."""
    _, file_number = np.unique(clips.name.astype(str), return_inverse=True)
    files = np.sort(file_number[found], axis=1) if len(found) else found
    order = np.lexsort(
        (clips.clip_id[found[:, 1]].astype(str), clips.clip_id[found[:, 0]].astype(str), files[:, 1], files[:, 0])
    )
    for start in range(0, len(found), PAIRS_PER_BATCH):
        yield found[order[start : start + PAIRS_PER_BATCH]]


def _read_thumbnails(run: RunFolder, clips: ClipColumns, wanted: np.ndarray) -> dict[int, np.ndarray]:
    thumbnails = {}
    for name in sorted(set(clips.name[wanted])):
        column = run.read_columns(name, ["pictures"])["pictures"]
        for clip in wanted[clips.name[wanted] == name].tolist():
            thumbnails[clip] = thumbnails_from_bytes(column[int(clips.row[clip])].as_py())
    return thumbnails


# --- writing ----------------------------------------------------------------------------------------------------------


def _matched(run: RunFolder, clips: ClipColumns, candidates: np.ndarray) -> Matches:
    thumbnails = _read_thumbnails(run, clips, np.unique(candidates))
    return match_pairs(
        [thumbnails[a] for a in candidates[:, 0].tolist()], [thumbnails[b] for b in candidates[:, 1].tolist()]
    )


def _matched_pair_table(
    clips: ClipColumns, candidates: np.ndarray, matches: Matches, min_similarity: float
) -> pa.Table:
    good = matches.similarity >= min_similarity
    return pair_table(
        clips,
        candidates[good],
        "perceptual",
        matches.similarity[good],
        matches.overlap_seconds[good],
        matches.start_seconds_a[good],
        matches.start_seconds_b[good],
    )


def pair_table(
    clips: ClipColumns,
    found: np.ndarray,
    kind: str,
    similarity: np.ndarray,
    overlap_seconds: np.ndarray,
    start_seconds_a: np.ndarray,
    start_seconds_b: np.ndarray,
) -> pa.Table:
    """Rows of `PAIRS_SCHEMA`, the smaller clip id first."""
    swapped = clips.clip_id[found[:, 0]] > clips.clip_id[found[:, 1]]
    a, b = np.where(swapped, found[:, 1], found[:, 0]), np.where(swapped, found[:, 0], found[:, 1])
    columns: dict[str, Any] = {
        "kind": [kind] * len(found),
        "similarity": np.round(similarity, 4),
        "overlap_seconds": np.minimum(overlap_seconds, np.minimum(clips.seconds[a], clips.seconds[b])),
        "start_seconds_a": np.where(swapped, start_seconds_b, start_seconds_a),
        "start_seconds_b": np.where(swapped, start_seconds_a, start_seconds_b),
    }
    for side, rows in (("a", a), ("b", b)):
        columns |= {f"{name}_{side}": getattr(clips, name)[rows] for name in RANK_COLUMNS}
    return pa.table({name: pa.array(columns[name], PAIRS_SCHEMA.field(name).type) for name in PAIRS_SCHEMA.names})


def sorted_pairs(tables: list[pa.Table]) -> pa.Table:
    pairs = pa.concat_tables([PAIRS_SCHEMA.empty_table(), *(table.cast(PAIRS_SCHEMA) for table in tables)])
    return pairs.sort_by([("clip_id_a", "ascending"), ("clip_id_b", "ascending")])
