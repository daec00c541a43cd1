"""Finds captions that many clips share, exactly or nearly: such a text describes none of them.

    repeated = find_repeated_texts(text_by_clip, duplicate_pairs=pairs, min_similarity=0.9)
    repeated["clip-17"].num_clips            # 4000 different clips have this text, or nearly this text

Texts are compared by the Jaccard similarity of their three-word shingles: MinHash LSH finds candidates, the shingles
decide. In alphabetical order, each text joins the first similar group representative before it, or becomes a representative
itself: the result does not depend on the order of captions, and a template used for every clip needs no quadratic number of
comparisons. Near-duplicate clips count as one clip: they may share a caption.

Cost: 71 us of one core per text of 20 words, 194 us of 200 (tests/benchmarks/recaption/bench_repeated_captions.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from recaption.captions.text import tokenize_words
from recaption.errors import UsageError
from recaption.run_folder import RunFolder

REPEATED_SCHEMA = pa.schema([("clip_id", pa.string()), ("num_clips", pa.int64()), ("text", pa.string())])
"""Rows of RUN/captions/<set>/repeated.parquet, sorted by clip id: `RepeatedCaption`."""
NUM_PERMUTATIONS = 128
SEED = 1
ROWS_PER_BAND = 8
"""128 hashes are 16 bands of 8: texts of similarity 0.9 become candidates with probability 0.9999, of 0.6 with 0.24."""
LOW_SIMILARITY_ROWS_PER_BAND = 4
"""32 bands of 4, for `min_similarity` below `LOW_SIMILARITY`: similarity 0.6 gives 0.99."""
LOW_SIMILARITY = 0.8
SHINGLE_WORDS = 3
MAX_CANDIDATES_PER_BAND = 64
"""Most group representatives per band hash that later texts are compared with."""


@dataclass(frozen=True, kw_only=True)
class RepeatedCaptionSettings:
    """When two captions count as the same; `FilterThresholds` limits how many clips may share one."""

    min_similarity: float = 0.9
    """Jaccard similarity of three-word shingles. One changed word of 40 gives 0.85, one of 100 gives 0.94."""
    min_duplicate_similarity: float = 0.86
    """Clips at least this similar (dedup/near_duplicates.py) count as one clip, and may share a caption."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatedCaption:
    """A text that several clips share, exactly or nearly."""

    num_clips: int
    """Clips that share it; near-duplicates count once."""
    text: str
    """The group's representative."""


def repeated_name(set_name: str) -> str:
    return f"captions/{set_name}/repeated.parquet"


def read_repeated(run: RunFolder, set_name: str) -> pa.Table:
    """The repeated captions of a set; empty where they were never searched for."""
    return run.read_tables(repeated_name(set_name), REPEATED_SCHEMA)


def find_repeated_texts(
    text_by_clip: Mapping[str, str], *, duplicate_pairs: Iterable[tuple[str, str]] = (), min_similarity: float = 0.9
) -> dict[str, RepeatedCaption]:
    """Clip id -> the caption that it shares with other clips; clips with a unique caption are left out.

    Args:
        text_by_clip: clip id -> caption.
        duplicate_pairs: clip ids of near-duplicate clips.

    Raises:
        UsageError: `min_similarity` is not in 0.5..1.
    """
    if not 0.5 <= min_similarity <= 1:
        raise UsageError(f"{min_similarity = } must be in 0.5..1")
    clips_by_text: dict[str, list[str]] = defaultdict(list)
    for clip_id, text in text_by_clip.items():
        clips_by_text[" ".join(tokenize_words(text))].append(clip_id)
    texts = sorted(clips_by_text)
    duplicate_groups = _duplicate_clip_groups(text_by_clip, duplicate_pairs)
    groups: dict[int, list[str]] = defaultdict(list)
    for text, representative in zip(texts, _group_representatives(texts, min_similarity), strict=True):
        groups[representative] += clips_by_text[text]
    found: dict[str, RepeatedCaption] = {}
    for representative, clip_ids in groups.items():
        num_clips = len({duplicate_groups[clip_id] for clip_id in clip_ids})
        if num_clips > 1:
            found |= dict.fromkeys(clip_ids, RepeatedCaption(num_clips=num_clips, text=texts[representative]))
    return dict(sorted(found.items()))


def _duplicate_clip_groups(clip_ids: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Clip id -> the smallest clip id among its near-duplicates (union-find over `pairs`)."""
    parent = {clip_id: clip_id for clip_id in clip_ids}

    def root(clip_id: str) -> str:
        while parent[clip_id] != clip_id:
            parent[clip_id] = parent[parent[clip_id]]
            clip_id = parent[clip_id]
        return clip_id

    for a, b in pairs:
        if a in parent and b in parent:
            first, second = sorted((root(a), root(b)))
            parent[second] = first
    return {clip_id: root(clip_id) for clip_id in parent}


def _group_representatives(texts: list[str], min_similarity: float) -> list[int]:
    """Index of each text's group representative; its own index where it is one.

    Args:
        texts: sorted, without duplicates.
    """
    from rensa import RMinHash

    if len(texts) < 2 or min_similarity == 1:
        return list(range(len(texts)))
    shingles = [_shingles(text) for text in texts]
    digests = RMinHash.digests_from_token_sets([sorted(one) for one in shingles], NUM_PERMUTATIONS, SEED)
    rows_per_band = ROWS_PER_BAND if min_similarity >= LOW_SIMILARITY else LOW_SIMILARITY_ROWS_PER_BAND
    buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    representatives = []
    for index, digest in enumerate(digests):
        bands = [(start, *digest[start : start + rows_per_band]) for start in range(0, NUM_PERMUTATIONS, rows_per_band)]
        candidates = sorted({other for band in bands for other in buckets.get(band, ())})
        similar = (other for other in candidates if _jaccard(shingles[other], shingles[index]) >= min_similarity)
        representatives.append(next(similar, index))
        if representatives[-1] == index:
            for band in bands:
                if len(buckets[band]) < MAX_CANDIDATES_PER_BAND:
                    buckets[band].append(index)
    return representatives


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    num_common = len(a & b)
    return num_common / (len(a) + len(b) - num_common)


def _shingles(text: str) -> frozenset[str]:
    """All runs of `SHINGLE_WORDS` words; the whole text where it is shorter."""
    words = text.split()
    num_shingles = max(1, len(words) - SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[start : start + SHINGLE_WORDS]) for start in range(num_shingles))
