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
from recaption.scenes.splits import held_out_scene
from train.captioner.freezing import TRAINABLE, frozen_modules, part_of, set_trainable
from train.captioner.init_weights import check_caption_lengths, from_captioner
from train.captioner.scene_clips import random_captions
from train.captioner.task import CaptionerSettings, CaptionerTask
from train.checkpoint import step_folder
from train.engine.optimizer import build_optimizer
from train.engine.settings import TrainerSettings
from train.engine.trainer import train

SHORT = TrainerSettings(
    num_steps=2, lr=1e-3, warmup_steps=1, log_every=1, checkpoint_every=1, device="cpu", ema_decay=0.5
)
WARM = {"num_workers": 0, "batch_size": 2, "num_validation_scenes": 2}


@pytest.fixture
def small_open_clip(monkeypatch):
    """`open_clip:coca_small/random`: open_clip's architecture and tokenizer, one layer each."""
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
    """An exported small captioner with random weights."""
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


def test_training_from_a_captioner_starts_with_its_output(folder, clip):
    task = CaptionerTask(CaptionerSettings(init_from=folder, **WARM))
    assert same_captions(task.captioner(task.model), load_captioner(folder), clip)
    assert task.config["init_from"] == {"spec": folder, "weights": load_captioner(folder).weights_hash}
    assert task.preprocessor == load_captioner(folder).preprocessor


def test_training_can_start_from_tiny():
    initial = from_captioner("tiny")
    assert initial.provenance["weights"] == load_captioner("tiny").weights_hash
    assert not {"min_clip_score", "num_beams"} & set(initial.config), "measured on weights that training will change"


def test_an_open_clip_captioner_gains_a_temporal_embedding_without_effect(small_open_clip, clip):
    task = CaptionerTask(CaptionerSettings(init_from=small_open_clip, **WARM))
    assert not task.model.clip_encoder.temporal_embedding.any()
    assert not task.model.coca.text.correct_cls_mask
    assert same_captions(task.captioner(task.model), load_captioner(small_open_clip), clip)
    plain = CaptionerTask(CaptionerSettings(init_from=small_open_clip, temporal=False, **WARM))
    assert plain.model.clip_encoder.temporal_embedding is None


@pytest.mark.parametrize("source", ["folder", "open_clip"])
def test_a_further_trained_captioner_loads_by_path(small_open_clip, source, folder, clip, tmp_path):
    spec = small_open_clip if source == "open_clip" else folder
    settings = CaptionerSettings(init_from=spec, trainable="lit", stages=("1:descriptive=1,short=1",), **WARM)
    steps = SHORT if source == "open_clip" else TrainerSettings(**{**vars(SHORT), "num_steps": 1})
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


def test_the_initial_captioners_kinds_are_kept(tmp_path):
    small = CaptionerSettings(**SMALL, stages=("1:descriptive=1,colour=1",), **WARM)
    train(CaptionerTask(small), TrainerSettings(**{**vars(SHORT), "num_steps": 1}), str(tmp_path), progress=False)
    further = CaptionerTask(CaptionerSettings(init_from=str(tmp_path), stages=("1:descriptive=1,short=1",), **WARM))
    assert set(further.captioner_config["kinds"]) == {"descriptive", "short", "colour"}
    assert further.captioner_config["num_frames"] == 2


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_trainable_parts_change_and_nothing_else(trainable, small_open_clip, tmp_path):
    task = CaptionerTask(CaptionerSettings(init_from=small_open_clip, trainable=trainable, **WARM))
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    result = train(task, SHORT, str(tmp_path), progress=False)
    moved = {part_of(name) for name, p in task.model.named_parameters() if not torch.equal(p, before[name])}
    assert (
        moved == {"full": {"encoder", "poolers", "text"}, "lit": {"poolers", "text"}, "frozen": {"poolers"}}[trainable]
    )
    _, ema = step_folder.load_model(str(tmp_path))
    assert ema.keys() == task.model.state_dict().keys()
    moments = load_file(Path(result.checkpoint) / step_folder.OPTIMIZER_FILE)
    assert {name.rpartition(".")[0] for name in moments} == {name for name in before if part_of(name) in moved}


def test_parameters_are_assigned_to_parts_by_name():
    parts = {"encoder": set(), "poolers": set(), "text": set()}
    settings = CaptionerSettings(vision_layers=1, text_layers=1, decoder_layers=1, joint_layers=1, **WARM)
    for name, _ in CaptionerTask(settings).model.named_parameters():
        parts[part_of(name)].add(".".join(name.split(".")[:3]))
    assert parts["encoder"] == {
        "coca.visual.class_embedding", "coca.visual.positional_embedding", "coca.visual.conv1", "coca.visual.ln_pre",
        "coca.visual.transformer",
    }  # fmt: skip
    assert parts["poolers"] == {
        "clip_encoder.temporal_embedding", "clip_encoder.joint.resblocks",
        "coca.visual.attn_pool", "coca.visual.ln_post", "coca.visual.proj",
    }  # fmt: skip
    assert {name.split(".")[1] for name in parts["text"]} == {"text", "text_decoder", "logit_scale"}


def test_a_frozen_encoder_is_in_eval_mode_and_leaves_no_graph(small_open_clip):
    task = CaptionerTask(CaptionerSettings(init_from=small_open_clip, trainable="lit", **WARM))
    task.model.train()
    calls = []
    encoder = task.model.coca.visual.transformer
    encoder.register_forward_hook(lambda module, _, out: calls.append((module.training, out.requires_grad)))
    task.loss(next(task.batches(0, 0, 1)), step=0, seed=0).loss_sum.backward()
    assert calls == [(False, False)]
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
        set_trainable(model, "half")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_from": "git:base"}, "not a captioner that can be trained further"),
        ({"init_from": "no/such/folder"}, "not a captioner that can be trained further"),
        ({"init_from": "tiny", "width": 256}, "width cannot be set with it"),
        ({"trainable": "lit"}, "add --init-from"),
        ({"init_from": "tiny", "trainable": "most"}, "full, lit, frozen"),
        ({"micro_batch": -1}, "below 0"),
    ],
)
def test_incompatible_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        CaptionerTask(CaptionerSettings(**{**WARM, **settings}))


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
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


def test_captions_too_long_for_the_context_are_refused():
    tokenizer = train_tokenizer(random_captions(200), num_tokens=600, context_length=80)
    check_caption_lengths(tokenizer, ["a red circle"] * 9 + ["unpronounceable " * 40])
    with pytest.raises(UsageError, match=f"40% of the captions are longer than the {tokenizer.context_length} tokens"):
        check_caption_lengths(tokenizer, ["a red circle"] * 6 + ["unpronounceable " * 40] * 4)
