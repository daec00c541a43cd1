"""Do captions belong to their clips? Asked of the pixels, for a sample: decode again, hash again, score again.

    check = check_pairs(run, "main", captioner, clips_by_id, decode=DecodeLimits(), num_pairs=32)
    check.problems                  # captions that were written about other frames, or do not match what they describe
    check.unchecked                 # {"the source video is gone": 2}: no damage, and no proof either

Three questions, each blind where the next one sees:

1. Are the frames those that the captioner saw? Their sha256 against `Caption.clip_sha256`: sees rows of other clips.
2. Does the text score against its clip what was noted when it was written? Sees one text that was exchanged, even where
   its hash stayed in place.
3. Do captions, all in all, match their own clips better than each other's? Sees a caption set that never was right.
   By permutation: of `NUM_PERMUTATIONS` random pairings at most a share of `SIGNIFICANCE` may match as well.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recaption.captioners.clip_views import sample_frames
from recaption.captions.sets import main_captions
from recaption.errors import VideoError
from recaption.inputs.local_files import file_id, local_copy
from recaption.ledger.problems import Problem, open_parts
from recaption.records import Caption, Clip, schema_of
from recaption.run_folder import RunFolder
from recaption.video_io.frames import DecodeLimits

if TYPE_CHECKING:
    from recaption.captioners.interface import Captioner


NUM_PERMUTATIONS = 9999


SIGNIFICANCE = 0.01
"""Right captions pass by far (own 0.87, others' 0.19 on 55 rendered scenes: p = 0.0001); shuffled ones pass once in 100."""


MIN_PAIRS = 8
"""Below this the captions of a few look-alike clips decide: say so instead of judging."""


BATCH = 32
"""Clips that are scored against each other: what is in memory, and how far a text may have moved to be compared."""


SCORE_TOLERANCE = 0.05
"""Cosines of the same pair on other hardware or in another precision differ by less than 0.01."""


PAIR_SCHEMA = pa.schema(
    [
        schema_of(Caption).field(n)
        for n in ("clip_id", "text", "clip_sha256", "captioner", "clip_score", "source", "reason", "kind", "window")
    ]
)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A caption and the file that holds it."""

    part: str
    clip_id: str
    text: str
    clip_sha256: str
    captioner: str
    clip_score: float | None


@dataclass(kw_only=True)
class PairCheck:
    """What a sample of one caption set says."""

    set_name: str
    problems: list[Problem] = field(default_factory=list)
    num_hashed: int = 0
    """Clips that were decoded again."""
    num_scored: int = 0
    """Of these, clips whose frames and whose good caption were scored against others."""
    matched_score: float | None = None
    mismatched_score: float | None = None
    p_value: float | None = None
    """Share of random pairings that match as well; None where there are fewer than `MIN_PAIRS`."""
    verdict: str = "not enough pairs"
    """Of the third question: `matched`, `shuffled`, `not enough pairs`, `the captioner cannot tell these clips apart`, or
    `the captioner scores nothing`, where only the first question can be asked."""
    unchecked: dict[str, int] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """JSON-simple, without the problems."""
        return {
            "hashed": self.num_hashed,
            "scored": self.num_scored,
            "matched_score": self.matched_score,
            "mismatched_score": self.mismatched_score,
            "p_value": self.p_value,
            "verdict": self.verdict,
            "unchecked": self.unchecked,
        }


def sample_pairs(
    run: RunFolder, set_name: str, num_pairs: int | None, *, first: Collection[str] = ()
) -> tuple[list[Pair], int]:
    """(pairs, captions in the set). By the hash of their clip ids, so evenly over the set and the same ones each time.

    One part is in memory at a time, and `num_pairs` rows.

    Args:
        num_pairs: None = all.
        first: clip ids that are taken before any others.
    """
    kept: list[tuple[tuple[bool, int], int, dict[str, Any]]] = []
    total = 0
    for name in run.list(f"captions/{set_name}/part-*.parquet"):
        tables, _ = open_parts(run, [name], PAIR_SCHEMA)  # what does not open is `verify`'s to report
        for row in (row for table in tables.values() for row in main_captions(table).to_pylist()):
            if not row["clip_sha256"]:
                continue
            total += 1
            draw = int.from_bytes(hashlib.sha256(row["clip_id"].encode()).digest()[:8], "big")
            entry = ((row["clip_id"] in first, -draw), total, {**row, "part": name})
            if num_pairs is None or len(kept) < num_pairs:
                heapq.heappush(kept, entry)
            elif num_pairs:
                heapq.heappushpop(kept, entry)
    rows = [row for _, _, row in sorted(kept, key=lambda entry: entry[1])]
    fields = Pair.__dataclass_fields__
    # A text that failed its gate says nothing about its clip, but its frames can be checked.
    return [Pair(**{n: r[n] for n in fields} | ({"text": ""} if r["reason"] else {})) for r in rows], total


def check_pairs(
    set_name: str,
    pairs: Sequence[Pair],
    captioner: Captioner,
    clips: dict[str, Clip],
    *,
    decode: DecodeLimits,
    snap_seconds: float = 0.0,
    track: Callable[[Sequence[Pair]], Iterable[Pair]] = iter,
) -> PairCheck:
    """The three questions of this module. Frames of at most `BATCH` clips are in memory.

    Args:
        clips: by clip id, at least those of `pairs` that exist.
        track: wraps the pairs while they are decoded, for a progress bar.
    """
    check = PairCheck(set_name=set_name)
    name = f"{captioner.name}@{captioner.weights_hash}"
    blocks: list[np.ndarray] = []
    unchecked: Counter[str] = Counter()
    batch: list[tuple[Pair, np.ndarray]] = []
    recaption: list[np.ndarray] = []
    for pair in track(pairs):
        if pair.captioner != name:
            unchecked[f"made by {pair.captioner}, not by {name}"] += 1
            continue
        if pair.clip_id not in clips:
            continue  # reported as caption_without_clip
        frames = _frames_or_why(clips[pair.clip_id], captioner, decode, snap_seconds)
        if isinstance(frames, str):
            unchecked[frames] += 1
            continue
        check.num_hashed += 1
        if hashlib.sha256(frames.tobytes()).hexdigest() != pair.clip_sha256:
            if _is_changed(clips[pair.clip_id]):
                unchecked["the source video has other bytes now"] += 1
                continue
            detail = "the frames of this clip are not those that its caption was written about"
            where = f"{pair.part}:{pair.clip_id}"
            check.problems.append(Problem(kind="caption_of_other_clip", where=where, detail=detail))
        elif pair.text and captioner.has_contrastive_head:
            batch.append((pair, frames))
        if len(batch) == BATCH:
            blocks.append(_score(batch, captioner, check))
            recaption = recaption or [frames for _, frames in batch]
            batch = []
    if batch:
        blocks.append(_score(batch, captioner, check))
        recaption = recaption or [frames for _, frames in batch]
    check.unchecked = dict(sorted(unchecked.items()))
    _judge(check, blocks, recaption, captioner)
    return check


def _frames_or_why(clip: Clip, captioner: Captioner, decode: DecodeLimits, snap_seconds: float) -> np.ndarray | str:
    try:
        with local_copy(clip.uri):
            pass
    except VideoError:
        return "the source video is gone"
    try:
        return sample_frames(clip, captioner, decode, snap_seconds=snap_seconds)
    except VideoError as error:
        return (
            "the source video has other bytes now" if _is_changed(clip) else f"the clip does not decode: {error.reason}"
        )


def _is_changed(clip: Clip) -> bool:
    try:
        with local_copy(clip.uri) as path:
            return file_id(path)[0] != clip.video_id
    except (VideoError, OSError):
        return True


def _score(batch: list[tuple[Pair, np.ndarray]], captioner: Captioner, check: PairCheck) -> np.ndarray:
    """Scores (clips, texts) of one batch; texts that do not score what was noted become problems."""
    scores = captioner.score([frames for _, frames in batch], [pair.text for pair, _ in batch])
    for (pair, _), score in zip(batch, np.diag(scores), strict=True):
        where = f"{pair.part}:{pair.clip_id}"
        if pair.clip_score is not None and abs(score - pair.clip_score) > SCORE_TOLERANCE:
            detail = (
                f"its text scores {score:.3f} against its clip, {pair.clip_score:.3f} was noted when it was written"
            )
            check.problems.append(Problem(kind="clip_score_differs", where=where, detail=detail))
    return scores


def _judge(check: PairCheck, blocks: list[np.ndarray], frames: list[np.ndarray], captioner: Captioner) -> None:
    """The third question, over all batches together."""
    if not captioner.has_contrastive_head:
        check.verdict = "the captioner scores nothing"
        return
    blocks = [block for block in blocks if len(block) > 1]
    check.num_scored = sum(map(len, blocks))
    if not blocks:
        return
    own = float(np.sum([np.trace(block) for block in blocks]))
    others = float(np.sum([(block.sum() - np.trace(block)) / (len(block) - 1) for block in blocks]))
    check.matched_score, check.mismatched_score = own / check.num_scored, others / check.num_scored
    if check.num_scored < MIN_PAIRS:
        return
    check.p_value = share_as_good(blocks)
    if check.p_value <= SIGNIFICANCE:
        check.verdict = "matched"
        return
    # Blame the captions only where captions known to be right pass: a captioner with random weights, or clips that
    # all look alike, would fail with any text.
    fresh = captioner.caption(frames, max_tokens=captioner.max_tokens)
    if share_as_good([captioner.score(frames, [caption.text for caption in fresh])]) > SIGNIFICANCE:
        check.verdict = "the captioner cannot tell these clips apart"
        return
    check.verdict = "shuffled"
    detail = (
        f"captions match their own clips no better ({check.matched_score:.3f}) than other clips' captions do "
        f"({check.mismatched_score:.3f}): p = {check.p_value:.2g} over {check.num_scored} pairs"
    )
    check.problems.append(Problem(kind="captions_shuffled", where=f"captions/{check.set_name}", detail=detail))


def share_as_good(blocks: Sequence[np.ndarray], *, seed: int = 0) -> float:
    """Share of random pairings within each block whose total score reaches that of the given pairing (the diagonals).

    A permutation test: exact whatever the scores' distribution, and blind to texts that score high with every clip.
    """
    random = np.random.default_rng(seed)
    own = sum(float(np.trace(block)) for block in blocks)
    sums = np.zeros(NUM_PERMUTATIONS)
    for block in blocks:
        count = len(block)
        orders = random.permuted(np.tile(np.arange(count), (NUM_PERMUTATIONS, 1)), axis=1)
        sums += block[np.arange(count), orders].sum(axis=1, dtype=np.float64)
    return float((1 + np.count_nonzero(sums >= own - 1e-9)) / (1 + NUM_PERMUTATIONS))
