"""An experiment from scenes to the page, killed in between; verdicts of its results; declared experiments."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from packing.buckets import Bucket
from packing.grid import Grid
from recaption.errors import FolderInUseError, UsageError
from recaption.folder_lock import FolderLock
from recaption.run_folder import RunFolder
from recaption.scenes.captions import fields_in
from recaption.scenes.splits import HELD_OUT_PAIRS
from tests.evidence import page
from tests.evidence.experiment import RECIPE_DIT, Arm, Claim, Experiment, experiment_names, load_experiment
from tests.evidence.readings import ClipLoss, PromptFollowing, Values
from tests.evidence.results import Results
from tests.evidence.run import run_experiment
from tests.evidence.training import ArmRun
from tests.evidence.world import World
from train.compressors import registry as compressors
from train.engine.metrics import read_lines

SMALL = {"width": 16, "depth": 1, "num_heads": 2}
LOGGED = {"validate_every": 1, "checkpoint_every": 1, "log_every": 1, "warmup_steps": 0, "precision": "fp32"}


def seconds_of_arm(run: ArmRun) -> list[float]:
    return [float(len(run.arm.name)), 2.0]


def micro(**changes) -> Experiment:
    arms = (Arm("plain", dit=SMALL, trainer=LOGGED), Arm("further", dit=SMALL, trainer=LOGGED, start_from="plain"))
    fields = {
        "name": "micro",
        "question": "Does the harness work?",
        "source": "its own test",
        "arms": arms,
        "claims": (
            Claim("a longer training follows more prompts", "further", "plain"),
            Claim("a longer training has a lower loss at a size held out", "further", "plain", "held_out_size_loss"),
            Claim("and in its curve", "further", "plain", "loss_at_equal_steps"),
        ),
        "readings": (
            PromptFollowing(num_steps=1),
            ClipLoss(num_clips=2),
            Values("seconds", seconds_of_arm),
        ),
        "world": World(
            sizes=(Bucket(5, 32, 32, 8),),
            held_out_sizes=(Bucket(5, 32, 64, 8),),
            num_training=96,
            num_held_out=8,
            num_prompts=4,
        ),
        "steps": 2,
        "seeds": (0, 1),
        "is_micro": True,
    }
    return Experiment(**{**fields, **changes})


class KilledError(Exception):
    """In place of a kill."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A micro-experiment that was killed in the second training of the first seed, then run again."""
    out = tmp_path_factory.mktemp("evidence")
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "seed 0, further: step 2" in line and not any("killed" in line for line in lines):
            lines.append("killed")
            raise KilledError

    with pytest.raises(KilledError):
        run_experiment(micro(), out=out / "state", results=out / "results", say=say)
    run_experiment(micro(), out=out / "state", results=out / "results", say=say)
    return out, lines


def test_an_experiment_killed_in_a_training_goes_on_from_its_checkpoint_and_ends_with_all_arms(finished):
    out, lines = finished
    steps = [line.split(": ")[1].split(",")[0] for line in lines if "seed 0, further: step" in line]
    assert steps == ["step 1 of 2", "step 2 of 2", "step 2 of 2"], "the first step is not trained twice"
    turns = [line.split(": ")[0] for line in lines if line.endswith("reading")]
    assert turns == [f"micro, seed {seed}, {arm}" for seed in (0, 1) for arm in ("plain", "further")]
    results = Results.load(out / "results" / "micro.json")
    assert {arm: list(seeds) for arm, seeds in results.runs.items()} == {"plain": ["0", "1"], "further": ["0", "1"]}


def test_results_have_bits_of_each_prompt_costs_and_curves_with_the_cost_of_what_an_arm_started_from(finished):
    out, _ = finished
    results = Results.load(out / "results" / "micro.json")
    run, start = results.runs["further"]["0"], results.runs["plain"]["0"]
    assert len(run["readings"]["follows"]["bits"]) == 4
    assert set(run["readings"]["follows"]["bits"]) <= {"0", "1"}
    assert run["readings"]["seconds"]["values"] == [7, 2]
    assert len(run["readings"]["held_out_size_loss"]["values"]) == 2
    assert run["curve"]["step"] == [1, 2]
    assert run["curve"]["tokens"] == [768 // 2, 768] or run["curve"]["tokens"][1] == 2 * run["curve"]["tokens"][0]
    assert run["curve"]["cpu_seconds"][1] > run["curve"]["cpu_seconds"][0] > 0
    own = run["phases_cpu_seconds"]["training"] / 60
    assert run["cpu_minutes"] == pytest.approx(own + start["cpu_minutes"], abs=0.01)


def test_cpu_seconds_of_a_killed_training_are_those_of_the_steps_that_were_kept(finished):
    out, _ = finished
    state = out / "state" / "micro" / "seed-0" / "further"
    lines = [line for line in read_lines(str(state / "train" / "metrics.jsonl")) if "val/cpu_seconds" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["val/cpu_seconds"] < lines[1]["val/cpu_seconds"]


def test_a_micro_experiment_says_no_verdict_and_stays_out_of_the_page(finished):
    out, _ = finished
    results = Results.load(out / "results" / "micro.json")
    assert {judged.verdict for judged in results.judged_claims()} == {"unfinished: 2 of 3 seeds"}
    results.data["is_micro"] = False
    text = page._section(results, out / "results")
    assert "![micro: curves and readings]" in text
    assert (out / "results" / "micro-samples.png").stat().st_size > 1000
    assert "## micro" not in page.page_text(out / "results")


def test_state_of_other_settings_is_refused_and_a_finished_experiment_trains_nothing(finished):
    out, _ = finished
    again: list[str] = []
    run_experiment(micro(), out=out / "state", results=out / "results", say=again.append)
    assert again == []
    with pytest.raises(UsageError, match="with other settings: remove the folder"):
        run_experiment(micro(steps=3), out=out / "state", results=out / "results", say=again.append)


def test_two_processes_do_not_train_one_arm_at_once(finished, tmp_path):
    out, _ = finished
    folder = tmp_path / "micro" / "seed-0" / "plain"
    (tmp_path / "worlds").symlink_to(out / "state" / "worlds")
    with FolderLock(RunFolder(str(folder)), "another run"), pytest.raises(FolderInUseError, match="another run"):
        run_experiment(micro(), out=tmp_path, results=tmp_path, say=lambda line: None)


def test_arms_of_unequal_size_or_missing_features_are_named(tmp_path, finished):
    out, _ = finished
    wide = Arm("wide", dit={**SMALL, "width": 64}, trainer=LOGGED)
    unequal = micro(arms=(Arm("plain", dit=SMALL, trainer=LOGGED), wide), claims=(), equal_parameters=0.1)
    with pytest.raises(UsageError, match="differ by more than 10% in their number of weights"):
        run_experiment(unequal, out=out / "state", results=tmp_path, say=lambda line: None)
    waiting = micro(
        arms=(Arm("new", dit={"backbone": "nonesuch"}), Arm("next", start_from="new"), Arm("odd", dit={"nonesuch": 1})),
        claims=(),
    )
    assert waiting.missing() == {
        "new": "the backbone nonesuch",
        "next": "the backbone nonesuch",
        "odd": "the setting nonesuch of DitSettings",
    }
    with pytest.raises(UsageError, match="waits for the backbone nonesuch"):
        run_experiment(waiting, out=tmp_path, results=tmp_path, say=lambda line: None)


def test_an_arm_of_equal_cost_gets_the_steps_that_its_minutes_take(tmp_path, finished):
    out, _ = finished
    experiment = micro(arms=(Arm("timed", dit=SMALL, trainer=LOGGED, cpu_minutes=0.01),), claims=())
    run = ArmRun(experiment, experiment.arms[0], 0, experiment.world.scenes(out / "state" / "worlds"), tmp_path, {})
    steps = run.num_steps()
    timed = json.loads((tmp_path / "timed.json").read_text())
    assert steps == round(0.6 / timed["seconds_per_step"]) > 1
    assert run.num_steps() == steps


def test_prompts_are_different_ones_about_triples_that_are_not_trained_on(tmp_path):
    world = World(num_training=60, num_held_out=1, num_prompts=20)
    scenes = world.scenes(tmp_path)
    assert len(set(scenes.prompts())) == 20
    asked, trained = ([fields_in(text) for text in texts] for texts in (scenes.prompts(), scenes.training().captions))
    assert not {(f.main_object, f.colour, f.background) for f in asked} & {
        (f.main_object, f.colour, f.background) for f in trained
    }
    assert not {(f.main_object, f.colour) for f in asked + trained} & set(HELD_OUT_PAIRS)


@pytest.mark.parametrize("name", experiment_names())
def test_declared_arms_have_settings_that_fit_their_world(name):
    experiment = load_experiment(name)
    assert experiment.name == name
    for arm in [arm for arm in experiment.runnable() if not arm.checkpoint_of]:
        compressor = compressors.load(arm.compressor or experiment.world.compressor)
        patch = {**RECIPE_DIT, **arm.dit}["patch"]
        grid = Grid(frame_stride=compressor.frame_stride, spatial_stride=compressor.spatial_stride, patch=patch)
        for size in (*experiment.world.sizes, *experiment.world.held_out_sizes):
            assert grid.num_tokens(size.num_frames, size.height_px, size.width_px) > 0
    assert {claim.better for claim in experiment.claims} <= {arm.name for arm in experiment.arms}


# --- verdicts of results that were made up ---------------------------------------------------------------------------


def made_up(rates, *, prompts=300, seeds=3, minutes=15.0) -> Results:
    rng = np.random.default_rng(0)
    hard = 0.2 * rng.standard_normal(prompts)
    runs = {}
    for arm, rate in rates.items():
        runs[arm] = {}
        for seed in range(seeds):
            bits = "".join(str(int(x)) for x in rng.random(prompts) < rate + hard)
            follows = {"unit": "prompts", "higher_is_better": True, "bits": bits}
            loss = {"unit": "seeds", "higher_is_better": False, "values": [1 - rate + 0.001 * seed]}
            slowness = 1 if arm == "a" else 2
            curve = {"step": [1, 10], "cpu_seconds": [slowness, 10 * slowness], "loss": [1.0, 0.5]}
            runs[arm][str(seed)] = {
                "cpu_minutes": minutes,
                "curve": curve,
                "readings": {"follows": follows, "loss": loss},
            }
    claims = [
        dataclasses.asdict(Claim("a is better", "a", "b")),
        dataclasses.asdict(Claim("a is better", "a", "b", "loss")),
    ]
    return Results(
        {"is_micro": False, "claims": claims, "waiting": {}, "arms": {arm: {} for arm in rates}, "runs": runs}
    )


@pytest.mark.parametrize(
    ("rates", "changes", "expected"),
    [
        ({"a": 0.7, "b": 0.5}, {}, "holds"),
        ({"a": 0.5, "b": 0.7}, {}, "does not hold"),
        ({"a": 0.6, "b": 0.6}, {}, "cannot be told"),
        ({"a": 0.4, "b": 0.2}, {}, "does not count: the best arm follows"),
        ({"a": 0.7, "b": 0.5}, {"prompts": 100}, "does not count: 100 prompts"),
        ({"a": 0.7, "b": 0.5}, {"minutes": 9.0}, "does not count: an arm has 9.0 CPU-minutes"),
        ({"a": 0.7, "b": 0.5}, {"seeds": 2}, "unfinished: 2 of 3 seeds"),
    ],
)
def test_a_comparison_counts_only_by_the_rules(rates, changes, expected):
    judged = made_up(rates, **changes).judged_claims()
    assert all(one.verdict.startswith(expected) for one in judged), [one.verdict for one in judged]


def test_a_lower_loss_is_better_and_loss_at_equal_cpu_is_read_where_the_faster_arm_ended():
    results = made_up({"a": 0.7, "b": 0.6})
    by_loss = results.judged_claims()[1]
    assert by_loss.difference is not None
    assert by_loss.difference.mean == pytest.approx(0.1)
    at_cpu = results.judge(Claim("", "a", "b", "loss_at_equal_cpu"))
    assert at_cpu.values == pytest.approx((0.5, 1.0 - 0.5 * 4 / 9)), "b takes 2 s a step: 5 of its 10 steps"
    assert results.judge(Claim("", "a", "b", "loss_at_equal_steps")).difference.mean == 0


def test_the_page_agrees_with_the_results():
    assert page.PAGE.read_text(encoding="utf-8") == page.page_text(), "python -m tests.evidence --page"
