"""The end of a command: at most 20 lines, with the paths to open."""

import pytest

from jobs.commands import VERBS
from jobs.summary import ROWS, exit_code, print_summary

LEDGER = {
    "videos": {"total": 2000, "ok": 1900, "failed": 100},
    "clips": {"total": 5000, "kept": 4000, "dropped": {f"reason_{i}": i for i in range(12)}},
    "seconds": {"total": 9000.0, "kept": 8000.0, "dropped": 1000.0, "failed": 0.0},
    "failures": [{"uri": f"videos/{i}.mp4", "reason": "unreadable", "detail": ""} for i in range(100)],
}
STAGES = {
    "caption": {"captions": 4000, "matched_score": 0.8, "warnings": [f"warning {i}" for i in range(9)]},
    "shard": {"samples": 3900, "shards": 31},
    "plan": {"num_packs": 400, "fill": 0.99},
    "train": {"steps": 800, "loss": 0.4, "checkpoint": "/runs/a/train/main/checkpoints/step-000800"},
    "sample": {"contact_sheet": "/runs/a/samples/main-step-000800/contact_sheet.png"},
}


def test_every_command_has_a_table():
    assert set(ROWS) == {verb.split()[0] for verb in VERBS}


def test_the_worst_run_ends_in_20_lines_with_what_to_open(capsys):
    print_summary("run", {**LEDGER, "stages": STAGES, "report": "/runs/a/report/index.html"}, run="/runs/a")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 20
    text = "\n".join(lines)
    for path in ("report/index.html", "shards", "train/main/checkpoints/step-000800", "contact_sheet.png"):
        assert f"/runs/a/{path}" in text or f"/{path}" in text
    assert "1,900 of 2,000 read" in text
    assert "videos/0.mp4: unreadable" in text
    assert "97 more; all of them: /runs/a/videos, or --json" in text
    assert "WARNING: warning 0" in text
    assert "{" not in text


def test_rows_without_a_value_are_left_out(capsys):
    print_summary("run", {**LEDGER, "failures": [], "stages": {}, "report": "page"}, run="r")
    out = capsys.readouterr().out
    assert "training" not in out
    assert "failures" not in out


def test_long_paths_are_not_wrapped(capsys):
    path = "/very" * 60 + "/index.html"
    print_summary("report", {"report": path})
    assert path in capsys.readouterr().out


@pytest.mark.parametrize("count", [0, 1, 50])
def test_problems_are_listed_with_where_the_rest_is(count, capsys):
    problems = [{"kind": "tar_damaged", "where": f"shards/{i}.tar", "detail": "short"} for i in range(count)]
    print_summary("verify", {"ok": not count, "pairs": {}, "problems": problems}, run="r")
    out = capsys.readouterr().out
    assert ("problems" in out) == (count > 0)
    assert ("more; all of them: --json" in out) == (count > 3)
    assert ("nothing lost or damaged  yes" in out) == (count == 0)


def test_a_stage_with_clips_that_failed_ends_with_1():
    assert exit_code("shard", {"rejected": {"no_bucket": 2}}) == 0
    assert exit_code("shard", {"rejected": {"no_bucket": 2, "source_changed": 1}}) == 1
    assert exit_code("caption", {"bad": {"bad_caption": 3}}) == 0
    assert exit_code("run", {"stages": {"caption": {"bad": {"fetch_failed": 1}}}}) == 1
