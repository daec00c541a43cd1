"""Training the transformer on packs: the same gradient however clips are arranged, exact resume, a loss that falls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from packing.buckets import Bucket
from packing.plan import PlanSettings
from packing.rows import MemorySource
from recaption.errors import CheckpointMismatchError, UsageError
from train import sampler as sampler_module
from train.dit_task import DitSettings, DitTask
from train.flow import PathSettings
from train.text_encoder import TextEncoder
from train.trainer import TrainerSettings, train

BUCKETS = (Bucket(5, 16, 16, 8), Bucket(1, 16, 24, 8))
COLOURS = {"red": (1.0, -1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}
SETTINGS = DitSettings(width=24, depth=1, num_heads=2, path=PathSettings(shift_tokens=4), caption_dropout=0.25)


class ColourTower:
    """One token per text: which colour it names."""

    width = pooled_width = 4

    def encode(self, texts):
        rows = torch.tensor([[float("red" in t), float("blue" in t), 1.0, 0.0] for t in texts])
        return rows, torch.ones(len(texts), dtype=torch.int64), rows


class BlockMeans:
    """A compressor of block means."""

    name, num_channels, frame_stride, spatial_stride = "block-means", 3, 4, 8
    config = {"kind": "block-means"}  # noqa: RUF012

    def to(self, device):
        return self

    def encode(self, pixels_BCTHW):
        padded = torch.cat([pixels_BCTHW[:, :, :1].repeat(1, 1, 3, 1, 1), pixels_BCTHW], dim=2)
        return nn.functional.avg_pool3d(padded, (4, 8, 8))

    def decode(self, latents_BCTHW):
        pixels = latents_BCTHW.repeat_interleave(4, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
        return pixels[:, :, 3:]


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """Every spec means the stand-ins of this file, also where a checkpoint names it."""
    monkeypatch.setattr("train.compressors.load", lambda spec, **settings: BlockMeans())
    monkeypatch.setattr("train.text_encoder.load", lambda spec, **settings: make_encoder())


def make_encoder() -> TextEncoder:
    return TextEncoder(ColourTower(), spec="colours", weights_hash="0")


def make_source(num_clips: int = 10, caption: str = "a {} field") -> MemorySource:
    latents, captions = [], []
    for index in range(num_clips):
        colour = list(COLOURS)[index % 2]
        bucket = BUCKETS[index % 3 == 2]
        frames = 1 + (bucket.num_frames - 1) // 4
        latent = np.zeros((3, frames, bucket.height_px // 8, bucket.width_px // 8), np.float32)
        latents.append(latent + np.array(COLOURS[colour], np.float32)[:, None, None, None])
        captions.append(caption.format(colour))
    return MemorySource(latents, [f"clip-{i}" for i in range(num_clips)], captions)


def make_task(source=None, *, capacity: int = 20, **changes) -> DitTask:
    settings = SETTINGS if not changes else DitSettings(**(vars(SETTINGS) | changes))
    return DitTask(source or make_source(), settings, PlanSettings(capacity=capacity), buckets=BUCKETS)


def fill_zeros(model: nn.Module) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.2)


def epoch_gradient(task: DitTask, num_ranks: int = 1) -> list[torch.Tensor]:
    """Gradient over the whole first epoch as one step, whatever the rows."""
    fill_zeros(task.model)
    loss_sum, weight = torch.zeros(()), torch.zeros(())
    for rank in range(num_ranks):
        for batch in task.batches(0, rank, num_ranks):
            if batch.epoch > 0:
                break
            parts = task.loss(batch, step=0, seed=0)
            loss_sum, weight = loss_sum + parts.loss_sum, weight + parts.weight
    return list(torch.autograd.grad(loss_sum / weight, list(task.model.parameters())))


@pytest.mark.parametrize("loss_norm", ["sample", "token"])
def test_rows_and_ranks_do_not_change_the_gradient(loss_norm):
    reference = epoch_gradient(make_task(capacity=8, loss_norm=loss_norm))
    for capacity, num_ranks in ((20, 1), (60, 1), (20, 2)):
        gradient = epoch_gradient(make_task(capacity=capacity, loss_norm=loss_norm), num_ranks)
        for got, expected in zip(gradient, reference, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def clips_of(batches, count):
    return [batch.clip_ids for batch in itertools.islice(batches, count)]


def test_any_step_can_be_the_first():
    task = make_task()
    straight = clips_of(task.batches(0, 0, 1), 9)
    assert clips_of(make_task().batches(4, 0, 1), 5) == straight[4:]
    by_two_ranks = [clips_of(make_task().batches(0, rank, 2), 4) for rank in range(2)]
    assert [row for pair in zip(*by_two_ranks) for row in pair] == straight[:8]


def test_a_restored_task_goes_on_at_the_next_row_on_another_number_of_ranks():
    straight = clips_of(make_task().batches(0, 0, 1), 9)
    before = make_task()
    clips_of(before.batches(0, 0, 2), 2)  # two steps of two ranks: four rows are read
    after = make_task()
    after.load_state_dict(before.state_dict())
    assert clips_of(after.batches(4, 0, 1), 3) == straight[4:7]
    earlier = make_task()
    earlier.load_state_dict(before.state_dict())
    assert clips_of(earlier.batches(2, 0, 1), 3) == straight[2:5], "a batch before the saved ones, too"


def test_a_position_in_other_samples_is_refused():
    before = make_task()
    clips_of(before.batches(0, 0, 1), 1)
    with pytest.raises(CheckpointMismatchError, match="plan"):
        make_task(make_source(num_clips=11)).load_state_dict(before.state_dict())


def test_a_killed_training_ends_with_the_same_weights(tmp_path):
    settings = {"lr": 3e-3, "warmup_steps": 1, "device": "cpu", "schedule": "constant", "checkpoint_every": 2}
    whole = make_task()
    train(whole, TrainerSettings(num_steps=5, **settings), str(tmp_path / "whole"), progress=False)
    train(make_task(), TrainerSettings(num_steps=2, **settings), str(tmp_path / "cut"), progress=False)
    resumed = make_task()
    result = train(resumed, TrainerSettings(num_steps=5, **settings), str(tmp_path / "cut"), progress=False)
    assert result.resumed_from == 2
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_loss_falls_and_the_checkpoint_alone_samples_the_colour_that_is_asked_for(tmp_path):
    task = make_task(capacity=60)
    settings = TrainerSettings(
        num_steps=150, lr=1e-2, warmup_steps=5, device="cpu", log_every=150, ema_decay=0.9, max_grad_norm=1.0
    )
    start = task.validate(task.model, 0)
    result = train(task, settings, str(tmp_path / "dit"), progress=False)
    assert start["loss"] == pytest.approx(start["loss_without_prompt"])
    assert result.validation["loss"] < 0.5 * start["loss"]
    assert result.validation["prompt_gain"] > 0.2
    videos = sampler_module.sample(
        str(tmp_path / "dit"), ["a red field", "a blue field"], num_steps=8, guidance=2.0, progress=False
    )
    assert [video.shape for video in videos] == [(5, 16, 16, 3)] * 2
    red, blue = (video.reshape(-1, 3).mean(0) for video in videos)
    assert red[0] - red[2] > 60
    assert blue[2] - blue[0] > 60


def test_a_compressor_that_has_changed_since_is_refused(tmp_path, monkeypatch):
    settings = TrainerSettings(num_steps=1, device="cpu")
    train(make_task(), settings, str(tmp_path / "dit"), progress=False)
    monkeypatch.setattr(BlockMeans, "config", {"kind": "block-medians"})
    with pytest.raises(CheckpointMismatchError, match="block-medians"):
        sampler_module.sample(str(tmp_path / "dit"), ["a red field"], progress=False)


def test_validation_is_repeatable_and_does_not_train():
    task = make_task()
    fill_zeros(task.model)
    before = [p.detach().clone() for p in task.model.parameters()]
    assert task.validate(task.model, 0) == task.validate(task.model, 7)
    assert all(torch.equal(a, b) for a, b in zip(before, task.model.parameters()))


def test_blank_captions_train_the_null_caption():
    task = make_task(make_source(caption=""), caption_dropout=0.0)
    fill_zeros(task.model)
    batch = next(task.batches(0, 0, 1))
    assert batch.text.segments.num_tokens == 0
    task.loss(batch, step=0, seed=0).loss_sum.backward()
    assert task.model.null_text_embedding_MC.grad.abs().sum() > 0


def test_sample_prompts_give_videos_for_the_log():
    task = make_task(sample_prompts=("a red field",))
    video, fps = task.sample(task.model, 0)["sample/0"]
    assert video.shape == (5, 16, 16, 3)
    assert fps == 8
    assert make_task().sample(task.model, 0) == {}


def test_config_has_what_sampling_needs_and_is_plain():
    import json

    config = json.loads(json.dumps(make_task().config))
    assert config["buckets"] == ["5f-16x16-8fps", "1f-16x24-8fps"]
    assert config["backbone"]["token_width"] == 3
    assert config["compressor"] == {"spec": "patch", "config": {"kind": "block-means"}}
    assert config["text_encoder"]["spec"] == "colours"


def test_wrong_use_gets_one_sentence():
    source = make_source()
    source.latents = [latent[:2] for latent in source.latents]
    with pytest.raises(UsageError, match="the latents have 2 channels, compressor 'patch' makes 3"):
        make_task(source)
    with pytest.raises(UsageError, match="not what compressor 'patch' makes"):
        DitTask(make_source(), SETTINGS, PlanSettings(capacity=20), buckets=BUCKETS[:1])
    with pytest.raises(UsageError, match="needs its buckets named"):
        DitTask(make_source(), SETTINGS, PlanSettings(capacity=20))
    with pytest.raises(UsageError, match="caption_dropout"):
        make_task(caption_dropout=1.5)
    with pytest.raises(UsageError, match="loss_norm"):
        make_task(loss_norm="mean")
    with pytest.raises(UsageError, match="needs a CUDA device"):
        make_task(attention_backend="varlen")
