"""Checks that captions belong to their clips: a sample of clips is decoded, hashed and scored again.

    pairs, _ = sample_pairs(run, "main", 32)
    check = check_pairs("main", pairs, captioner, clips_by_id, decode=DecodeLimits())
    check.problems                  # captions of other frames, or that do not match their clips
    check.unchecked                 # {"the source video is gone": 2}: neither a problem nor a proof

Three checks, each finding what the one before cannot:

1. Frames: their sha256 is `Caption.clip_sha256`. Finds captions that were written about other clips.
2. Clip score: text and clip score as recorded when the caption was written. Finds a single text that was replaced, even
   where its hash was left in place.
3. Caption set: captions match their own clips better than other clips' captions do. Finds a set that was wrong from the
   start. Permutation test: at most a fraction `SIGNIFICANCE` of `NUM_PERMUTATIONS` random pairings may match as well.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recaption.captioners.clip_views import sample_frames
from recaption.captions.sets import main_captions
from recaption.errors import VideoError
from recaption.inputs.open_input import InputState
from recaption.ledger.problems import Problem, read_tables_or_problems
from recaption.ledger.source_checks import source_changed
from recaption.records import Caption, Clip, schema_of
from recaption.run_folder import RunFolder
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.opened_video import OpenVideos

if TYPE_CHECKING:
    from recaption.captioners.interface import Captioner


NUM_PERMUTATIONS = 9999
"""Of the permutation test: the smallest p-value is 1 / 10,000."""
SIGNIFICANCE = 0.01
"""Correct captions pass by far (matched 0.87, mismatched 0.19 on 55 rendered scenes: p = 0.0001); shuffled ones pass
once in 100."""
MIN_PAIRS = 8
"""With fewer pairs a few similar clips decide the result: there is no verdict then."""
BATCH_SIZE = 32
"""Clips that are scored against each other and are in memory together."""
SCORE_TOLERANCE = 0.05
"""Cosine similarities of one pair on other hardware or in another precision differ by less than 0.01."""
UNCHECKED = {
    "unreadable": "the source video is gone",
    "fetch_failed": "the source video cannot be fetched",
    "source_changed": "the source video has other bytes now",
}
"""Failure reason -> why a pair could not be checked."""
PAIR_SCHEMA = pa.schema(
    [
        schema_of(Caption).field(n)
        for n in ("clip_id", "text", "clip_sha256", "captioner", "clip_score", "source", "reason", "kind", "window")
    ]
)


@dataclass(frozen=True, kw_only=True)
class CaptionClipPair:
    """A main caption of one clip, and the part that it is in."""

    part: str
    clip_id: str
    text: str
    clip_sha256: str
    captioner: str
    clip_score: float | None


@dataclass(kw_only=True)
class CaptionCheckResult:
    """Result of the checks of one caption set."""

    set_name: str
    problems: list[Problem] = field(default_factory=list)
    """Of the captions."""
    changed_sources: list[Problem] = field(default_factory=list)
    """Videos whose bytes are others now, which says nothing about their captions."""
    num_hashed: int = 0
    """Clips that were decoded and hashed again."""
    num_scored: int = 0
    """Of these, clips that were scored against their own and other captions."""
    matched_score: float | None = None
    mismatched_score: float | None = None
    p_value: float | None = None
    """Fraction of random pairings that match as well; None with fewer than `MIN_PAIRS` pairs."""
    verdict: str = "not enough pairs"
    """Of the third check: `matched`, `shuffled`, `not enough pairs`, `the captioner cannot tell these clips apart`, or
    `the captioner scores nothing`, where only the first check is possible."""
    unchecked: dict[str, int] = field(default_factory=dict)
    """Reason -> number of pairs that could not be checked."""

    def summary(self) -> dict[str, Any]:
        """The numbers as JSON values, without the problems."""
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
) -> tuple[list[CaptionClipPair], int]:
    """(sampled pairs, number of captions in the set). Sampled by the hash of the clip ids: uniform and reproducible.

    One part is in memory at a time, and `num_pairs` rows.

    Args:
        num_pairs: None = all.
        first: clip ids that are taken before any others.
    """
    selected: list[tuple[tuple[bool, int], int, dict[str, Any]]] = []
    total = 0
    for name in run.list(f"captions/{set_name}/part-*.parquet"):
        tables, _ = read_tables_or_problems(run, [name], PAIR_SCHEMA)  # unreadable parts are reported by `verify`
        for row in (row for table in tables.values() for row in main_captions(table).to_pylist()):
            if not row["clip_sha256"]:
                continue
            total += 1
            sample_key = int.from_bytes(hashlib.sha256(row["clip_id"].encode()).digest()[:8], "big")
            entry = ((row["clip_id"] in first, -sample_key), total, {**row, "part": name})
            if num_pairs is None or len(selected) < num_pairs:
                heapq.heappush(selected, entry)
            elif num_pairs:
                heapq.heappushpop(selected, entry)
    rows = [row for _, _, row in sorted(selected, key=lambda entry: entry[1])]
    fields = CaptionClipPair.__dataclass_fields__
    # A text that failed a quality gate is not scored, but its frames can be checked.
    return [CaptionClipPair(**{n: r[n] for n in fields} | ({"text": ""} if r["reason"] else {})) for r in rows], total


def check_pairs(
    set_name: str,
    pairs: Sequence[CaptionClipPair],
    captioner: Captioner,
    clips: dict[str, Clip],
    *,
    decode: DecodeLimits,
    states: Mapping[str, InputState] = MappingProxyType({}),
    snap_seconds: float = 0.0,
    track: Callable[[Sequence[CaptionClipPair]], Iterable[CaptionClipPair]] = iter,
) -> CaptionCheckResult:
    """Run the three checks of this module. Frames of at most `BATCH_SIZE` clips are in memory.

    Args:
        clips: by clip id, all of `pairs` that exist.
        states: by uri, what `prepare` recorded of their videos; of others the hash alone is compared.
        track: wraps the pairs while they are decoded, for a progress bar.
    """
    check = CaptionCheckResult(set_name=set_name)
    name = f"{captioner.name}@{captioner.weights_hash}"
    blocks: list[np.ndarray] = []
    unchecked: Counter[str] = Counter()
    batch: list[tuple[CaptionClipPair, np.ndarray]] = []
    first_batch: list[np.ndarray] = []
    videos = OpenVideos(decode)
    for pair in track(pairs):
        if pair.captioner != name:
            unchecked[f"made by {pair.captioner}, not by {name}"] += 1
            continue
        if pair.clip_id not in clips:
            continue  # reported as caption_without_clip
        clip = clips[pair.clip_id]
        state = states.get(clip.uri) or InputState(video_id=clip.video_id)
        try:
            video = videos.open(clip.uri, state)
        except VideoError as error:
            unchecked[UNCHECKED.get(error.reason, UNCHECKED["unreadable"])] += 1
            if error.reason == "source_changed":
                part = f"videos/{pair.part.rpartition('/')[2]}"
                check.changed_sources.append(source_changed(part, clip.uri, error.detail))
            continue
        try:
            frames = sample_frames(video, clip, captioner, snap_seconds=snap_seconds)
        except VideoError as error:
            unchecked[f"the clip does not decode: {error.reason}"] += 1
            continue
        check.num_hashed += 1
        if hashlib.sha256(frames.tobytes()).hexdigest() != pair.clip_sha256:
            detail = "the sha256 of its frames is not the one in the caption, which was written about other frames"
            where = f"{pair.part}:{pair.clip_id}"
            check.problems.append(Problem(kind="caption_of_other_clip", where=where, detail=detail))
        elif pair.text and captioner.has_contrastive_head:
            batch.append((pair, frames))
        if len(batch) == BATCH_SIZE:
            blocks.append(_score(batch, captioner, check))
            first_batch = first_batch or [frames for _, frames in batch]
            batch = []
    videos.close()
    if batch:
        blocks.append(_score(batch, captioner, check))
        first_batch = first_batch or [frames for _, frames in batch]
    check.unchecked = dict(sorted(unchecked.items()))
    _compare_with_shuffled(check, blocks, first_batch, captioner)
    return check


def _score(
    batch: list[tuple[CaptionClipPair, np.ndarray]], captioner: Captioner, check: CaptionCheckResult
) -> np.ndarray:
    """Scores (clips, texts) of one batch; texts whose score is not the recorded one become problems."""
    scores = captioner.score([frames for _, frames in batch], [pair.text for pair, _ in batch])
    for (pair, _), score in zip(batch, np.diag(scores), strict=True):
        where = f"{pair.part}:{pair.clip_id}"
        if pair.clip_score is not None and abs(score - pair.clip_score) > SCORE_TOLERANCE:
            detail = (
                f"its text scores {score:.3f} against its clip, {pair.clip_score:.3f} was recorded when it was written"
            )
            check.problems.append(Problem(kind="clip_score_differs", where=where, detail=detail))
    return scores


def _compare_with_shuffled(
    check: CaptionCheckResult, blocks: list[np.ndarray], frames: list[np.ndarray], captioner: Captioner
) -> None:
    """The third check, over all batches together; `frames` are those of the first batch."""
    if not captioner.has_contrastive_head:
        check.verdict = "the captioner scores nothing"
        return
    blocks = [block for block in blocks if len(block) > 1]
    check.num_scored = sum(map(len, blocks))
    if not blocks:
        return
    matched = float(np.sum([np.trace(block) for block in blocks]))
    mismatched = float(np.sum([(block.sum() - np.trace(block)) / (len(block) - 1) for block in blocks]))
    check.matched_score, check.mismatched_score = matched / check.num_scored, mismatched / check.num_scored
    if check.num_scored < MIN_PAIRS:
        return
    check.p_value = permutation_p_value(blocks)
    if check.p_value <= SIGNIFICANCE:
        check.verdict = "matched"
        return
    # The captions are at fault only if newly generated ones pass: with a captioner of random weights, or with clips
    # that all look alike, any text would fail.
    new_captions = captioner.caption(frames, max_tokens=captioner.max_tokens)
    if permutation_p_value([captioner.score(frames, [caption.text for caption in new_captions])]) > SIGNIFICANCE:
        check.verdict = "the captioner cannot tell these clips apart"
        return
    check.verdict = "shuffled"
    detail = (
        f"captions match their own clips no better ({check.matched_score:.3f}) than other clips' captions do "
        f"({check.mismatched_score:.3f}): p = {check.p_value:.2g} over {check.num_scored} pairs"
    )
    check.problems.append(Problem(kind="captions_shuffled", where=f"captions/{check.set_name}", detail=detail))


def permutation_p_value(blocks: Sequence[np.ndarray], *, seed: int = 0) -> float:
    """Fraction of random pairings within each block whose total score reaches that of the true pairing (the diagonals).

    A permutation test: exact for any distribution of scores, and unaffected by texts that score high with every clip.

    Args:
        blocks: scores (clips, texts), square; pairings are permuted within a block only.
    """
    rng = np.random.default_rng(seed)
    matched = sum(float(np.trace(block)) for block in blocks)
    sums = np.zeros(NUM_PERMUTATIONS)
    for block in blocks:
        count = len(block)
        orders = rng.permuted(np.tile(np.arange(count), (NUM_PERMUTATIONS, 1)), axis=1)
        sums += block[np.arange(count), orders].sum(axis=1, dtype=np.float64)
    return float((1 + np.count_nonzero(sums >= matched - 1e-9)) / (1 + NUM_PERMUTATIONS))
