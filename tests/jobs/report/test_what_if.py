"""`--what-if`: predicted effect of a threshold against its real effect; it changes no other file."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from jobs.cli import main
from jobs.recipe.settings import grid_of
from jobs.report.thresholds import clip_tokens
from jobs.report.what_if import what_if
from packing.buckets import assign_bucket
from recaption.errors import UsageError
from recaption.ledger.ledger import build_ledger, read_clips


def tree(run):
    files = [path for path in Path(run.root).rglob("*") if path.is_file()]
    return {path.relative_to(run.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def middle_of(run, score):
    """A threshold that divides the clips."""
    return float(np.median(read_clips(run)[score].to_numpy())) + 1e-9


def test_before_matches_the_shards_and_after_matches_the_filters(run_copy, small_recipe):
    motion = middle_of(run_copy, "motion")
    summary = what_if(run_copy, small_recipe, [f"motion={motion!r}"])
    index = run_copy.read_table("index.parquet")
    assert summary["kept"]["before"]["clips"] == index.num_rows
    assert summary["kept"]["before"]["tokens"] == sum(index["num_latent_tokens"].to_pylist())
    moved = dataclasses.replace(small_recipe.filters, min_motion=motion)
    actual = build_ledger(run_copy, moved).summary()
    assert summary["kept"]["after"]["clips"] == actual["clips"]["kept"] < index.num_rows
    assert summary["kept"]["after"]["seconds"] == pytest.approx(actual["seconds"]["kept"])
    for key in ("clips", "seconds", "tokens"):
        sums = {state: summary["kept"][state][key] for state in ("before", "after", "lost", "gained")}
        assert sums["before"] - sums["lost"] + sums["gained"] == pytest.approx(sums["after"])
    last = summary["waterfall"][-1]
    assert last["after"]["clips"] == actual["clips"]["kept"]
    neighbours = summary["thresholds"]["min_motion"]
    assert all(row["value"] >= motion for row in neighbours["just_kept"])
    assert all(row["value"] < motion for row in neighbours["just_dropped"])
    assert len(neighbours["just_kept"]) == min(6, actual["clips"]["kept"])
    assert len(neighbours["just_dropped"]) == min(6, index.num_rows - actual["clips"]["kept"])


def test_clips_without_a_bucket_are_not_counted(run_copy, small_recipe):
    table = dataclasses.replace(small_recipe.shard.buckets, num_frames=(33,))  # longer than any clip
    longer = dataclasses.replace(small_recipe, shard=dataclasses.replace(small_recipe.shard, buckets=table))
    summary = what_if(run_copy, longer, ["motion=0.02"])
    assert summary["kept"]["before"] == summary["kept"]["after"] == {"clips": 0, "seconds": 0.0, "tokens": 0}
    last = summary["waterfall"][-1]
    assert (last["reason"], last["before"]["clips"]) == ("no_bucket", 0)
    assert summary["waterfall"][-2]["before"]["clips"] == 11


def test_only_the_page_is_written(run_copy, small_recipe, capsys):
    before = tree(run_copy)
    code = main(["prepare", "--out", run_copy.root, "--what-if", "motion=0.02,text_area=0.1", "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert code == 0
    after = tree(run_copy)
    assert after.keys() - before.keys() == {"report/what-if.html"}
    assert all(after[name] == digest for name, digest in before.items())
    assert summary["changes"] == {
        "min_motion": {"before": None, "after": 0.02},
        "max_text_area": {"before": 0.3, "after": 0.1},
    }
    assert summary["page"] == f"{run_copy.root}/report/what-if.html"
    assert summary["not_computed"] == ["text_area_ocr", "static_text_ocr", "nsfw", "aesthetic"]


def test_the_page_is_self_contained(run_copy, small_recipe):
    page = Path(what_if(run_copy, small_recipe, [f"motion={middle_of(run_copy, 'motion')!r}"])["page"])
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") >= 8
    assert "<script" not in text
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', text)) == {"data:"}
    assert "just dropped" in text


def test_switching_a_filter_off_gains_its_dropped_clips(run_copy, small_recipe):
    dark = middle_of(run_copy, "luma")
    strict = dataclasses.replace(small_recipe, filters=dataclasses.replace(small_recipe.filters, min_luma=dark))
    summary = what_if(run_copy, strict, ["min_luma=off"])
    assert summary["kept"]["gained"]["clips"] > 0
    assert summary["kept"]["lost"]["clips"] == 0
    assert summary["thresholds"]["min_luma"]["at"] == dark
    assert summary["thresholds"]["min_luma"]["just_dropped"]


def test_the_terminal_shows_a_table(run_copy, capsys):
    assert main(["prepare", "--out", run_copy.root, "--what-if", "seconds=9"]) == 2
    assert "min_seconds or max_seconds" in capsys.readouterr().err
    assert main(["prepare", "--out", run_copy.root, "--what-if", "min_seconds=9"]) == 0
    out = capsys.readouterr().out
    assert "min_seconds 1 -> 9" in out
    assert re.search(r"too_short +min_seconds = 9 +12 -> 0 ", out)


@pytest.mark.parametrize(
    ("change", "message"),
    [("nsfw=0.5", "nsfw: not computed"), ("max_nsfw=0.5", "not computed"), ("fog=1", "unknown score")],
)
def test_a_threshold_on_a_missing_score_is_an_error(small_run, small_recipe, change, message):
    with pytest.raises(UsageError, match=message):
        what_if(small_run, small_recipe, [change])


def test_wrong_use_is_one_sentence(tmp_path, capsys):
    assert main(["prepare", "--out", str(tmp_path), "--what-if", "motion=1"]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert main(["prepare", "--out", str(tmp_path)]) == 2
    assert "--videos is missing" in capsys.readouterr().err


def test_tokens_of_each_clip_are_those_of_its_bucket(small_run, small_recipe):
    clips = read_clips(small_run)
    rows = clips.to_pylist() + clips.to_pylist()
    for i, row in enumerate(rows):  # lengths and sizes of every kind, some without a bucket
        row["end_seconds"] = row["start_seconds"] + 0.4 + 0.25 * i
        row["width_px"], row["height_px"] = ((64, 64), (96, 64), (64, 128), (24, 24))[i % 4]
    clips = type(clips).from_pylist(rows, schema=clips.schema)
    table, grid = small_recipe.shard.buckets, grid_of(small_recipe)
    expected = []
    for row in rows:
        bucket = assign_bucket(row["end_seconds"] - row["start_seconds"], row["width_px"], row["height_px"], table)
        size = (bucket.num_frames, bucket.height_px, bucket.width_px) if bucket else None
        expected.append(grid.num_tokens(*size) if size else 0)
    assert clip_tokens(clips, table, grid).tolist() == expected
    assert 0 in expected
