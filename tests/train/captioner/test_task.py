from __future__ import annotations

import dataclasses
import json
from itertools import islice

import numpy as np
import pytest
import torch

from recaption.captioners.preprocess import FramePreprocessor
from recaption.captioners.registry import load_captioner
from recaption.errors import CheckpointMismatchError, UsageError
from recaption.records import Caption
from recaption.scenes.captions import fields_in
from recaption.scenes.splits import FIRST_HELD_OUT_SEED, HELD_OUT_PAIRS, held_out_scene, training_scene
from train.captioner.evaluation import FIELDS, evaluate_on_scenes
from train.captioner.export import export
from train.captioner.loss import contrastive_loss
from train.captioner.scene_clips import random_captions
from train.captioner.task import CaptionerSettings, CaptionerTask
from train.engine.settings import TrainerSettings
from train.engine.trainer import train

SMALL = CaptionerSettings(
    frame_px=32,
    patch_px=16,
    num_frames=3,
    vision_width=32,
    vision_layers=1,
    num_queries=5,
    width=32,
    text_layers=1,
    decoder_layers=1,
    head_width=16,
    batch_size=4,
    num_workers=0,
    num_validation_scenes=4,
)
SHORT_RUN = TrainerSettings(
    num_steps=4, lr=1e-3, warmup_steps=1, log_every=1, checkpoint_every=2, device="cpu", ema_decay=0.5
)
PREPROCESSOR = FramePreprocessor(frame_px=32, fit="squash", interpolation="bilinear")


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) if isinstance(first[key], torch.Tensor) else first[key] == second[key]
        for key in first
    )


def test_compile_compiles_what_the_loss_calls(tmp_path, monkeypatch):
    called = {}

    def compiled(module, *_, **__):
        """As torch's own: `__call__` runs the compiled function in place of `_call_impl`."""
        called[module] = 0

        def run(*args, **kwargs):
            called[module] += 1
            return module._call_impl(*args, **kwargs)

        module._compiled_call_impl = run

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    task = CaptionerTask(dataclasses.replace(SMALL, batch_size=2))
    train(task, dataclasses.replace(SHORT_RUN, num_steps=1, checkpoint_every=1, compile=True), str(tmp_path))
    assert len(called) >= 3  # of the vision tower, the text tower and the decoder
    assert min(called.values()) >= 1
    called.clear()
    tiny = CaptionerTask(CaptionerSettings(init_from="tiny", batch_size=2, num_workers=0))
    for module in tiny.compiled_modules():
        module.compile()
    tiny.loss(tiny.prepared(next(tiny.batches(0, 0, 1)), step=0, seed=0), step=0, seed=0)
    assert len(called) >= 3
    assert min(called.values()) >= 1


def test_a_batch_depends_on_its_number_alone():
    task = CaptionerTask(SMALL)
    from_start = list(islice(task.batches(0, 0, 1), 3))
    assert same(next(CaptionerTask(SMALL).batches(2, 0, 1)), from_start[2])
    assert not same(from_start[0], from_start[1])


def test_ranks_split_the_stream_without_overlap():
    task = CaptionerTask(SMALL)
    alone = [batch["pixels_BTHWC"] for batch in islice(task.batches(0, 0, 1), 4)]
    shared = [next(task.batches(step, rank, 2))["pixels_BTHWC"] for step in (0, 1) for rank in (0, 1)]
    assert all(torch.equal(*pair) for pair in zip(alone, shared, strict=True))


def test_background_workers_do_not_change_the_batches():
    plain = list(islice(CaptionerTask(SMALL).batches(5, 0, 1), 2))
    with_worker = CaptionerTask(CaptionerSettings(**{**vars(SMALL), "num_workers": 1}))
    for expected, got in zip(plain, islice(with_worker.batches(5, 0, 1), 2), strict=True):
        assert same(expected, got)


def test_training_clips_have_none_of_the_held_out_pairs():
    pairs = set()
    for number in range(100):
        fields = training_scene(number).fields
        pairs.add((fields.main_object, fields.colour))
    assert not pairs & set(HELD_OUT_PAIRS)
    assert len(pairs) > 40
    scene = held_out_scene(11, only_unseen_pairs=True)
    assert (scene.fields.main_object, scene.fields.colour) == HELD_OUT_PAIRS[11 % len(HELD_OUT_PAIRS)]


def test_held_out_seeds_are_never_trained_on():
    assert held_out_scene(3).seed == FIRST_HELD_OUT_SEED + 3
    with pytest.raises(ValueError, match="training seeds"):
        held_out_scene(3, first_seed=5)


def test_captions_fit_the_context_and_decode_to_the_same_text():
    task = CaptionerTask(SMALL)
    texts = random_captions(300, seed=9)
    ids_SM = task.tokenizer.encode(texts)
    assert (ids_SM[:, -1] == task.tokenizer.special.pad).all()
    for text, ids in zip(texts, ids_SM.tolist(), strict=True):
        assert task.tokenizer.decode(ids).lower() == text.lower()
    words = {word for text in texts for word in text.split()}
    lengths = (ids_SM != task.tokenizer.special.pad).sum(dim=1)
    assert lengths.float().mean() < 1.6 * np.mean([len(text.split()) for text in texts])
    assert task.tokenizer.num_tokens < SMALL.vocabulary_tokens + len(words)


def test_equal_texts_are_positives_of_each_other():
    vectors = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    clips_BD = vectors[[0, 0, 1]]

    def per_clip(texts_BD, keys):
        return contrastive_loss(clips_BD, texts_BD[None], torch.tensor([keys]), torch.tensor(100.0)) / 3

    assert per_clip(clips_BD, [5, 5, 6]) == pytest.approx(np.log(2) * 2 / 3, abs=1e-3)
    assert per_clip(clips_BD, [1, 2, 3]) > 0.4
    assert per_clip(vectors[[2, 2, 0]], [5, 5, 6]) > 3


def test_loss_reaches_every_weight_and_ignores_padding():
    task = CaptionerTask(SMALL)
    batch = next(task.batches(0, 0, 1))
    parts = task.loss(batch, step=0, seed=0)
    parts.loss_sum.backward()
    without_gradient = [name for name, p in task.model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without_gradient == []
    assert parts.num_tokens <= parts.capacity_tokens
    expected = np.log(task.tokenizer.num_tokens)
    assert float(parts.logs["caption"]) == pytest.approx(expected, rel=0.15)
    weightless = CaptionerTask(CaptionerSettings(**{**vars(SMALL), "caption_weight": 0.0, "contrastive_weight": 0.0}))
    assert weightless.loss(batch, step=0, seed=0).loss_sum.detach() == 0


def test_all_architecture_settings_train_and_load(tmp_path):
    settings = CaptionerSettings(
        **{**vars(SMALL), "stem_channels": (4, 4, 8), "joint_layers": 1, "fixed_positions": True, "temporal_std": 0.5}
    )
    steps = TrainerSettings(**{**vars(SHORT_RUN), "num_steps": 1})
    train(CaptionerTask(settings), steps, str(tmp_path), progress=False)
    opened = load_captioner(str(tmp_path))
    assert opened.score([held_out_scene(0).frames_THWC], ["a red circle"]).shape == (1, 1)


def test_trained_checkpoint_resumes_exports_and_captions(tmp_path):
    whole = train(CaptionerTask(SMALL), SHORT_RUN, str(tmp_path / "whole"), progress=False)
    assert whole.steps == 4
    assert {f"accuracy/{field}" for field in FIELDS} < set(whole.validation)

    half = TrainerSettings(**{**vars(SHORT_RUN), "num_steps": 2, "schedule": "constant"})
    rest = TrainerSettings(**{**vars(SHORT_RUN), "schedule": "constant"})
    train(CaptionerTask(SMALL), half, str(tmp_path / "cut"), progress=False)
    resumed = train(CaptionerTask(SMALL), rest, str(tmp_path / "cut"), progress=False)
    assert resumed.resumed_from == 2
    train(CaptionerTask(SMALL), rest, str(tmp_path / "uncut"), progress=False)
    cut, uncut = (load_captioner(str(tmp_path / name)) for name in ("cut", "uncut"))
    assert cut.weights_hash == uncut.weights_hash

    exported = load_captioner(str(export(tmp_path / "whole", tmp_path / "exported", num_scenes=2)))
    direct = load_captioner(str(tmp_path / "whole"))
    scene = held_out_scene(0)
    assert exported.num_frames == direct.num_frames == 3
    np.testing.assert_allclose(
        exported.score([scene.frames_THWC], ["a red circle"]),
        direct.score([scene.frames_THWC], ["a red circle"]),
        atol=0.02,
    )
    assert exported.caption([scene.frames_THWC])[0].num_tokens >= 1
    assert "| colour (9) |" in (tmp_path / "exported" / "README.md").read_text()
    assert "merges" not in json.loads((tmp_path / "exported" / "config.json").read_text())

    other = CaptionerTask(CaptionerSettings(**{**vars(SMALL), "vision_layers": 2}))
    with pytest.raises(CheckpointMismatchError):
        train(other, SHORT_RUN, str(tmp_path / "whole"), progress=False)


def test_loss_falls_on_scenes(tmp_path):
    settings = TrainerSettings(
        num_steps=40, lr=3e-3, warmup_steps=5, log_every=10, checkpoint_every=100, device="cpu", ema_decay=0.9
    )
    train(CaptionerTask(SMALL), settings, str(tmp_path), progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["log/caption"] < 0.75 * lines[0]["log/caption"]


class Oracle:
    """A captioner of held-out scenes whose captions are `caption_of(scene)`."""

    def __init__(self, caption_of) -> None:
        self.caption_of = caption_of

    def caption(self, clips, **_):
        return [Caption(text=self.caption_of(held_out_scene(index))) for index in range(len(clips))]

    def score(self, clips, texts):
        return np.eye(len(clips), len(texts), dtype=np.float32)


def test_field_accuracy_counts_exact_words():
    best = evaluate_on_scenes(Oracle(lambda scene: scene.long_caption), 20)
    assert best["accuracy/mean"] == best["accuracy/all_fields"] == best["retrieval/text"] == 1.0
    red = evaluate_on_scenes(Oracle(lambda scene: "A red thing."), 20)
    fraction = np.mean([fields_in(held_out_scene(index).long_caption).colour == "red" for index in range(20)])
    assert red["accuracy/colour"] == pytest.approx(fraction)
    assert red["accuracy/main_object"] == red["accuracy/all_fields"] == 0
    silent = evaluate_on_scenes(Oracle(lambda scene: ""), 20)
    without_text = np.mean([held_out_scene(index).fields.text == "" for index in range(20)])
    assert silent["accuracy/text"] == pytest.approx(without_text)


@pytest.mark.parametrize(
    "wrong", [{"width": 33}, {"frame_px": 50}, {"batch_size": 0}, {"num_queries": 1}, {"num_workers": -1}]
)
def test_invalid_sizes_are_refused(wrong):
    with pytest.raises(UsageError):
        CaptionerTask(CaptionerSettings(**{**vars(SMALL), **wrong}))
