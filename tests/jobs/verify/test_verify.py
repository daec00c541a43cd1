"""`verify`: captions that do not belong to their clips, and checks that cannot run."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.cli import main
from jobs.verify.verify import parse_pairs, verify_run
from recaption.captioners.registry import load_captioner
from recaption.errors import UsageError
from recaption.ledger.caption_checks import MIN_PAIRS, SIGNIFICANCE, check_pairs, permutation_p_value, sample_pairs
from recaption.records import Clip, from_table
from recaption.run_folder import RunFolder
from recaption.video_io.frames import DecodeLimits


def rotate(run, columns, *, rows_of=None):
    """Shift values of some columns by one row, across all parts of the caption set."""
    names = run.list("captions/main/part-*.parquet")
    tables = [run.read_table(name) for name in names]
    rows = [row for table in tables for row in table.to_pylist()]
    chosen = range(len(rows)) if rows_of is None else rows_of
    old = [{column: rows[i][column] for column in columns} for i in chosen]
    for position, i in enumerate(chosen):
        rows[i] |= old[position - 1]
    for name, table in zip(names, tables):
        part_rows, rows = rows[: table.num_rows], rows[table.num_rows :]
        run.write_table(name, pa.Table.from_pylist(part_rows, schema=table.schema), run.table_metadata(name))


def change_rows(run, pattern, change):
    for name in run.list(pattern):
        table = run.read_table(name)
        rows = [change(row) for row in table.to_pylist()]
        run.write_table(name, pa.Table.from_pylist(rows, schema=table.schema), run.table_metadata(name))


def kinds(summary):
    # Shards written before the captions were changed are reported too; these tests are about the pixel checks.
    return {problem["kind"] for problem in summary["problems"]} - {"caption_changed"}


def test_an_intact_run_verifies_and_reports_its_checks(small_run, small_recipe):
    summary = verify_run(small_run, small_recipe)
    assert summary["ok"], summary["problems"]
    main_set = summary["pairs"]["main"]
    assert main_set["hashed"] == main_set["scored"] == 11
    assert main_set["unchecked"] == {}
    assert main_set["verdict"] == "matched"
    assert main_set["matched_score"] > main_set["mismatched_score"] + 0.2
    assert main_set["p_value"] < SIGNIFICANCE


def test_captions_of_other_clips_are_found_by_frame_hash(run_copy, small_recipe):
    names = run_copy.read_table("captions/main/part-00000.parquet").schema.names
    rotate(run_copy, [name for name in names if name != "clip_id"])
    summary = verify_run(run_copy, small_recipe)
    assert kinds(summary) == {"caption_of_other_clip"}
    assert sum(p["kind"] == "caption_of_other_clip" for p in summary["problems"]) == 11
    assert all(":" in p["where"] and p["where"].startswith("captions/main/part-") for p in summary["problems"])


def test_shifted_texts_are_found_by_score_and_by_shuffled_pairs(run_copy, small_recipe):
    rotate(run_copy, ["text"])
    assert kinds(verify_run(run_copy, small_recipe)) == {"clip_score_differs", "captions_shuffled"}


def test_shuffled_captions_without_scores_are_found_by_shuffled_pairs(run_copy, small_recipe):
    """As written by a stage that mixes up its batch: hash and score are consistent with the wrong text."""
    rotate(run_copy, ["text"])
    change_rows(run_copy, "captions/main/part-*.parquet", lambda row: row | {"clip_score": None})
    summary = verify_run(run_copy, small_recipe)
    assert kinds(summary) == {"captions_shuffled"}
    assert summary["pairs"]["main"]["verdict"] == "shuffled"


def test_two_swapped_texts_among_many_are_found(run_copy, small_recipe):
    rotate(run_copy, ["text"], rows_of=[1, 6])
    summary = verify_run(run_copy, small_recipe)
    assert kinds(summary) == {"clip_score_differs"}
    assert len({p["where"] for p in summary["problems"] if p["kind"] == "clip_score_differs"}) == 2


def test_other_bytes_of_a_source_are_a_problem_and_a_missing_one_is_not(run_copy, small_recipe, scene_videos, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(scene_videos, moved)
    for pattern in ("inputs.parquet", "videos/part-*.parquet", "clips/part-*.parquet"):
        change_rows(run_copy, pattern, lambda row: row | {"uri": str(moved / Path(row["uri"]).name)})
    os.remove(moved / "scene-03.mp4")
    shutil.copyfile(moved / "scene-06.mp4", moved / "scene-04.mp4")
    (moved / "scene-05.mp4").write_bytes(b"not a video")
    os.utime(moved / "scene-06.mp4")  # the same bytes with another time
    summary = verify_run(run_copy, small_recipe)
    assert kinds(summary) == {"source_changed"}
    names = {p["where"].rpartition("/")[2] for p in summary["problems"]}
    assert names == {"scene-04.mp4", "scene-05.mp4"}
    assert summary["pairs"]["main"]["unchecked"] == {
        "the source video has other bytes now": 2,
        "the source video is gone": 1,
    }
    assert summary["pairs"]["main"]["hashed"] >= 8


@pytest.mark.parametrize("spec", ["/no/such/captioner", "open_clip:coca_ViT-B-32//no/such/weights.safetensors"])
def test_an_unavailable_captioner_is_unchecked_and_not_damage(small_run, small_recipe, spec):
    other = dataclasses.replace(small_recipe, caption=dataclasses.replace(small_recipe.caption, captioner=spec))
    summary = verify_run(small_run, other)
    assert summary["ok"]
    assert list(summary["pairs"]["main"]["unchecked"].values()) == [11]
    assert "no captioner" in next(iter(summary["pairs"]["main"]["unchecked"]))


def test_captions_of_another_captioner_are_unchecked(run_copy, small_recipe):
    change_rows(run_copy, "captions/main/part-*.parquet", lambda row: row | {"captioner": "another@0123"})
    summary = verify_run(run_copy, small_recipe)
    assert summary["ok"]
    assert list(summary["pairs"]["main"]["unchecked"].values()) == [11]


def test_few_pairs_give_no_verdict(run_copy, small_recipe):
    rotate(run_copy, ["text"])
    few = verify_run(run_copy, small_recipe, num_pairs=MIN_PAIRS - 1)
    assert few["pairs"]["main"]["verdict"] == "not enough pairs"
    assert few["pairs"]["main"]["p_value"] is None
    assert "captions_shuffled" not in kinds(few)
    assert verify_run(run_copy, small_recipe, num_pairs=0)["pairs"] == {}


class Blind:
    """A captioner with random scores."""

    has_contrastive_head = True

    def __init__(self, like):
        self.name, self.weights_hash = like.name, like.weights_hash
        self.num_frames, self.frame_px, self.max_tokens = like.num_frames, like.frame_px, like.max_tokens

    def caption(self, clips, **settings):
        from recaption.records import Caption

        return [Caption(text="something moves somewhere") for _ in clips]

    def score(self, clips, texts):
        return np.random.default_rng(len(texts)).normal(0.2, 0.02, (len(clips), len(texts)))


def test_a_captioner_that_cannot_tell_clips_apart_finds_no_problems(small_run):
    pairs, total = sample_pairs(small_run, "main", None)
    pairs = [dataclasses.replace(pair, clip_score=None) for pair in pairs]
    clips = {c.clip_id: c for n in small_run.list("clips/*.parquet") for c in from_table(small_run.read_table(n), Clip)}
    check = check_pairs("main", pairs, Blind(load_captioner("tiny")), clips, decode=DecodeLimits())
    assert total == len(pairs) == 11
    assert check.verdict == "the captioner cannot tell these clips apart"
    assert check.problems == []


def test_the_sample_is_deterministic_and_takes_changed_captions_first(small_run):
    few, _ = sample_pairs(small_run, "main", 4)
    again, _ = sample_pairs(small_run, "main", 4)
    every, _ = sample_pairs(small_run, "main", None)
    assert few == again
    assert {pair.clip_id for pair in few} < {pair.clip_id for pair in every}
    left_out = next(pair.clip_id for pair in every if pair not in few)
    assert left_out in {pair.clip_id for pair in sample_pairs(small_run, "main", 4, first={left_out})[0]}


def test_the_permutation_test_separates_matched_from_shuffled():
    random = np.random.default_rng(3)
    noise = random.normal(0, 0.05, (24, 24))
    loud_texts = noise + random.normal(0, 0.5, (1, 24))  # some texts score high with every clip
    assert permutation_p_value([loud_texts + 0.1 * np.eye(24)]) <= SIGNIFICANCE
    assert permutation_p_value([loud_texts + 0.1 * np.roll(np.eye(24), 1, axis=1)]) > SIGNIFICANCE
    passed = [permutation_p_value([random.normal(0, 1, (16, 16))], seed=i) <= SIGNIFICANCE for i in range(60)]
    assert sum(passed) <= 3  # expected: one in a hundred


def test_the_command_takes_a_number_none_or_all(small_run, capsys):
    assert parse_pairs("all") is None
    assert parse_pairs("0") == 0
    with pytest.raises(UsageError, match="--pairs 'some'"):
        parse_pairs("some")
    assert main(["verify", "--run", small_run.root, "--pairs", "-3"]) == 2
    capsys.readouterr()
    assert main(["verify", "--run", small_run.root, "--pairs", "0", "--json", "--no-progress"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == {}


def test_a_run_without_captions_verifies(small_run, small_recipe, tmp_path):
    copy = tmp_path / "prepared"
    for folder in ("videos", "clips", "previews", "fingerprints"):
        shutil.copytree(Path(small_run.root) / folder, copy / folder)
    for name in ("run.yaml", "inputs.parquet"):
        shutil.copyfile(Path(small_run.root) / name, copy / name)
    summary = verify_run(RunFolder(str(copy)), small_recipe)
    assert summary["ok"]
    assert summary["pairs"] == {}
