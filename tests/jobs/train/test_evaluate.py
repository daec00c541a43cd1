"""`train dit --eval`: metrics of a checkpoint, their reproducibility, the report section and usage errors."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.recipe.run_inputs import write_recipe
from jobs.recipe.settings import TrainDit
from jobs.report.page import write_report
from jobs.train.train import evaluate_model, train_model
from recaption.errors import CheckpointMismatchError, UsageError
from recaption.run_folder import RunFolder
from train.compressors import registry as compressors
from train.engine.settings import TrainerSettings
from train.evaluation.metrics import EvaluationSettings
from train.generator.settings import DitSettings
from train.text import encoder as text_encoder


class InProcess:
    """A cluster that runs everything in this process."""

    address = None


@pytest.fixture(scope="module")
def recipe(small_recipe):
    return dataclasses.replace(
        small_recipe,
        train_dit=TrainDit(
            dit=DitSettings(width=32, depth=1, num_heads=2, patch=(1, 2, 2)),
            trainer=TrainerSettings(num_steps=1, device="cpu"),
            evaluation=EvaluationSettings(
                at_end=True, num_prompts=4, num_seeds=2, num_varied_prompts=2, num_real=8, num_loss_clips=2
            ),
        ),
        sample=dataclasses.replace(small_recipe.sample, num_steps=1, guidance=1.0),
    )


@pytest.fixture(scope="module")
def trained(small_run, recipe, tmp_path_factory):
    """A run with a model that was evaluated at the end of its training, and the summary of the training."""
    run = RunFolder(str(tmp_path_factory.mktemp("evaluated") / "run"))
    shutil.copytree(small_run.root, run.root)
    write_recipe(run, recipe)
    return run, train_model("dit", run.uri, "main", recipe, InProcess(), progress=False)


def read(run, name="evaluation.json"):
    return Path(run.root, "train", "main", name).read_text()


def test_every_measure_has_a_definition_and_a_count(trained, recipe):
    run, summary = trained
    found = json.loads(read(run))
    measures = found["measures"]
    assert summary["evaluation"] == {key: measure["value"] for key, measure in measures.items()}
    assert all(measure["definition"] for measure in measures.values())
    assert all(measure["num"] or measure["note"] for measure in measures.values())
    assert measures["prompt_following/colour"]["num"] == 4
    assert measures["prompt_following/colour"]["real"] > 0.5
    assert measures["contrastive/best_match"]["chance"] == 0.25
    assert {key for key in measures if key.startswith("flow_loss")} == {
        "flow_loss/17f-64x64-8fps",
        "flow_loss/17f-48x80-8fps",
    }
    assert len(found["prompts"]) == len(found["sample_captions"]) == 4
    assert set(found["prompts"]) <= set(run.read_table("index.parquet")["caption"].to_pylist())
    assert json.loads(read(run, "evaluations.jsonl"))["step"] == found["step"] == 1


def test_evaluating_twice_gives_the_same_file_and_replaces_the_line(trained, recipe):
    run, _ = trained
    before = read(run), read(run, "evaluations.jsonl")
    assert main(["train", "dit", "--run", run.uri, "--eval", "--no-progress"]) == 0
    assert (read(run), read(run, "evaluations.jsonl")) == before


def test_encoder_and_compressor_are_loaded_once_and_the_training_s_backend_does_not_matter(
    trained, recipe, monkeypatch
):
    run, _ = trained
    before = read(run)
    loads = []
    for module in (compressors, text_encoder):
        load = module.load
        monkeypatch.setattr(
            module, "load", lambda spec, load=load, **options: loads.append(spec) or load(spec, **options)
        )
    dit = dataclasses.replace(recipe.train_dit.dit, attention_backend="varlen")
    on_gpu = dataclasses.replace(recipe, train_dit=dataclasses.replace(recipe.train_dit, dit=dit))
    evaluate_model(run.uri, "main", on_gpu, InProcess(), progress=False)
    assert sorted(loads) == sorted([recipe.encode.compressor, dit.text_encoder])
    assert read(run) == before


def test_the_page_shows_the_numbers_and_the_samples(trained, recipe):
    run, _ = trained
    page = Path(write_report(run, recipe.filters, recipe=recipe)).read_text()
    section = page.split('<section id="evaluation">')[1].split("</section>")[0]
    measures = json.loads(read(run))["measures"]
    for measure in measures.values():
        assert measure["definition"].replace("'", "&#39;") in section
    assert f"{measures['flow_loss/17f-64x64-8fps']['value']:.4f}" in section
    assert "4 clips" in section
    assert "Frames of the samples of main" in section


def test_a_held_out_run_can_be_used(trained, recipe, small_run):
    run, _ = trained
    settings = dataclasses.replace(recipe.train_dit.evaluation, held_out=small_run.uri)
    held_out = dataclasses.replace(recipe, train_dit=dataclasses.replace(recipe.train_dit, evaluation=settings))
    evaluate_model(run.uri, "main", held_out, InProcess(), progress=False)
    assert "held-out clips" in json.loads(read(run))["measures"]["flow_loss/17f-64x64-8fps"]["definition"]


def test_wrong_use_is_one_sentence(trained, recipe, capsys):
    run, _ = trained
    for arguments, sentence in (
        (["captioner", "--eval"], "--eval"),
        (["dit", "--eval", "--steps", "5"], "--steps has no effect"),
        (["dit", "--eval", "--name", "none"], "is not a folder"),
    ):
        assert main(["train", *arguments, "--run", run.uri, "--no-progress"]) == 2
        assert sentence in capsys.readouterr().err
    other = dataclasses.replace(recipe.train_dit, dit=dataclasses.replace(recipe.train_dit.dit, loss_norm="token"))
    with pytest.raises(CheckpointMismatchError, match="loss_norm = sample, the recipe has token"):
        evaluate_model(run.uri, "main", dataclasses.replace(recipe, train_dit=other), InProcess(), progress=False)
    settings = dataclasses.replace(recipe.train_dit.evaluation, held_out=run.uri + "/nothing")
    held_out = dataclasses.replace(recipe, train_dit=dataclasses.replace(recipe.train_dit, evaluation=settings))
    with pytest.raises(UsageError, match="not a run folder"):
        evaluate_model(run.uri, "main", held_out, InProcess(), progress=False)
