from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recaption.captioners.registry import load_captioner
from recaption.captioners.videococa.checkpoint import read_captioner_folder, save_captioner
from recaption.captioners.videococa.tokenizer import train_tokenizer
from recaption.errors import CheckpointMismatchError, UsageError
from train.captioner.freezing import PRESETS, apply_preset, frozen_modules, part_of
from train.captioner.init_weights import check_texts, from_captioner
from train.captioner.scene_clips import held_out_scene, some_captions
from train.captioner.task import CaptionerSettings, CaptionerTask
from train.checkpoint import step_folder as checkpoint
from train.engine.optimizer import build_optimizer
from train.engine.settings import TrainerSettings
from train.engine.trainer import train

STEPS = TrainerSettings(
    num_steps=2, lr=1e-3, warmup_steps=1, log_every=1, checkpoint_every=1, device="cpu", ema_decay=0.5
)
WARM = {"num_workers": 0, "batch_size": 2, "num_validation_scenes": 2}


@pytest.fixture
def small_open_clip(monkeypatch):
    """`open_clip:coca_small/random`: open_clip's own design and tokeniser, two layers of everything."""
    import open_clip.factory

    text = {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1, "attentional_pool": True,
            "attn_pooler_heads": 2, "output_tokens": True,
        },
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": text,
        "custom_text": True,
    }  # fmt: skip
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "coca_small", config)
    return "open_clip:coca_small/random"


SMALL = {
    "frame_px": 32, "vision_width": 32, "vision_layers": 1, "num_queries": 5, "width": 32, "text_layers": 1,
    "decoder_layers": 1, "head_width": 16, "num_frames": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small captioner of random weights, as it is shipped."""
    task = CaptionerTask(CaptionerSettings(**SMALL, **WARM))
    where = tmp_path_factory.mktemp("start") / "captioner"
    return str(save_captioner(where, task.model.state_dict(), task.tokenizer, task.captioner_config))


@pytest.fixture(scope="module")
def clip():
    return held_out_scene(3).frames_THWC


def same_captions(one, other, clip) -> bool:
    mine, theirs = (captioner.caption_with_embeddings([clip], max_tokens=8) for captioner in (one, other))
    return mine.captions[0].text == theirs.captions[0].text and np.allclose(
        mine.clip_embeddings_BD, theirs.clip_embeddings_BD, atol=1e-5
    )


def test_a_start_says_what_the_captioner_said(folder, clip):
    task = CaptionerTask(CaptionerSettings(start=folder, **WARM))
    assert same_captions(task.captioner(task.model), load_captioner(folder), clip)
    assert task.config["start"] == {"spec": folder, "weights": load_captioner(folder).weights_hash}
    assert task.preprocessor == load_captioner(folder).preprocessor


def test_the_captioner_inside_the_package_is_a_start():
    start = from_captioner("tiny")
    assert start.came_from["weights"] == load_captioner("tiny").weights_hash
    assert not {"min_clip_score", "num_beams"} & set(start.config), "found on weights that training will change"


def test_open_clip_starts_gain_a_temporal_embedding_without_effect(small_open_clip, clip):
    task = CaptionerTask(CaptionerSettings(start=small_open_clip, **WARM))
    assert not task.model.temporal_embedding.any()
    assert not task.model.coca.text.correct_cls_mask
    assert same_captions(task.captioner(task.model), load_captioner(small_open_clip), clip)
    plain = CaptionerTask(CaptionerSettings(start=small_open_clip, temporal=False, **WARM))
    assert plain.model.temporal_embedding is None


@pytest.mark.parametrize("start", ["folder", "open_clip"])
def test_what_was_trained_further_opens_by_path(small_open_clip, start, folder, clip, tmp_path):
    spec = small_open_clip if start == "open_clip" else folder
    settings = CaptionerSettings(start=spec, preset="lit", stages=("1:descriptive=1,short=1",), **WARM)
    steps = STEPS if start == "open_clip" else TrainerSettings(**{**vars(STEPS), "num_steps": 1})
    task = CaptionerTask(settings)
    train(task, steps, str(tmp_path), progress=False)
    opened = load_captioner(str(tmp_path))
    assert opened.kinds == ("descriptive", "short")
    text = "a red circle moves left"
    assert opened.tokenizer.encode([text]).tolist() == load_captioner(spec).tokenizer.encode([text]).tolist()
    assert opened.caption_with_embeddings([clip], kind="short", max_tokens=8).captions[0].kind == "short"
    assert not same_captions(opened, load_captioner(spec), clip)
    again = from_captioner(str(tmp_path))
    assert set(again.config["kinds"]) == {"descriptive", "short"}

    saved = read_captioner_folder(tmp_path)
    exported = load_captioner(str(save_captioner(tmp_path / "out", saved.state, saved.tokenizer, saved.config)))
    assert exported.kinds == opened.kinds
    assert exported.score([clip], [text]) == pytest.approx(opened.score([clip], [text]), abs=0.02)


def test_kinds_of_the_start_are_kept(tmp_path):
    small = CaptionerSettings(**SMALL, stages=("1:descriptive=1,colour=1",), **WARM)
    train(CaptionerTask(small), TrainerSettings(**{**vars(STEPS), "num_steps": 1}), str(tmp_path), progress=False)
    further = CaptionerTask(CaptionerSettings(start=str(tmp_path), stages=("1:descriptive=1,short=1",), **WARM))
    assert set(further.captioner_config["kinds"]) == {"descriptive", "short", "colour"}
    assert further.captioner_config["num_frames"] == 2


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_move_what_they_say_and_nothing_else(preset, small_open_clip, tmp_path):
    task = CaptionerTask(CaptionerSettings(start=small_open_clip, preset=preset, **WARM))
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    result = train(task, STEPS, str(tmp_path), progress=False)
    moved = {part_of(name) for name, p in task.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"full": {"encoder", "poolers", "text"}, "lit": {"poolers", "text"}, "frozen": {"poolers"}}[preset]
    _, averaged = checkpoint.load_model(str(tmp_path))
    assert averaged.keys() == task.model.state_dict().keys()
    moments = load_file(Path(result.checkpoint) / checkpoint.OPTIMIZER)
    assert {name.rpartition(".")[0] for name in moments} == {name for name in before if part_of(name) in moved}


def test_parts_of_the_model_by_name():
    parts = {"encoder": set(), "poolers": set(), "text": set()}
    settings = CaptionerSettings(vision_layers=1, text_layers=1, decoder_layers=1, joint_layers=1, **WARM)
    for name, _ in CaptionerTask(settings).model.named_parameters():
        parts[part_of(name)].add(".".join(name.split(".")[:3]))
    assert parts["encoder"] == {
        "coca.visual.class_embedding", "coca.visual.positional_embedding", "coca.visual.conv1", "coca.visual.ln_pre",
        "coca.visual.transformer",
    }  # fmt: skip
    assert parts["poolers"] == {
        "temporal_embedding", "joint.resblocks.0", "coca.visual.attn_pool", "coca.visual.ln_post", "coca.visual.proj",
    }  # fmt: skip
    assert {name.split(".")[1] for name in parts["text"]} == {"text", "text_decoder", "logit_scale"}


def test_a_frozen_encoder_is_in_eval_mode_and_leaves_no_graph(small_open_clip):
    task = CaptionerTask(CaptionerSettings(start=small_open_clip, preset="lit", **WARM))
    task.model.train()
    seen = []
    encoder = task.model.coca.visual.transformer
    encoder.register_forward_hook(lambda module, _, out: seen.append((module.training, out.requires_grad)))
    task.loss(next(task.batches(0, 0, 1)), step=0, seed=0).loss_sum.backward()
    assert seen == [(False, False)]
    assert task.model.coca.text.transformer.training
    assert all(p.grad is None for p in encoder.parameters())
    assert task.model.coca.visual.attn_pool.query.grad.any()
    assert build_optimizer(task.model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.99))


def test_outermost_frozen_modules_are_found_once():
    model = torch.nn.Sequential(
        torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), torch.nn.Linear(2, 1)
    )
    model[0].requires_grad_(False)
    assert list(frozen_modules(model)) == [model[0]]
    with pytest.raises(UsageError, match="full, lit, frozen"):
        apply_preset(model, "half")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "git:base"}, "no captioner that can be trained further"),
        ({"start": "no/such/folder"}, "no captioner that can be trained further"),
        ({"start": "tiny", "width": 256}, "width cannot be set beside it"),
        ({"preset": "lit"}, "add --start"),
        ({"start": "tiny", "preset": "most"}, "full, lit, frozen"),
        ({"micro_batch": -1}, "below 0"),
    ],
)
def test_starts_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        CaptionerTask(CaptionerSettings(**{**WARM, **settings}))


def test_a_tokeniser_of_another_model_is_refused(folder, tmp_path):
    saved = read_captioner_folder(folder)
    known = saved.tokenizer.num_tokens
    mixed = save_captioner(tmp_path / "mixed", saved.state, saved.tokenizer, saved.config)
    tokenizer = json.loads((mixed / "tokenizer.json").read_text())
    left, right = tokenizer["model"]["merges"].pop()
    del tokenizer["model"]["vocab"][left + right]
    (mixed / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointMismatchError, match=rf"{known - 1} tokens.*{known}"):
        from_captioner(str(mixed))


def test_weights_of_another_model_are_refused(folder, tmp_path):
    saved = read_captioner_folder(folder)
    mixed = save_captioner(tmp_path / "mixed", saved.state, saved.tokenizer, {**saved.config, "num_frames": 3})
    with pytest.raises(CheckpointMismatchError, match="does not fit"):
        from_captioner(str(mixed))


def test_captions_that_the_context_cannot_hold_are_refused():
    tokenizer = train_tokenizer(some_captions(200), num_tokens=600, context_length=80)
    check_texts(tokenizer, ["a red circle"] * 9 + ["unpronounceable " * 40])
    with pytest.raises(UsageError, match=f"40% of the captions are longer than the {tokenizer.context_length} tokens"):
        check_texts(tokenizer, ["a red circle"] * 6 + ["unpronounceable " * 40] * 4)
