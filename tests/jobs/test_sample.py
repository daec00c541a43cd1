"""What `sample` does with prompts; the sampler itself is stood in for."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import train.checkpoint
import train.distributed
import train.sampler
from jobs.recipes import SampleSettings, quickstart
from jobs.report import write_report
from jobs.sample import sample_run, sample_videos
from recaption.captions import words_in
from recaption.scenes import render


@pytest.fixture
def sampled(monkeypatch):
    """The texts that reached the model."""
    texts = []

    class Sampler:
        fps = 8

        @classmethod
        def from_checkpoint(cls, path, device):
            return cls()

        def size(self, *_):
            return SimpleNamespace(num_frames=9, height_px=32, width_px=32)

        def sample(self, prompts, **_):
            texts.extend(prompts)
            return [render(7, num_frames=9, height_px=32, width_px=32).frames_THWC for _ in prompts]

    monkeypatch.setattr(train.sampler, "Sampler", Sampler)
    monkeypatch.setattr(train.checkpoint, "find", lambda path: SimpleNamespace(path=path))
    return texts


def checkpoint_in(run):
    return str(Path(run.root) / "train" / "main" / "checkpoints" / "step-000010")


def test_a_short_prompt_is_expanded_in_the_style_of_the_runs_captions_shown_and_stored(run_copy, sampled, capsys):
    summary = sample_videos(checkpoint_in(run_copy), ["a red circle over the sea"], SampleSettings())
    assert summary["prompt"] == "a red circle over the sea"
    assert sampled == [summary["expanded_prompt"]]
    assert len(words_in(sampled[0])) > 15
    assert {"red", "circle", "sea"} <= set(words_in(sampled[0]))
    listed = json.loads((Path(run_copy.root) / "samples" / "main-step-000010" / "samples.json").read_text())
    assert listed["prompts"] == ["a red circle over the sea"]
    assert listed["expanded_prompts"] == sampled
    assert listed["expanders"] == ["embedded"]
    assert sampled[0] in capsys.readouterr().err
    page = Path(write_report(run_copy, quickstart().filters)).read_text()
    assert f"Expanded: {sampled[0].split(chr(34))[0]}" in page  # quotes are escaped there


def test_without_an_expander_the_prompt_goes_in_as_it_is(run_copy, sampled):
    settings = SampleSettings(expander="none")
    summary = sample_videos(checkpoint_in(run_copy), ["a red circle", "a blue star"], settings)
    assert sampled == ["a red circle", "a blue star"] == summary["prompt"] == summary["expanded_prompt"]


def test_the_same_prompt_is_not_sampled_twice_but_with_another_expander_it_is(run_copy, sampled):
    for expander in ("embedded", "embedded", "none"):
        sample_videos(checkpoint_in(run_copy), ["a red circle"], SampleSettings(expander=expander))
    assert len(sampled) == 2
    assert sampled[1] == "a red circle"


def test_a_checkpoint_outside_of_a_run_takes_its_style_from_the_run_that_is_named(run_copy, sampled, tmp_path):
    outside = str(tmp_path / "step-000010")
    plain = sample_videos(outside, ["a red circle"], SampleSettings(), out=str(tmp_path / "a"))
    assert plain["notes"] == ["no captions to take the style from"]
    sample_videos(outside, ["a red circle"], SampleSettings(examples=run_copy.root), out=str(tmp_path / "b"))
    assert sampled[0] == "a red circle"
    assert len(words_in(sampled[1])) > 15


def test_captions_as_prompts_stay_as_they_are(run_copy, sampled):
    recipe = dataclasses.replace(quickstart(), sample=SampleSettings())
    sample_run(run_copy, "main/checkpoints/step-000010", recipe, progress=False)
    captions = run_copy.read_table("index.parquet")["caption"].to_pylist()
    assert set(sampled) <= set(captions)
