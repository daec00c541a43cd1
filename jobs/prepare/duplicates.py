"""Pairs of near copies of a whole run: RUN/fingerprints -> RUN/duplicates/perceptual.parquet, at the end of `prepare`;
RUN/embeddings/<set> -> RUN/duplicates/semantic-<set>.parquet, at the end of `caption`, and with it what RUN/captions/<set>
says of several clips -> RUN/captions/<set>/repeated.parquet.

Each table carries a hash of what it was made from: asked again with nothing new, nothing is read but metadata.
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


METHOD = 2
"""Raised when the same fingerprints and settings give other pairs: tables made before are then made anew."""


RANK_COLUMNS = ("clip_id", "num_pixels", "seconds", "bytes_per_second")


WHOLE_COPY, WHOLE_SHARE = 0.95, 0.9
"""Similarity, and share of the worse clip, from which a pair counts towards `max_matches_per_clip`."""


PAIRS_AT_A_TIME = 4096
"""Their pictures are in memory: 4096 pairs of clips of 6 s take 75 MB."""


@dataclass(frozen=True)
class _Clips:
    """Clips of the run in the order of the best copy, no id twice; row i of each column is one clip."""

    clip_id: np.ndarray
    num_pixels: np.ndarray
    seconds: np.ndarray
    bytes_per_second: np.ndarray
    name: np.ndarray
    """File that its fingerprint is in."""
    row: np.ndarray
    """And the row there."""


def find_perceptual(run: RunFolder, settings: DuplicateSettings, *, progress: bool = True) -> bool:
    """Write the pairs that look alike; False where the table there is already made from the same.

    Order of inputs and number of workers change nothing: clips are put in order first.
    """
    names = run.list(FINGERPRINTS)
    metadata = {"inputs_hash": _inputs_hash(run, names), "settings_hash": _settings_hash(settings)}
    if _is_made_from(run, PERCEPTUAL_PAIRS, metadata):
        return False
    clips, hashes, owners = _read_hashes(run, names)
    found = candidate_pairs(
        hashes,
        owners,
        num_tables=settings.num_tables,
        key_bits=settings.key_bits,
        max_hash_distance=settings.max_hash_distance,
        max_candidates_per_hash=settings.max_candidates_per_hash,
    )
    bar = tqdm(total=len(found), desc="near copies", unit="pair", file=sys.stderr, disable=not progress)
    tables = [PAIRS_SCHEMA.empty_table()]
    num_whole = np.zeros(len(clips.clip_id), np.int64)
    with bar:
        while len(found):
            now = _place_among_better(found) < settings.max_matches_per_clip
            for candidates in _side_by_side(clips, found[now]):
                matches = _matched(run, clips, candidates)
                worse = candidates[:, 1]
                is_whole = (matches.similarity >= WHOLE_COPY) & (
                    matches.overlap_seconds >= WHOLE_SHARE * clips.seconds[worse]
                )
                np.add.at(num_whole, worse[is_whole], 1)
                tables.append(_similar_table(clips, candidates, matches, settings.min_similarity))
                bar.update(len(candidates))
            found = found[~now]
            is_open = num_whole[found[:, 1]] < settings.max_matches_per_clip
            bar.update(int((~is_open).sum()))
            found = found[is_open]
    run.write_table(PERCEPTUAL_PAIRS, _sorted(tables), metadata)
    return True


def _place_among_better(found: np.ndarray) -> np.ndarray:
    """(C,): how many better clips than the first of a pair its second is also paired with."""
    order = np.lexsort((found[:, 0], found[:, 1]))
    worse = found[order, 1]
    is_new = np.append(True, worse[1:] != worse[:-1])
    place = np.arange(len(found)) - np.maximum.accumulate(np.where(is_new, np.arange(len(found)), 0))
    places = np.empty(len(found), np.int64)
    places[order] = place
    return places


def _settings_hash(settings: DuplicateSettings) -> str:
    return recipe_hash([METHOD, asdict(settings)])


def _inputs_hash(run: RunFolder, names: list[str]) -> str:
    """Of what the parts say they were made from; their rows follow from it."""
    return recipe_hash([(name, sorted(run.table_metadata(name).items())) for name in names])


def _is_made_from(run: RunFolder, name: str, metadata: dict[str, str]) -> bool:
    return run.exists(name) and metadata.items() <= run.table_metadata(name).items()


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_hashes(run: RunFolder, names: list[str]) -> tuple[_Clips, np.ndarray, np.ndarray]:
    """(clips, all their hashes, and whose each is)."""
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
    owners = np.repeat(np.arange(len(order)), [len(one) for one in hashes])
    kept = (
        {
            name: np.array(values, dtype=object if name in ("clip_id", "name") else None)[order]
            for name, values in columns.items()
            if name != "hashes"
        }
        if order
        else _no_columns()
    )
    return _Clips(**kept), np.concatenate(hashes) if hashes else np.zeros(0, np.uint64), owners


def _no_columns() -> dict[str, np.ndarray]:
    kinds: dict[str, Any] = {"clip_id": object, "name": object, "num_pixels": np.int64, "row": np.int64}
    return {name: np.zeros(0, kinds.get(name, np.float64)) for name in (*RANK_COLUMNS, "name", "row")}


def _side_by_side(clips: _Clips, found: np.ndarray) -> Iterator[np.ndarray]:
    """Candidates in lots, sorted by the files that their clips are in, so that few files are open for each lot."""
    _, file_number = np.unique(clips.name.astype(str), return_inverse=True)
    files = np.sort(file_number[found], axis=1) if len(found) else found
    order = np.lexsort(
        (clips.clip_id[found[:, 1]].astype(str), clips.clip_id[found[:, 0]].astype(str), files[:, 1], files[:, 0])
    )
    for start in range(0, len(found), PAIRS_AT_A_TIME):
        yield found[order[start : start + PAIRS_AT_A_TIME]]


def _read_pictures(run: RunFolder, clips: _Clips, wanted: np.ndarray) -> dict[int, np.ndarray]:
    pictures = {}
    for name in sorted(set(clips.name[wanted])):
        column = run.read_columns(name, ["pictures"])["pictures"]
        for clip in wanted[clips.name[wanted] == name].tolist():
            pictures[clip] = thumbnails_from_bytes(column[int(clips.row[clip])].as_py())
    return pictures


# --- writing ----------------------------------------------------------------------------------------------------------


def _matched(run: RunFolder, clips: _Clips, candidates: np.ndarray) -> Matches:
    pictures = _read_pictures(run, clips, np.unique(candidates))
    return match_pairs(
        [pictures[a] for a in candidates[:, 0].tolist()], [pictures[b] for b in candidates[:, 1].tolist()]
    )


def _similar_table(clips: _Clips, candidates: np.ndarray, matches: Matches, min_similarity: float) -> pa.Table:
    good = matches.similarity >= min_similarity
    return _pair_table(
        clips,
        candidates[good],
        "perceptual",
        matches.similarity[good],
        matches.overlap_seconds[good],
        matches.start_seconds_a[good],
        matches.start_seconds_b[good],
    )


def _pair_table(
    clips: _Clips,
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


def _sorted(tables: list[pa.Table]) -> pa.Table:
    pairs = pa.concat_tables([PAIRS_SCHEMA.empty_table(), *(table.cast(PAIRS_SCHEMA) for table in tables)])
    return pairs.sort_by([("clip_id_a", "ascending"), ("clip_id_b", "ascending")])
