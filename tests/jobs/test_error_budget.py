"""`prepare` on a loop instead of a cluster: what it does with inputs that fail."""

import pytest

from jobs import attempts
from jobs.attempts import Attempt, Record
from jobs.prepare import BUDGET_AFTER_INPUTS, PrepareWorker, prepare
from jobs.recipes import from_dict, quickstart, stage_hashes, to_dict
from recaption.errors import ErrorBudgetError
from recaption.run_folder import RunFolder
from recaption.scenes import SIMPLE, render


class Loop:
    """A cluster of this process alone."""

    def __init__(self):
        self.num_parts = 0

    def run_parts(self, worker, settings, parts, **_):
        self.num_parts = 0
        here = worker(**settings)
        for part in parts:
            self.num_parts += 1
            yield here(part)

    def throughput(self):
        return {}


def recipe(**settings):
    document = to_dict(quickstart())
    document["prepare"] |= settings
    return from_dict(document)


@pytest.fixture
def mostly_broken(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(BUDGET_AFTER_INPUTS + 30):
        (folder / f"{i:03d}.mp4").write_text("<html>not a video</html>")
    return folder


def test_a_run_over_its_error_budget_stops_early_and_keeps_what_is_finished(mostly_broken, tmp_path):
    cluster = Loop()
    out = str(tmp_path / "run")
    with pytest.raises(ErrorBudgetError, match=f"{BUDGET_AFTER_INPUTS} of {BUDGET_AFTER_INPUTS} inputs failed"):
        prepare([str(mostly_broken)], out, recipe(part_size=10, max_failed_share=0.5), cluster)
    assert cluster.num_parts == 5
    assert len(RunFolder(out).list("videos/part-*.parquet")) == 5
    summary = prepare([str(mostly_broken)], out, recipe(part_size=10), cluster)
    assert (summary["computed_parts"], summary["skipped_parts"]) == (3, 5)


def test_few_inputs_are_judged_together_at_the_end(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.mp4").write_text("<html>not a video</html>")
    cluster = Loop()
    with pytest.raises(ErrorBudgetError, match="4 of 4 inputs failed"):
        prepare([str(folder)], str(tmp_path / "run"), recipe(part_size=1, max_failed_share=0.1), cluster)
    assert cluster.num_parts == 4


def test_an_input_that_was_given_up_is_a_failed_row_among_good_ones(tmp_path):
    videos = [str(tmp_path / f"{name}.mp4") for name in "abc"]
    for seed, video in enumerate(videos):
        render(seed, num_frames=17, height_px=64, width_px=64, fps=8, **SIMPLE).write(video)
    record = Record(num_attempts=3, given_up={videos[1]: ["unreadable", "its worker process died 3 times on it"]})
    attempt = Attempt(record, lambda note: None, node="here", stuck_seconds=1000)
    worker = PrepareWorker(str(tmp_path / "run"), quickstart().prepare, stage_hashes(quickstart())["prepare"])
    attempts.start(attempt)
    try:
        summary = worker({"part": 0, "uris": videos, "inputs_hash": ""})
    finally:
        attempts.start(None)
        attempt.end()
    assert (summary["videos"], summary["failed"]) == (3, 1)
    rows = RunFolder(str(tmp_path / "run")).read_table("videos/part-00000.parquet").to_pylist()
    assert [row["uri"] for row in rows] == videos
    assert [row["reason"] for row in rows] == [None, "unreadable", None]
