"""Captions of other clips, replaced texts and shuffled sets are found; what cannot be checked is counted, not blamed."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from recaption.captioners.clip_views import sample_frames
from recaption.ledger import caption_checks
from recaption.ledger.caption_checks import CaptionClipPair, check_pairs, permutation_p_value, sample_pairs
from recaption.records import Caption, Clip, to_table
from recaption.run_folder import RunFolder
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.opened_video import open_video
from recaption.video_io.reader import probe
from recaption.video_io.writer import write_video

NUM_CLIPS = 8


class BrightnessCaptioner:
    """Writes the brightness of a clip as its caption; the score of text and clip is 1 minus their distance."""

    name, weights_hash = "brightness", "0"
    num_frames, frame_px, max_tokens, has_contrastive_head = 2, 32, 9, True

    def caption(self, clips, *, max_tokens):
        return [Caption(text=str(round(float(clip.mean())))) for clip in clips]

    def score(self, clips, texts):
        levels = np.array([clip.mean() for clip in clips])
        return 1 - np.abs(levels[:, None] - np.array([float(text) for text in texts])) / 255


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Clip]:
    """Grey videos of 4 frames, each of another brightness."""
    folder = tmp_path_factory.mktemp("videos")
    found = {}
    for number in range(NUM_CLIPS):
        path = folder / f"{number}.mp4"
        write_video(path, np.full((4, 32, 32, 3), 20 + 30 * number, np.uint8), fps=8)
        video_id = probe(path).video_id
        clip_id = f"{video_id}-0000000-0000004"
        times = {"start_seconds": 0.0, "end_seconds": 0.5, "start_frame": 0, "end_frame": 4}
        size = {"width_px": 32, "height_px": 32, "fps": 8.0, "shot_index": 0}
        found[clip_id] = Clip(clip_id=clip_id, video_id=video_id, uri=str(path), **times, **size)
    return found


@pytest.fixture(scope="module")
def pairs(clips) -> list[CaptionClipPair]:
    captioner, found = BrightnessCaptioner(), []
    for clip in clips.values():
        with open_video(clip.uri) as video:
            frames = sample_frames(video, clip, captioner)
        (caption,) = captioner.caption([frames], max_tokens=9)
        score = float(captioner.score([frames], [caption.text])[0, 0])
        digest = hashlib.sha256(frames.tobytes()).hexdigest()
        names = {"part": "captions/main/part-00000.parquet", "captioner": "brightness@0"}
        found.append(
            CaptionClipPair(clip_id=clip.clip_id, text=caption.text, clip_sha256=digest, clip_score=score, **names)
        )
    return found


def check(pairs, clips, captioner=None):
    return check_pairs("main", pairs, captioner or BrightnessCaptioner(), clips, decode=DecodeLimits())


def kinds(result) -> list[str]:
    return [problem.kind for problem in result.problems]


def shuffled(pairs, **changes):
    """Every caption with the text of the next clip."""
    return [dataclasses.replace(p, text=q.text, **changes) for p, q in zip(pairs, [*pairs[1:], pairs[0]], strict=True)]


def test_right_captions_match_their_clips(clips, pairs):
    result = check(pairs, clips)
    assert (result.problems, result.verdict, result.unchecked) == ([], "matched", {})
    assert result.num_hashed == result.num_scored == NUM_CLIPS
    assert result.matched_score == pytest.approx(1, abs=0.01)
    assert result.p_value <= 0.001


def test_captions_of_another_clip_are_found_by_their_frames(clips, pairs):
    swapped = [dataclasses.replace(pairs[0], clip_sha256=pairs[1].clip_sha256), *pairs[1:]]
    result = check(swapped, clips)
    assert kinds(result) == ["caption_of_other_clip"]
    assert result.problems[0].where == f"captions/main/part-00000.parquet:{pairs[0].clip_id}"


def test_a_replaced_text_is_found_by_its_score(clips, pairs):
    replaced = [dataclasses.replace(pairs[0], text=pairs[5].text), *pairs[1:]]
    assert kinds(check(replaced, clips)) == ["clip_score_differs"]


def test_a_set_that_was_wrong_from_the_start_is_found_as_a_whole(clips, pairs):
    result = check(shuffled(pairs, clip_score=None), clips)
    assert (kinds(result), result.verdict) == (["captions_shuffled"], "shuffled")


def test_a_captioner_that_scores_everything_alike_does_not_blame_the_captions(clips, pairs):
    captioner = BrightnessCaptioner()
    captioner.score = lambda clips, texts: np.ones((len(clips), len(texts)))
    result = check([dataclasses.replace(pair, clip_score=None) for pair in pairs], clips, captioner)
    assert (result.problems, result.verdict) == ([], "the captioner cannot tell these clips apart")


def test_a_captioner_without_scores_checks_frames_only(clips, pairs):
    captioner = BrightnessCaptioner()
    captioner.has_contrastive_head = False
    result = check(pairs, clips, captioner)
    assert (result.num_hashed, result.num_scored, result.verdict) == (NUM_CLIPS, 0, "the captioner scores nothing")


def test_few_pairs_give_scores_and_no_verdict(clips, pairs):
    result = check(pairs[: caption_checks.MIN_PAIRS - 1], clips)
    assert (result.p_value, result.verdict) == (None, "not enough pairs")
    assert result.matched_score > result.mismatched_score


def test_what_cannot_be_checked_is_counted_and_no_problem(clips, pairs, tmp_path):
    other_captioner = dataclasses.replace(pairs[0], captioner="tiny@1")
    gone = dataclasses.replace(clips[pairs[1].clip_id], uri=str(tmp_path / "gone.mp4"))
    replaced = dataclasses.replace(clips[pairs[2].clip_id], uri=clips[pairs[3].clip_id].uri)
    known = clips | {gone.clip_id: gone, replaced.clip_id: replaced}
    result = check([other_captioner, *pairs[1:3]], known)
    assert (result.problems, result.num_hashed) == ([], 0)
    assert result.unchecked == {
        "made by tiny@1, not by brightness@0": 1,
        "the source video has other bytes now": 1,
        "the source video is gone": 1,
    }


def test_batches_are_scored_on_their_own_and_judged_together(clips, pairs, monkeypatch):
    monkeypatch.setattr(caption_checks, "BATCH_SIZE", 4)
    result = check(pairs, clips)
    assert (result.num_scored, result.verdict) == (NUM_CLIPS, "matched")


# --- p-values and samples ---------------------------------------------------------------------------------------------


def test_p_values_are_the_fraction_of_pairings_that_score_as_well():
    assert permutation_p_value([np.ones((8, 8))]) == 1.0
    assert permutation_p_value([np.eye(2)]) == pytest.approx(1 / 2, abs=0.02), "one of 2! pairings"
    assert permutation_p_value([np.eye(3)]) == pytest.approx(1 / 6, abs=0.02), "one of 3! pairings"
    assert permutation_p_value([np.eye(2), np.eye(2)]) == pytest.approx(1 / 4, abs=0.02), "within blocks only"
    assert permutation_p_value([np.eye(12)]) == 1 / 10_000, "one of 12!: none of the 9,999 drawn, and the true one"
    assert permutation_p_value([1 - np.eye(8)]) == 1.0


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(str(tmp_path))
    for part in range(2):
        rows = [Caption(clip_id=f"clip-{part}{n}", text=f"text {n}", clip_sha256="0" * 64) for n in range(10)]
        rows.append(Caption(clip_id=f"clip-{part}0", text="as uploaded", source="original", kind="", clip_sha256="1"))
        run.write_table(f"captions/main/part-0000{part}.parquet", to_table(rows, Caption))
    return run


def test_a_sample_is_the_same_each_time_and_part_of_every_larger_one(run):
    pairs, total = sample_pairs(run, "main", 4)
    assert total == 20, "main captions only"
    assert (pairs, total) == sample_pairs(run, "main", 4)
    assert {pair.clip_id for pair in pairs} < {pair.clip_id for pair in sample_pairs(run, "main", 9)[0]}
    assert len(pairs) == 4
    assert len(sample_pairs(run, "main", None)[0]) == 20
    assert sample_pairs(run, "main", 0) == ([], 20)


def test_requested_clips_come_first(run):
    by_hash = {pair.clip_id for pair in sample_pairs(run, "main", 2)[0]}
    wanted = sorted({f"clip-1{n}" for n in range(10)} - by_hash)[:2]
    pairs, _ = sample_pairs(run, "main", 2, first=wanted)
    assert [pair.clip_id for pair in pairs] == wanted


def test_a_text_that_failed_a_gate_is_sampled_without_its_text(run):
    bad = Caption(clip_id="clip-20", text="red red red", clip_sha256="0" * 64, reason="bad_caption", fault="looping")
    run.write_table("captions/main/part-00002.parquet", to_table([bad], Caption))
    (pair,) = sample_pairs(run, "main", 1, first=["clip-20"])[0]
    assert (pair.clip_id, pair.text, pair.part) == ("clip-20", "", "captions/main/part-00002.parquet")
