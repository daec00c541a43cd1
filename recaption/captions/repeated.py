"""Captions that are said of many clips: one wrong text about thousands of them is no description of any.

    repeated = find_repeated(texts_by_clip, same_footage=pairs, min_similarity=0.9)
    repeated["clip-17"].num_clips            # 4000: as many different clips have this text, or nearly this text

Two texts are nearly the same where their runs of three words are (Jaccard); MinHash finds the candidates, the runs
themselves decide. In the order of the alphabet, each text joins the first one before it that it is nearly the same as and
that has not joined another itself: so nothing depends on the order of the captions, and a template said of everything
costs no square. Counted are clips of different footage: a clip and its near copies rightly have one text.

Cost: 71 us of one core per text of 20 words, 194 us of 200 (tests/benchmarks/recaption/bench_repeated_captions.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from recaption.captions.text import words_in
from recaption.errors import UsageError
from recaption.run_folder import RunFolder

REPEATED_SCHEMA = pa.schema([("clip_id", pa.string()), ("num_clips", pa.int64()), ("text", pa.string())])
"""Rows of RUN/captions/<set>/repeated.parquet, sorted by clip id: `Repeated`."""


NUM_HASHES = 128


SEED = 1


ROWS_PER_KEY = 8
"""Of 128 hashes, 16 keys of 8: texts that share 0.9 of their runs are candidates with probability 0.9999, 0.6 with 0.24."""


LOOSE_ROWS_PER_KEY = 4
"""32 keys of 4, for limits below `LOOSE`: 0.6 gives 0.99."""


LOOSE = 0.8


RUN_WORDS = 3


MAX_LINKS = 64
"""Of the texts under one key that have joined none, those that others are compared with."""


@dataclass(frozen=True, kw_only=True)
class RepeatSettings:
    """When two captions count as the same. How many clips may share one is for `FilterThresholds`."""

    min_similarity: float = 0.9
    """Of their runs of three words, the share that both have. One word changed among 40 leaves 0.85, among 100 0.94."""
    min_copy_similarity: float = 0.86
    """Clips that look as much alike (duplicates.py) are one, and may share a caption."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeated:
    """One text, or nearly one, about several clips."""

    num_clips: int
    """Clips of different footage that it is said of."""
    text: str
    """The one that the others have joined."""


def repeated_name(set_name: str) -> str:
    return f"captions/{set_name}/repeated.parquet"


def read_repeated(run: RunFolder, set_name: str) -> pa.Table:
    """What of a caption set is said of several clips; nothing where it has not been asked."""
    return run.read_tables(repeated_name(set_name), REPEATED_SCHEMA)


def find_repeated(
    text_of: Mapping[str, str], *, same_footage: Iterable[tuple[str, str]] = (), min_similarity: float = 0.9
) -> dict[str, Repeated]:
    """Clip id -> what is said of it and of other clips; clips whose text is their own are left out.

    Args:
        text_of: clip id -> caption.
        same_footage: pairs of clip ids that show the same.

    Raises:
        UsageError: `min_similarity` is not a share from 0.5 to 1.
    """
    if not 0.5 <= min_similarity <= 1:
        raise UsageError(f"{min_similarity = } must be a share from 0.5 to 1")
    clips_of: dict[str, list[str]] = defaultdict(list)
    for clip_id, text in text_of.items():
        clips_of[" ".join(words_in(text))].append(clip_id)
    texts = sorted(clips_of)
    footage = _footage(text_of, same_footage)
    groups: dict[int, list[str]] = defaultdict(list)
    for text, first in zip(texts, _firsts(texts, min_similarity), strict=True):
        groups[first] += clips_of[text]
    found: dict[str, Repeated] = {}
    for first, clip_ids in groups.items():
        num_clips = len({footage[clip_id] for clip_id in clip_ids})
        if num_clips > 1:
            found |= dict.fromkeys(clip_ids, Repeated(num_clips=num_clips, text=texts[first]))
    return dict(sorted(found.items()))


def _footage(clip_ids: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Clip id -> name of its footage: one for all clips that pairs join."""
    name = {clip_id: clip_id for clip_id in clip_ids}

    def root(clip_id: str) -> str:
        while name[clip_id] != clip_id:
            name[clip_id] = name[name[clip_id]]
            clip_id = name[clip_id]
        return clip_id

    for a, b in pairs:
        if a in name and b in name:
            first, second = sorted((root(a), root(b)))
            name[second] = first
    return {clip_id: root(clip_id) for clip_id in name}


def _firsts(texts: list[str], min_similarity: float) -> list[int]:
    """Row of the text that each has joined, its own where it has joined none."""
    from rensa import RMinHash

    if len(texts) < 2 or min_similarity == 1:
        return list(range(len(texts)))
    runs = [_runs(text) for text in texts]
    size = ROWS_PER_KEY if min_similarity >= LOOSE else LOOSE_ROWS_PER_KEY
    under: dict[tuple[int, ...], list[int]] = defaultdict(list)
    firsts = []
    for row, digest in enumerate(RMinHash.digests_from_token_sets([sorted(one) for one in runs], NUM_HASHES, SEED)):
        keys = [(start, *digest[start : start + size]) for start in range(0, NUM_HASHES, size)]
        candidates = sorted({first for key in keys for first in under.get(key, ())})
        near = (first for first in candidates if _similarity(runs[first], runs[row]) >= min_similarity)
        firsts.append(next(near, row))
        if firsts[-1] == row:
            for key in keys:
                if len(under[key]) < MAX_LINKS:
                    under[key].append(row)
    return firsts


def _similarity(one: frozenset[str], other: frozenset[str]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def _runs(text: str) -> frozenset[str]:
    words = text.split()
    return frozenset(" ".join(words[i : i + RUN_WORDS]) for i in range(max(1, len(words) - RUN_WORDS + 1)))
