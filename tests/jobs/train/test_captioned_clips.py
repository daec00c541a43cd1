from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jobs.cli import parse
from jobs.prepare.prepare import prepare
from jobs.recipe.presets import quickstart
from jobs.recipe.settings import from_dict, to_dict
from jobs.train.captioned_clips import captioned_clips
from jobs.train.train import train_model
from recaption.captioners.preprocess import FramePreprocessor
from recaption.captioners.registry import load_captioner
from recaption.captions.text import CAPTION_KINDS
from recaption.errors import CheckpointMismatchError, UsageError
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render
from train.captioner.run_clips import RunClips, split
from train.captioner.task import CaptionerSettings
from train.engine.settings import TrainerSettings

PREPROCESSOR = FramePreprocessor(frame_px=32, fit="squash")
SMALL = CaptionerSettings(
    frame_px=32, patch_px=16, num_frames=3, vision_width=32, vision_layers=1, num_queries=5, width=32, text_layers=1,
    decoder_layers=1, head_width=16, batch_size=4, num_workers=0, num_validation_scenes=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Videos, most of them with a sidecar text."""
    folder = tmp_path_factory.mktemp("pairs")
    for seed in range(6):
        scene = render(7000 + seed, num_frames=17, height_px=64, width_px=64, fps=8, **SIMPLE)
        scene.write(folder / f"{seed}.mp4")
        if seed:
            (folder / f"{seed}.txt").write_text(f"  {scene.short_caption}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def prepared(pairs, small_recipe, in_process, tmp_path_factory):
    run = RunFolder(str(tmp_path_factory.mktemp("prepared") / "run"))
    prepare([str(pairs)], run.uri, small_recipe, in_process)
    return run


def test_original_texts_are_used_as_captions(prepared, small_recipe):
    clips = captioned_clips(prepared, small_recipe, ("original",))
    assert len(clips) == 5
    assert all(list(one.captions) == ["descriptive"] for one in clips)
    named = captioned_clips(prepared, small_recipe, ("original=short",))
    assert {kind for one in named for kind in one.captions} == {"short"}


def test_caption_sets_and_original_texts_add_up(small_run, small_recipe):
    clips = captioned_clips(small_run, small_recipe, ("main",))
    assert clips
    assert {kind for one in clips for kind in one.captions} <= set(CAPTION_KINDS)
    twice = captioned_clips(small_run, small_recipe, ("main", "main=short"))
    assert twice[0].captions["short"] == twice[0].captions["descriptive"]


def test_wrong_sets_are_one_sentence(small_run, small_recipe):
    with pytest.raises(UsageError, match="no caption set 'other'"):
        captioned_clips(small_run, small_recipe, ("other",))
    with pytest.raises(UsageError, match="no kind 'poem'"):
        captioned_clips(small_run, small_recipe, ("main=poem",))
    with pytest.raises(UsageError, match="of the same name"):
        captioned_clips(small_run, small_recipe, ("original",))


def test_clips_of_a_run_show_their_own_frames(prepared, small_recipe):
    clips = RunClips(captioned_clips(prepared, small_recipe, ("original",)))
    one = clips.clip(2, PREPROCESSOR, num_frames=4)
    assert one.pixels_THWC.shape == (4, 32, 32, 3)
    seed = int(clips.clips[2].clip.uri.rsplit("/", 1)[1].split(".")[0])
    truth = render(7000 + seed, num_frames=17, height_px=64, width_px=64, fps=8, **SIMPLE)
    assert one.captions["descriptive"] == (truth.short_caption,)
    expected = PREPROCESSOR.resize_frames(truth.frames_THWC, np.array([2, 6, 10, 14]))
    assert np.abs(one.pixels_THWC.astype(int) - expected).mean() < 8  # the video was encoded in between
    assert np.array_equal(clips.clip(2, PREPROCESSOR, num_frames=4).pixels_THWC, one.pixels_THWC)
    later = [clips.clip(2, PREPROCESSOR, num_frames=4, epoch=epoch).pixels_THWC for epoch in (1, 1, 2)]
    assert np.array_equal(later[0], later[1])
    assert len({pixels.tobytes() for pixels in (one.pixels_THWC, *later)}) >= 2
    assert clips.clip(0, PREPROCESSOR, num_frames=40).pixels_THWC.shape[0] == 40


def test_the_split_is_by_video_and_deterministic(prepared, small_recipe):
    clips = captioned_clips(prepared, small_recipe, ("original",))
    training, held_out = split(clips)
    assert len(training) == 4
    assert len(held_out) == 1
    assert not {one.clip.video_id for one in training} & {one.clip.video_id for one in held_out}
    assert split(list(reversed(clips)))[1] == held_out
    assert split(held_out) == (held_out, held_out)


def test_a_captioner_trains_on_a_run_folder_and_captions_it(prepared, small_recipe, in_process, tmp_path):
    trainer = TrainerSettings(num_steps=2, lr=1e-3, warmup_steps=1, log_every=1, checkpoint_every=1, device="cpu")
    settings = dataclasses.replace(
        small_recipe.train_captioner, captions=("original",), captioner=SMALL, trainer=trainer
    )
    recipe = dataclasses.replace(small_recipe, train_captioner=settings)
    in_process.address, in_process.num_workers = None, None
    result = train_model("captioner", prepared.uri, "mine", recipe, in_process, progress=False)
    assert result["steps"] == 2
    assert {"cider_d", "retrieval/text"} < set(result["validation"])
    assert "accuracy/colour" not in result["validation"]
    captioner = load_captioner(prepared.path("train", "mine"))
    assert captioner.kinds == ("descriptive",)
    assert captioner.caption([np.zeros((3, 40, 40, 3), np.uint8)])[0].fields.colour == ""

    other = dataclasses.replace(
        recipe, train_captioner=dataclasses.replace(settings, captions=("original=short", "original"))
    )
    more = dataclasses.replace(
        other,
        train_captioner=dataclasses.replace(other.train_captioner, trainer=dataclasses.replace(trainer, num_steps=3)),
    )
    with pytest.raises(CheckpointMismatchError, match="other settings"):
        train_model("captioner", prepared.uri, "mine", more, in_process, progress=False)


def test_flags_set_the_settings_of_their_model():
    flags = ["--run", "x", "--captions", "main", "original=short", "--init-from", "tiny", "--trainable", "lit"]
    settings = parse("train captioner", [*flags, "--recipe", "quickstart"]).resolved().train_captioner
    assert settings.captions == ("main", "original=short")
    assert (settings.captioner.init_from, settings.captioner.trainable) == ("tiny", "lit")
    assert parse("train captioner", ["--run", "x"]).resolved() == quickstart()
    dit = parse("train dit", ["--run", "x", "--init-from", "folder"]).resolved().train_dit.dit
    assert dit.init_from == "folder"


@pytest.mark.parametrize(
    ("model", "flag"),
    [
        ("compressor", "--captions"),
        ("dit", "--trainable"),
        ("dit", "--captions"),
        ("captioner", "--eval"),
        ("captioner", "--train-dit.dit.width"),
        ("compressor", "--plan.capacity"),
        ("dit", "--prepare.part-size"),
    ],
)
def test_a_flag_without_effect_on_a_model_does_not_exist(model, flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(f"train {model}", ["--run", "x", flag, "3"])
    assert flag in capsys.readouterr().err


def test_settings_round_trip_through_run_yaml():
    stages = ("0.5:short=1", "0.5:descriptive=1")
    training = dataclasses.replace(
        quickstart().train_captioner,
        captions=("original",),
        captioner=CaptionerSettings(init_from="tiny", stages=stages),
    )
    recipe = dataclasses.replace(quickstart(), train_captioner=training)
    assert from_dict(to_dict(recipe)) == recipe
