"""Near-duplicates: stored pairs of similar clips, and the rule that decides which clip of a pair is dropped.

    pairs = read_pairs(run)                       # RUN/duplicates/*.parquet, written by jobs/prepare/duplicates.py
    select_duplicates(candidates, pairs, max_duplicate_similarity=0.86, ...)      # {dropped clip_id: clip_id kept instead}

A perceptual pair shows the same footage, re-encoded, scaled, letterboxed, cropped or trimmed; a semantic pair has similar
embeddings. Pairs are stored with their similarity, down to a low limit; which clips are dropped is computed from them each
time, like every drop reason (filters.py).

The rule. The best duplicate is kept: more pixels (dark bars do not count), then longer, then more bytes per second, then
the smaller clip id. Clips are visited in this order; one is dropped if better clips that are kept cover at least a given
fraction of it. Only kept clips count: if A is similar to B and B to C, but A not to C, then B is dropped and C is kept.
A clip dropped by another filter causes no other clip to be dropped. Spans of one video that a list names and that overlap
are no duplicates of each other.

Uniform clips (black, white, one colour) get no hash and never match. Clips with little motion match only if nearly all of
their possible overlap agrees: a still picture is a copy of itself, two moments of an empty street are not. Known false
positive: two spans from one fixed camera in which the same kind of event happens at the same time, such as a car leaving
an empty road.

Cost (tests/benchmarks/recaption/bench_duplicates.py scale 400000; clips of 4 s, 16 thumbnails). Candidates: n log n in the
number n of hashes, 112 a clip; 0.28 ms of one core and 0.9 kB of hashes per clip. Chance candidates grow with the
square of the clips: 3,099 among 440,000, or 3.2e-8 of all pairs, for synthetic pictures; real ones are more similar.
Matching takes 3 ms a pair. For 10^8 clips that is 8 core hours of sorting, 90 GB of hashes, 1.6e8 chance candidates, 1e7
true ones if every tenth clip is a copy, and 130 core hours of matching. Thumbnails, 1.5 kB per second of clip before
compression, stay on disk and are read for candidates only. One machine with 64 GB handles a few million clips. Beyond
that, each of the 8 tables is independent, and so is each range of keys in it (candidates.py): with 64 ranges a task sorts
1.4 GB. Candidates are matched in batches sorted by the parts they are in. Distributing these tasks over machines is not
implemented: `find_perceptual` is one process.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recaption.run_folder import RunFolder

PERCEPTUAL_PAIRS = "duplicates/perceptual.parquet"
"""File of the perceptual pairs in a run folder."""
PAIR_KINDS = ("perceptual", "semantic")
"""Values of the column `kind`."""
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
"""clip_id_a < clip_id_b. `start_seconds_*`: where the overlap starts, from the start of the clip; a semantic pair overlaps
over the whole shorter clip. The last columns rank the two clips."""


@dataclass(frozen=True, kw_only=True)
class DuplicateSettings:
    """Settings of the search for pairs. `FilterThresholds` decides which of them make a clip a duplicate."""

    perceptual: bool = True
    """Search for perceptual duplicates at the end of `prepare`."""
    key_bits: int = 24
    """Bits of the key of each hash table: clips are compared if they agree in all of them in any table. More bits are
    cheaper and miss more: with 28 some cropped copies of real clips share no key."""
    num_tables: int = 8
    """Hash tables, each with a key of other bits."""
    max_hash_distance: int = 6
    """Maximum Hamming distance of 64 bits, of any two thumbnails. With 4 a few cropped copies are missed; with 12 there are
    over 1000 times as many chance candidates."""
    max_candidates_per_hash: int = 64
    """Each hash is compared with this many hashes of the best clips under the same key. Keys shared by many clips are those
    of common pictures; without a limit their cost would grow with the square."""
    max_matches_per_clip: int = 8
    """A clip that this many better clips cover nearly entirely is compared with no more of them: a film that was uploaded
    many times costs 8 comparisons a copy, not `max_candidates_per_hash`."""
    max_comparisons_per_clip: int = 64
    """A clip is compared with at most so many better clips, the best first: thousands of clips that all look alike, as of
    one camera for ten hours, would otherwise cost their square."""
    min_similarity: float = 0.6
    """Pairs below it are not stored."""
    min_semantic_similarity: float = 0.9
    """Semantic pairs with a cosine similarity below it are not stored."""


def semantic_pairs_file(set_name: str) -> str:
    """File of the semantic pairs of a caption set in a run folder."""
    return f"duplicates/semantic-{set_name}.parquet"


def caption_set_of(name: str) -> str:
    """Name of the caption set of a file of semantic pairs."""
    return name.removeprefix("duplicates/semantic-").removesuffix(".parquet")


def read_pairs(run: RunFolder) -> pa.Table:
    """All pairs of a run folder; an empty table where no search has run."""
    return run.read_tables("duplicates/*.parquet", PAIRS_SCHEMA)


def select_duplicates(
    candidates: set[str],
    pairs: pa.Table,
    *,
    max_duplicate_similarity: float | None,
    max_semantic_similarity: float | None,
    min_duplicate_fraction: float,
) -> dict[str, str]:
    """Choose the clips to drop as duplicates: dropped clip_id -> the kept clip that covers most of it.

    Args:
        candidates: ids of the clips that no other filter drops.
        max_duplicate_similarity: perceptual pairs above it are duplicates; None = none are.
        max_semantic_similarity: the same for semantic pairs.
        min_duplicate_fraction: fraction of a clip's length that better clips must cover for it to be dropped.
    """
    covered: dict[str, list[_CoveredSpan]] = defaultdict(list)
    rank: dict[str, tuple[float, float, float, str]] = {}
    for row in _pairs_above(pairs, max_duplicate_similarity, max_semantic_similarity):
        if row["clip_id_a"] not in candidates or row["clip_id_b"] not in candidates:
            continue
        if _share_frames(row["clip_id_a"], row["clip_id_b"]):
            continue
        for side, other in ("ab", "ba"):
            clip_id, start = row[f"clip_id_{side}"], row[f"start_seconds_{side}"]
            covered[clip_id].append(_CoveredSpan(row[f"clip_id_{other}"], start, start + row["overlap_seconds"]))
            numbers = [-row[f"{name}_{side}"] for name in ("num_pixels", "seconds", "bytes_per_second")]
            rank[clip_id] = (numbers[0], numbers[1], numbers[2], clip_id)
    kept_instead: dict[str, str] = {}
    for clip_id in sorted(rank, key=rank.__getitem__):
        seconds = -rank[clip_id][1]
        better = [span for span in covered[clip_id] if rank[span.by] < rank[clip_id] and span.by not in kept_instead]
        if better and _seconds_covered(better) >= min_duplicate_fraction * seconds - 1e-9:
            kept_instead[clip_id] = min(better, key=lambda span: (span.start - span.end, rank[span.by])).by
    return kept_instead


@dataclass(frozen=True, slots=True)
class _CoveredSpan:
    """A span of a clip, in seconds from its start, that another clip shows too."""

    by: str
    """clip_id of the other clip."""
    start: float
    end: float


def _share_frames(a: str, b: str) -> bool:
    """Whether two clips have frames of one video in common: a list named both spans, and both are wanted."""
    (video_a, *frames_a), (video_b, *frames_b) = a.split("-"), b.split("-")
    if video_a != video_b or len(frames_a) != 2 or len(frames_b) != 2:
        return False
    return int(frames_a[0]) < int(frames_b[1]) and int(frames_b[0]) < int(frames_a[1])


def _pairs_above(pairs: pa.Table, perceptual: float | None, semantic: float | None) -> list[dict[str, Any]]:
    """Rows of the pairs with a similarity above the threshold of their kind."""
    chosen = pairs.slice(0, 0)
    for kind, threshold in zip(PAIR_KINDS, (perceptual, semantic), strict=True):
        if threshold is not None:
            is_above = pc.and_(pc.equal(pairs["kind"], kind), pc.greater(pairs["similarity"], threshold))
            chosen = pa.concat_tables([chosen, pairs.filter(is_above)])
    return chosen.to_pylist()


def _seconds_covered(spans: list[_CoveredSpan]) -> float:
    """Length of the union of the spans: what several clips cover counts once."""
    total, reached = 0.0, 0.0
    for span in sorted(spans, key=lambda s: s.start):
        total += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return total
