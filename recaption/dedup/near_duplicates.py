"""Near copies: the same footage encoded, scaled, framed, cropped or cut anew, and clips that mean the same.

    pairs = read_pairs(run)                       # RUN/duplicates/*.parquet, written by jobs/prepare/duplicates.py
    copies_of(kept, pairs, max_copy_similarity=0.86, ...)      # {clip_id: the better copy that stays in its place}

What is stored are pairs with their similarity, down to a loose limit; which clips are dropped is asked of them anew each
time, as every verdict is (filters.py).

The rule. Of copies the best is kept: more pixels (dark bars do not count), then longer, then more bytes per second, then
the smaller clip id. Clips are visited in this order; one is dropped where better clips that are kept show at least a
given share of it. Only what is kept counts: where A is like B and B like C, but A is not like C, then B goes and C stays.
A clip that another filter drops replaces nothing.

Flat clips (black, white, one colour) have no fingerprint to agree in and are nobody's copies. Clips in which little moves
are copies only where nearly all that they could have in common agrees: a still picture is a copy of itself, two moments
of an empty street are not. Known confusion: two spans of one fixed camera in which the same kind of thing happens at the
same time, such as a car leaving an empty road.

Cost (tests/benchmarks/recaption/bench_duplicates.py scale 400000; clips of 4 s, 16 samples). Candidates: n log n in the
number n of hashes, 112 a clip; 0.28 ms of one core and 0.9 kB of hashes per clip. Chance candidates grow with the
square of the clips: 3,099 among 440,000, or 3.2e-8 of all pairs, of drawn pictures; real ones are more alike. Comparing
takes 3 ms a pair. For 10^8 clips that is 8 core hours of sorting, 90 GB of hashes, 1.6e8 chance candidates, 1e7 true
ones where every tenth clip is a copy, and 130 core hours of comparing. Pictures of the samples, 1.5 kB per second of
clip before compression, stay on disk and are read for candidates only. One machine of 64 GB holds a few million clips.
Beyond that each of the 8 tables is independent, and so is each range of keys in it (candidates.py): with 64 ranges a
task sorts 1.4 GB. Candidates are compared in lots sorted by the parts they are in. Spreading these tasks over machines
is not written: `find_perceptual` is one process.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recaption.run_folder import RunFolder

PERCEPTUAL = "duplicates/perceptual.parquet"


KINDS = ("perceptual", "semantic")


PAIRS_SCHEMA = pa.schema(
    [
        ("clip_id_a", pa.string()),
        ("clip_id_b", pa.string()),
        ("kind", pa.string()),
        ("similarity", pa.float64()),
        ("overlap_seconds", pa.float64()),
        ("start_seconds_a", pa.float64()),
        ("start_seconds_b", pa.float64()),
        *(
            (f"{name}_{side}", kind)
            for side in "ab"
            for name, kind in (
                ("num_pixels", pa.int64()),
                ("seconds", pa.float64()),
                ("bytes_per_second", pa.float64()),
            )
        ),
    ]
)
"""clip_id_a < clip_id_b. `start_seconds_*`: where the common footage starts, from the start of the clip. A semantic pair
has all of the shorter clip in common. Then what the rule for the best copy asks."""


@dataclass(frozen=True, kw_only=True)
class DuplicateSettings:
    """How pairs are looked for. Which of them make a clip a duplicate is for `FilterThresholds`."""

    perceptual: bool = True
    """Look for copies at the end of `prepare`."""
    key_bits: int = 24
    """Bits of a hash that must agree for two clips to be compared, in any of the tables. More are cheaper and miss more:
    with 28 some of the cropped copies of real clips have no key in common."""
    num_tables: int = 8
    max_hash_distance: int = 6
    """Of 64 bits, in any one sample. With 4 a few cropped copies are missed; with 12 there are over 1000 times as many
    chance candidates."""
    max_links: int = 64
    """Of the clips under one key each is compared with this many of the best. Keys of many clips are those of common
    pictures; without a limit their cost would grow with the square."""
    max_copies: int = 8
    """A clip that so many better ones show nearly whole is compared with no more of them: a film that everybody has put
    up once more costs 8 comparisons a copy, not `max_links`."""
    min_similarity: float = 0.6
    """Pairs below it are not stored."""
    min_semantic_similarity: float = 0.9
    """The same for cosines of embeddings."""


def semantic_name(set_name: str) -> str:
    return f"duplicates/semantic-{set_name}.parquet"


def set_of(name: str) -> str:
    """The caption set that a table of semantic pairs is about."""
    return name.removeprefix("duplicates/semantic-").removesuffix(".parquet")


def read_pairs(run: RunFolder) -> pa.Table:
    """All pairs of a run folder; none where they have not been looked for."""
    return run.read_tables("duplicates/*.parquet", PAIRS_SCHEMA)


def copies_of(
    kept: set[str],
    pairs: pa.Table,
    *,
    max_copy_similarity: float | None,
    max_semantic_similarity: float | None,
    min_copy_share: float,
) -> dict[str, str]:
    """Clips that go as near copies -> the clip that stays and shows most of each.

    Args:
        kept: clips that no other filter drops.
        max_copy_similarity: perceptual pairs above it are copies; None = none are.
        max_semantic_similarity: the same for semantic pairs.
        min_copy_share: of a clip's length that better clips must show for it to go.
    """
    others: dict[str, list[_Seen]] = defaultdict(list)
    rank: dict[str, tuple[float, float, float, str]] = {}
    for row in _pairs_above(pairs, max_copy_similarity, max_semantic_similarity):
        if row["clip_id_a"] not in kept or row["clip_id_b"] not in kept:
            continue
        for side, other in ("ab", "ba"):
            clip_id, start = row[f"clip_id_{side}"], row[f"start_seconds_{side}"]
            others[clip_id].append(_Seen(row[f"clip_id_{other}"], start, start + row["overlap_seconds"]))
            numbers = [-row[f"{name}_{side}"] for name in ("num_pixels", "seconds", "bytes_per_second")]
            rank[clip_id] = (numbers[0], numbers[1], numbers[2], clip_id)
    replaced: dict[str, str] = {}
    for clip_id in sorted(rank, key=rank.__getitem__):
        seconds = -rank[clip_id][1]
        better = [seen for seen in others[clip_id] if rank[seen.by] < rank[clip_id] and seen.by not in replaced]
        if better and _seconds_covered(better) >= min_copy_share * seconds - 1e-9:
            replaced[clip_id] = min(better, key=lambda seen: (seen.start - seen.end, rank[seen.by])).by
    return replaced


@dataclass(frozen=True, slots=True)
class _Seen:
    """A stretch of a clip, in seconds from its start, that another clip shows as well."""

    by: str
    start: float
    end: float


def _pairs_above(pairs: pa.Table, perceptual: float | None, semantic: float | None) -> list[dict[str, Any]]:
    chosen = pairs.slice(0, 0)
    for kind, least in zip(KINDS, (perceptual, semantic), strict=True):
        if least is not None:
            is_above = pc.and_(pc.equal(pairs["kind"], kind), pc.greater(pairs["similarity"], least))
            chosen = pa.concat_tables([chosen, pairs.filter(is_above)])
    return chosen.to_pylist()


def _seconds_covered(seen: list[_Seen]) -> float:
    """Length of the union: what two copies show counts once."""
    total, reached = 0.0, 0.0
    for one in sorted(seen, key=lambda s: s.start):
        total += max(0.0, one.end - max(one.start, reached))
        reached = max(reached, one.end)
    return total
