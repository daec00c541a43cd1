"""The example package of plug-ins, installed as its pyproject.toml says: scores, filters, what-if, report, captions."""

import json
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from jobs.caption.caption import caption
from jobs.export.export import export
from jobs.export.settings import ExportSettings
from jobs.prepare.prepare import prepare
from jobs.recipe.flags import changed
from jobs.recipe.presets import quickstart
from jobs.report.page import write_report
from jobs.report.what_if import what_if
from jobs.verify.repair import repair_run
from jobs.verify.verify import verify_run
from recaption import open_run
from recaption.captioners import registry
from recaption.errors import UsageError
from recaption.ledger.ledger import build_ledger
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins"


class InProcess:
    progress = False

    def __init__(self):
        self.computed = 0

    def run_parts(self, worker, settings, parts, **_):
        self.computed += len(parts)
        yield from map(worker(**settings), parts) if parts else ()

    def throughput(self):
        return {}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The example as pip would install it: its module, and the entry points of its pyproject.toml."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(EXAMPLE / "brightness_plugin.py", site)
    groups = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    info = site / "recaption_brightness-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: recaption-brightness\nVersion: 0.1.0\n")
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in names.items()) for group, names in groups.items()]
    (info / "entry_points.txt").write_text("\n\n".join(lines) + "\n")
    sys.path.insert(0, str(site))
    registry.plugins.cache_clear()
    yield site
    sys.path.remove(str(site))
    registry.plugins.cache_clear()
    sys.modules.pop("brightness_plugin", None)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(4):
        render(6100 + seed, num_frames=13, height_px=64, width_px=64, fps=8, **SIMPLE).write(folder / f"{seed}.mp4")
    return str(folder)


@pytest.fixture
def recipe():
    return changed(quickstart(), "prepare", part_size=2)


def with_plugin(recipe, **filters):
    return changed(changed(recipe, "prepare.scores", plugins=("brightness",)), "filters", **filters)


@pytest.fixture
def run(installed, videos, recipe, tmp_path):
    prepare([videos], str(tmp_path / "run"), with_plugin(recipe), InProcess())
    return RunFolder(str(tmp_path / "run"))


def test_its_score_is_like_a_built_in_one(run, recipe):
    scores = open_run(run.uri).scores()
    assert scores.brightness.between(0, 1).all()
    assert np.allclose(scores.brightness, scores.luma, atol=0.1)
    middle = float(scores.brightness.median())
    own = with_plugin(recipe, min_plugin_scores=(f"brightness={middle!r}",))

    dropped = build_ledger(run, own.filters).summary()["clips"]["dropped"]
    assert dropped == {"plugin": int((scores.brightness < middle).sum())}
    assert (
        len(open_run(run.uri).with_filters(min_brightness=middle).clips().query("reason == 'plugin'"))
        == dropped["plugin"]
    )

    summary = what_if(run, with_plugin(recipe), [f"min_brightness={middle!r}"])
    assert summary["kept"]["lost"]["clips"] == dropped["plugin"]
    assert [row["setting"] for row in summary["waterfall"] if row["reason"] == "plugin"] == [
        f"min_brightness = {middle:.3g}"
    ]
    assert all(row["value"] >= middle for row in summary["thresholds"]["min_brightness"]["just_kept"])
    off = what_if(run, own, ["min_brightness=off"])
    assert off["kept"]["gained"]["clips"] == dropped["plugin"]

    write_report(run, own.filters, recipe=own)
    page = run.read_bytes("report/index.html").decode()
    assert f"min_brightness = {middle:.3g}"[:20] in page
    assert "Contrast" in page
    assert verify_run(run, own, num_pairs=0)["problems"] == []


def test_a_scorer_that_is_added_later_scores_what_is_there(installed, videos, recipe, tmp_path):
    out, cluster = str(tmp_path / "run"), InProcess()
    prepare([videos], out, recipe, cluster)
    before = open_run(out).clips()
    prepare([videos], out, with_plugin(recipe), cluster)
    assert cluster.computed == 4
    after = open_run(out).clips()
    assert after.brightness.notna().all()
    assert after[before.columns].equals(before)
    prepare([videos], out, with_plugin(recipe), cluster)
    prepare([videos], out, recipe, cluster)
    assert cluster.computed == 4


def test_another_version_scores_again(run, videos, recipe, monkeypatch):
    module = sys.modules["brightness_plugin"]
    monkeypatch.setattr(module.BrightnessScorer, "version", "2")
    monkeypatch.setattr(module.BrightnessScorer, "score", lambda self, frames: {"brightness": 7.0})
    cluster = InProcess()
    prepare([videos], run.uri, with_plugin(recipe), cluster)
    assert cluster.computed == 2
    scores = open_run(run.uri).scores()
    assert (scores.brightness == 7).all()
    assert scores.contrast.isna().all()


def test_a_scorer_that_fails_costs_scores_and_no_video(run, videos, recipe, monkeypatch):
    module = sys.modules["brightness_plugin"]

    def fail(self, frames):
        raise ZeroDivisionError("no light")

    monkeypatch.setattr(module.BrightnessScorer, "version", "broken")
    monkeypatch.setattr(module.BrightnessScorer, "score", fail)
    summary = prepare([videos], run.uri, with_plugin(recipe), InProcess())
    assert summary["clips"]["kept"] == 4
    assert any("ZeroDivisionError: no light" in warning for warning in summary["warnings"])
    assert open_run(run.uri).scores().brightness.isna().all()


def test_damaged_scores_are_found_and_made_again(run, recipe):
    before = open_run(run.uri).scores()
    run.write_bytes("scores/brightness/part-00000.parquet", b"damaged")
    problems = verify_run(run, with_plugin(recipe), num_pairs=0)["problems"]
    assert [(p["kind"], p["where"]) for p in problems] == [("part_unreadable", "scores/brightness/part-00000.parquet")]
    assert repair_run(run, with_plugin(recipe), InProcess(), num_pairs=0)["problems"] == []
    assert open_run(run.uri).scores().equals(before)


def test_its_captioner_writes_a_caption_set(run, recipe):
    words = changed(with_plugin(recipe), "caption", captioner="brightness:dim,glaring")
    caption(run, words, "own", InProcess())
    captions = open_run(run.uri).captions("own")
    assert captions.text.str.fullmatch("A clip that is (dim|glaring) overall.").all()
    assert set(captions.captioner) == {"brightness@1"}


def test_its_score_goes_out_with_the_clips(run, recipe, tmp_path):
    words = changed(with_plugin(recipe), "caption", captioner="brightness:dim,glaring")
    caption(run, words, "own", InProcess())
    export(run, with_plugin(recipe), ExportSettings(to="hf"), str(tmp_path / "out"), InProcess())
    lines = (tmp_path / "out/train/metadata.jsonl").read_text().splitlines()
    scores = open_run(run.uri).scores().set_index("clip_id")
    found = {row["clip_id"]: row["scores"]["brightness"] for row in map(json.loads, lines)}
    assert found == scores.brightness.to_dict()


def test_what_is_not_installed_is_one_sentence(run, videos, recipe, tmp_path):
    other = changed(recipe, "prepare.scores", plugins=("brightnes",))
    with pytest.raises(UsageError, match=r"no scorer plug-in 'brightnes' is installed \(installed: brightness;"):
        prepare([videos], str(tmp_path / "other"), other, InProcess())
    with pytest.raises(UsageError, match=r"available: .* \| brightness$"):
        registry.check_spec("brightnes:a")
    typo = with_plugin(recipe, min_plugin_scores=("brightnes=1",))
    with pytest.raises(
        UsageError, match=r"names 'brightnes', which no plug-in computed here \(computed: brightness, contrast"
    ):
        prepare([videos], run.uri, typo, InProcess())
    with pytest.raises(UsageError, match="it takes SCORE=NUMBER"):
        with_plugin(recipe, min_plugin_scores=("brightness>1",))
