"""Verdicts of people: from any table that pandas writes, above thresholds, below duplicates; the last one wins."""

import dataclasses
import json

import pandas as pd
import pytest

from jobs.prepare.verdicts import import_verdicts
from jobs.report.page import write_report
from jobs.report.what_if import what_if
from jobs.shard import shard
from jobs.verify.verify import verify_run
from recaption import open_run
from recaption.errors import UsageError
from recaption.ledger.ledger import build_ledger

WRITERS = {
    "csv": lambda table, path: table.to_csv(path, index=False),
    "csv with index": lambda table, path: table.to_csv(path),
    "csv by clip": lambda table, path: table.set_index("clip_id").to_csv(path),
    "tsv": lambda table, path: table.to_csv(path, sep="\t", index=False),
    "parquet": lambda table, path: table.to_parquet(path),
    "parquet by clip": lambda table, path: table.set_index("clip_id").to_parquet(path),
    "jsonl": lambda table, path: table.to_json(path, orient="records", lines=True, date_format="epoch", date_unit="ms"),
    "json": lambda table, path: table.to_json(path, orient="records", date_format="iso"),
}


def decide(run, recipe, tmp_path, *rows, kind="csv"):
    """Import (clip id, verdict, reason) rows as a file of this kind."""
    table = pd.DataFrame(rows, columns=["clip_id", "verdict", "reason"])
    table["by"], table["time"], table["my own note"] = "ana", pd.Timestamp("2026-05-03 10:11:12", tz="UTC"), "x"
    path = str(tmp_path / f"decided.{kind.partition(' ')[0]}")
    WRITERS[kind](table, path)
    return import_verdicts(run, recipe, path)


def states(run):
    clips = open_run(run.uri).clips().drop_duplicates("clip_id")
    return dict(zip(clips.clip_id, clips.reason.where(clips.reason.notna(), clips.state)))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_table_that_pandas_writes_is_read(kind, run_copy, small_recipe, tmp_path):
    first, second = list(states(run_copy))[:2]
    summary = decide(run_copy, small_recipe, tmp_path, (first, "reject", "logo"), (second, "keep", ""), kind=kind)
    assert summary["verdicts"] == {"keep": 1, "reject": 1}
    assert summary["new_verdicts"] == 2
    assert summary["clips"]["dropped"]["rejected"] >= 1
    verdicts = open_run(run_copy.uri).verdicts().set_index("clip_id")
    assert verdicts.loc[first, ["verdict", "reason", "by"]].tolist() == ["reject", "logo", "ana"]
    assert (verdicts.time == pd.Timestamp("2026-05-03 10:11:12", tz="UTC")).all()
    assert verdicts.loc[second, "reason"] == ""


def test_the_last_verdict_wins_and_none_takes_it_back(run_copy, small_recipe, tmp_path):
    clip_id = list(states(run_copy))[2]
    for verdict, expected in (
        ("reject", "rejected"),
        ("keep", "in_shard"),
        ("reject", "rejected"),
        ("none", "in_shard"),
    ):
        assert decide(run_copy, small_recipe, tmp_path, (clip_id, verdict, ""))["new_verdicts"] == 1
        assert states(run_copy)[clip_id] == expected
    assert len(run_copy.list("verdicts/part-*.parquet")) == 4
    decide(run_copy, small_recipe, tmp_path, (clip_id, "keep", ""), (clip_id, "reject", "twice in one file"))
    assert states(run_copy)[clip_id] == "rejected"
    assert decide(run_copy, small_recipe, tmp_path, (clip_id, "reject", "twice in one file"))["new_verdicts"] == 0
    assert len(run_copy.list("verdicts/part-*.parquet")) == 5


def test_keep_stands_above_thresholds_and_below_duplicates(run_copy, small_recipe, tmp_path):
    clips = open_run(run_copy.uri).clips()
    strict = dataclasses.replace(small_recipe, filters=dataclasses.replace(small_recipe.filters, min_motion=1e9))
    copy = clips[clips.reason == "duplicate"].clip_id.iloc[0]
    other = clips[clips.clip_id != copy].clip_id.iloc[0]
    decide(run_copy, small_recipe, tmp_path, (other, "keep", ""), (copy, "keep", ""))
    ledger = build_ledger(run_copy, strict.filters)
    kept = [clip for clip in ledger.clips if clip.state != "dropped"]
    assert sorted(clip.clip_id for clip in kept) == sorted([other, copy])
    assert ledger.summary()["clips"]["dropped"] == {"low_motion": 9, "duplicate": 1}
    summary = what_if(run_copy, small_recipe, ["motion=1e9"])
    assert summary["kept"]["after"]["clips"] == 2
    assert summary["curves"]["min_motion"]["kept_fraction"][-1] == pytest.approx(2 / len(clips))


def test_verify_asks_for_new_shards_and_is_content_with_them(run_copy, small_recipe, tmp_path, in_process):
    clip_id = next(clip for clip, state in states(run_copy).items() if state == "in_shard")
    decide(run_copy, small_recipe, tmp_path, (clip_id, "reject", ""))
    problems = verify_run(run_copy, small_recipe, num_pairs=0)["problems"]
    assert [(p["kind"], "run `recaption shard`" in p["detail"]) for p in problems] == [("dropped_clip_in_shard", True)]
    shard(run_copy, small_recipe, "main", in_process)
    assert clip_id not in run_copy.read_table("index.parquet")["clip_id"].to_pylist()
    kinds = {p["kind"] for p in verify_run(run_copy, small_recipe, num_pairs=0)["problems"]}
    assert "dropped_clip_in_shard" not in kinds
    write_report(run_copy, small_recipe.filters, recipe=small_recipe)
    assert "rejected" in run_copy.read_bytes("report/index.html").decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip,verdict\nx,keep\n", r"no column 'clip_id' \(columns: clip, verdict\)"),
        ("clip_id,verdict\n{0},maybe\n", "row 1: verdict 'maybe' is not one of keep, reject, none"),
        ("clip_id,verdict\n{0},keep\nelsewhere,keep\n", "1 of 2 clips are not in .*'elsewhere'"),
        ("clip_id,verdict,time\n{0},keep,soon\n", "row 1: time 'soon' is not a time"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_and_changes_nothing(text, message, run_copy, small_recipe, tmp_path):
    file = tmp_path / "decided.csv"
    file.write_text(text.format(next(iter(states(run_copy)))))
    with pytest.raises(UsageError, match=message):
        import_verdicts(run_copy, small_recipe, str(file))
    assert run_copy.list("verdicts/*") == []


def test_the_command_uses_the_recipe_of_the_run(run_copy, tmp_path, command):
    clip_id = next(iter(states(run_copy)))
    file = tmp_path / "decided.jsonl"
    file.write_text(json.dumps({"clip_id": clip_id, "verdict": "reject"}) + "\n")
    code, summary, _ = command("prepare", "--out", run_copy.uri, "--verdicts", str(file))
    assert (code, summary["verdicts"]) == (0, {"reject": 1})
    code, _, error = command("prepare", "--out", run_copy.uri, "--verdicts", str(file), "--videos", "a.mp4")
    assert (code, "--verdicts and --videos exclude each other" in error) == (2, True)
    code, _, error = command("prepare", "--out", str(tmp_path / "no run"), "--verdicts", str(file))
    assert (code, "is not a run folder" in error) == (2, True)
