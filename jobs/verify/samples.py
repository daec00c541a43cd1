"""Checks that samples of the shards show their clips: some are decoded and compared with their source videos.

    check = check_samples(run, recipe, 32)
    check.problems                   # samples that hold other pixels
    check.unchecked                  # {"the source video is gone": 2}

A sample may differ from its clip by what the codec loses: it is encoded once more, and may lose at most `TOLERANCE_DB` more
than that.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from jobs.recipe.part_names import part_name, part_number
from jobs.recipe.run_inputs import source_states
from jobs.recipe.settings import Recipe
from packing.shards.read import read_sample
from recaption.errors import VideoError
from recaption.inputs.open_input import InputState
from recaption.ledger.ledger import committed_clips
from recaption.ledger.problems import Problem, read_tables_or_problems
from recaption.ledger.source_checks import source_changed
from recaption.records import Clip, Sample, from_table, schema_of
from recaption.run_folder import RunFolder
from recaption.video_io.opened_video import OpenVideos
from recaption.video_io.reader import decode_bytes
from recaption.video_io.writer import encode_video

INDEX = "index.parquet"
CLEAR_PSNR_DB, CLEAR_FRACTION = 35.0, 0.02
"""A sample this close to its clip, whose error is at most this fraction of the variance of its pixels, needs no second
encoding for comparison."""
TOLERANCE_DB = 3.0
"""Other versions of an encoder lose up to 1 dB more at the same crf."""


@dataclass(kw_only=True)
class SampleCheckResult:
    """Result of the check of one run folder."""

    problems: list[Problem] = field(default_factory=list)
    num_compared: int = 0
    unchecked: dict[str, int] = field(default_factory=dict)
    """Reason -> number of samples that could not be compared."""

    def summary(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return {"compared": self.num_compared, "unchecked": self.unchecked}


def choose_samples(samples: list[Sample], num_samples: int | None) -> list[Sample]:
    """Samples whose bytes another sample has too, then others by the hash of their ids; sorted by id, so by video."""
    counts = Counter(sample.sha256 for sample in samples)

    def rank(sample: Sample) -> tuple[bool, bytes]:
        return counts[sample.sha256] < 2, hashlib.sha256(sample.clip_id.encode()).digest()

    return sorted(sorted(samples, key=rank)[:num_samples], key=lambda sample: sample.clip_id)


def check_samples(
    run: RunFolder, recipe: Recipe, num_samples: int | None, *, progress: bool = False
) -> SampleCheckResult:
    """Compare samples with their clips; None: all. Damaged shards and tables are for `verify` to report."""
    check = SampleCheckResult()
    tables, _ = read_tables_or_problems(run, run.list(INDEX), schema_of(Sample))
    samples = choose_samples([s for table in tables.values() for s in from_table(table, Sample)], num_samples)
    clips = _clips_of({sample.clip_id for sample in samples}, run)
    states = source_states(run, {clip.uri: clip.video_id for clip, _ in clips.values()}) if clips else {}
    unchecked: Counter[str] = Counter()
    with OpenVideos(recipe.prepare.decode) as videos:
        for sample in tqdm(samples, desc="samples", unit="sample", file=sys.stderr, disable=not progress):
            if sample.clip_id not in clips:
                continue
            clip, part = clips[sample.clip_id]
            try:
                frames_THWC = _clip_frames(videos, clip, sample, states)
            except VideoError as error:
                if error.reason == "source_changed":
                    check.problems.append(source_changed(part, clip.uri, error.detail))
                unchecked[f"the source video: {error.reason}"] += 1
                continue
            if detail := _difference(run, recipe, sample, frames_THWC):
                where = f"{sample.shard}:{sample.clip_id}"
                check.problems.append(Problem(kind="sample_of_other_clip", where=where, detail=detail))
            check.num_compared += 1
    check.unchecked = dict(sorted(unchecked.items()))
    return check


def _clip_frames(videos: OpenVideos, clip: Clip, sample: Sample, states: dict[str, InputState]) -> np.ndarray:
    return videos.open(clip.uri, states[clip.uri]).read_clip(
        clip.start_seconds,
        num_frames=sample.num_frames,
        fps=sample.fps,
        height_px=sample.height_px,
        width_px=sample.width_px,
        start_frame=clip.start_frame,
        end_frame=clip.end_frame,
    )


def _difference(run: RunFolder, recipe: Recipe, sample: Sample, clip_THWC: np.ndarray) -> str:
    """How a sample differs from its clip; "" where it shows it, or cannot be read."""
    try:
        sample_THWC = decode_bytes(read_sample(run, sample)["mp4"], limits=recipe.prepare.decode).pixels_THWC
    except (VideoError, KeyError, OSError):
        return ""  # a damaged shard, which has a problem of its own
    if sample_THWC.shape != clip_THWC.shape:
        return f"it has frames of shape {sample_THWC.shape}, its clip gives {clip_THWC.shape}"
    psnr_db = _psnr_db(sample_THWC, clip_THWC)
    error = 255.0**2 / 10 ** (psnr_db / 10)
    if psnr_db >= CLEAR_PSNR_DB and error <= CLEAR_FRACTION * float(np.var(clip_THWC, dtype=np.float64)):
        return ""
    table = recipe.shard.buckets
    encoded = encode_video(clip_THWC, fps=sample.fps, codec=table.codec, crf=table.crf)
    expected_db = _psnr_db(decode_bytes(encoded, limits=recipe.prepare.decode).pixels_THWC, clip_THWC)
    if psnr_db >= expected_db - TOLERANCE_DB:
        return ""
    return f"its pixels are not those of its clip: PSNR {psnr_db:.1f} dB, {expected_db:.1f} dB are left after encoding"


def _psnr_db(a_THWC: np.ndarray, b_THWC: np.ndarray) -> float:
    squares = [np.mean(np.square(a.astype(np.float32) - b), dtype=np.float64) for a, b in zip(a_THWC, b_THWC)]
    return float(10 * np.log10(255.0**2 / max(float(np.mean(squares)), 1e-6)))


def _clips_of(clip_ids: set[str], run: RunFolder) -> dict[str, tuple[Clip, str]]:
    """Clip id -> the clip and its part of RUN/videos, from readable parts."""
    found: dict[str, tuple[Clip, str]] = {}
    for name in committed_clips(run) if clip_ids else ():
        tables, _ = read_tables_or_problems(run, [name], schema_of(Clip))
        for row in (row for table in tables.values() for row in table.to_pylist()):
            if row["clip_id"] in clip_ids:
                found.setdefault(row["clip_id"], (Clip(**row), part_name("videos", part_number(name))))
    return found
