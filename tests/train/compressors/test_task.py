from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from packing.buckets import Bucket
from packing.shards.index import build_index
from packing.shards.plan import ShardClip
from packing.shards.samples import video_entry
from packing.shards.write import write_shard
from recaption.errors import ErrorBudgetError, UsageError
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import render
from recaption.video_io.writer import encode_video
from train.compressors.loss import CompressorLossSettings, adversarial_loss
from train.compressors.registry import load
from train.compressors.settings import CompressorSettings
from train.compressors.task import CompressorTask
from train.engine.metrics import read_lines
from train.engine.settings import TrainerSettings
from train.engine.trainer import train

SMALL = {
    "width": 8, "latent_channels": 8, "blocks": (1, 0), "decoder_blocks": (1, 0), "batch_size": 2,
    "codebook_size": 16, "num_codebooks": 4, "num_frames": 5, "height_px": 32, "width_px": 32,
    "num_scenes": 6, "num_validation_scenes": 2,
}  # fmt: skip
SHARD = "shards/9f-48x64-8fps/000000"


def run_with_clips(folder: Path, num_clips: int) -> RunFolder:
    run = RunFolder(str(folder))
    entries = []
    for number in range(num_clips):
        frames = render(number, num_frames=9, height_px=48, width_px=64, fps=8).frames_THWC
        clip = ShardClip(
            clip_id=f"{number:016x}-0000000-0000009", uri="", start_frame=0, end_frame=9, start_seconds=0,
            end_seconds=9 / 8, width_px=64, height_px=48, caption="",
        )  # fmt: skip
        entries.append(video_entry(clip, Bucket(9, 48, 64, 8), encode_video(frames, fps=8), num_latent_tokens=1))
    write_shard(run, SHARD, entries, plan_hash="p")
    build_index(run)
    return run


def batches_from(task: CompressorTask, start: int, count: int, rank: int = 0, num_ranks: int = 1) -> list[torch.Tensor]:
    return list(itertools.islice(task.batches(start, rank, num_ranks), count))


def test_loss_falls_and_the_checkpoint_opens(tmp_path):
    """On two training scenes; on unseen ones a decibel takes minutes, not seconds."""
    task = CompressorTask(CompressorSettings(**(SMALL | {"num_scenes": 2})))
    trainer = TrainerSettings(num_steps=40, lr=1e-2, warmup_steps=5, ema_decay=0.9, device="cpu")
    result = train(task, trainer, str(tmp_path), progress=False)
    losses = [line["loss"] for line in read_lines(str(tmp_path / "metrics.jsonl"))]
    assert losses[-1] < 0.8 * losses[0]
    assert result.validation["psnr_db"] > 15
    assert 0.5 < result.validation["latent_rms"] < 2
    compressor = load(str(tmp_path))
    pixels = next(task._held_out(torch.device("cpu")))
    assert compressor.decode(compressor.encode(pixels)).shape == pixels.shape
    assert load(result.checkpoint).name == compressor.name


def test_a_batch_depends_on_its_number_alone():
    task = CompressorTask(CompressorSettings(**SMALL))
    all_at_once = batches_from(task, 0, 6)
    assert torch.equal(batches_from(task, 4, 1)[0], all_at_once[4])
    assert torch.equal(batches_from(CompressorTask(CompressorSettings(**SMALL)), 4, 1)[0], all_at_once[4])
    # Batch 2 of two ranks is batches 4 and 5 of one rank.
    for rank in range(2):
        assert torch.equal(batches_from(task, 2, 1, rank, 2)[0], all_at_once[4 + rank])


def test_every_clip_comes_once_per_epoch():
    task = CompressorTask(CompressorSettings(**SMALL))
    for epoch in range(2):
        clips = torch.cat(batches_from(task, 3 * epoch, 3)).flatten(1)
        assert len(torch.unique(clips, dim=0)) == 6


def test_clips_of_a_run_are_cropped_and_some_held_out(tmp_path):
    run = run_with_clips(tmp_path, 4)
    task = CompressorTask(CompressorSettings(**SMALL), run)
    assert (task.source.num_training, task.source.num_held_out) == (3, 1)
    (batch,) = batches_from(task, 0, 1)
    assert tuple(batch.shape) == (2, 5, 32, 32, 3)
    assert batch.dtype == torch.uint8
    assert task.validate(task.model.eval(), 0)["psnr_db"] > 10
    video, fps = task.sample(task.model, 0)["reconstruction"]
    assert (video.shape, video.dtype, fps) == ((5, 32, 64, 3), np.uint8, 8)


def test_a_single_clip_is_both_trained_on_and_held_out(tmp_path):
    task = CompressorTask(CompressorSettings(**SMALL), run_with_clips(tmp_path, 1))
    assert (task.source.num_training, task.source.num_held_out) == (1, 1)


def test_a_damaged_clip_is_replaced_with_a_warning_and_all_damaged_is_an_error(tmp_path, caplog):
    run = run_with_clips(tmp_path, 4)
    task = CompressorTask(CompressorSettings(**SMALL), run)
    damaged = task.source.training[1]
    tar = bytearray(run.read_bytes(f"{SHARD}.tar"))
    middle = damaged.offset_bytes + 1500
    tar[middle : middle + 64] = bytes(64)
    run.write_bytes(f"{SHARD}.tar", bytes(tar))
    with caplog.at_level(logging.WARNING):
        assert len(batches_from(task, 0, 3)) == 3
    assert damaged.clip_id in caplog.text
    run.write_bytes(f"{SHARD}.tar", b"")
    with pytest.raises(ErrorBudgetError, match="clips in a row cannot be read"):
        batches_from(CompressorTask(CompressorSettings(**SMALL), run), 0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 8}, r"takes 4k\+1 frames"),
        ({"width_px": 36}, "multiples of 8 px"),
        ({"width": 4}, "the width is at least 8"),
        ({"kind": "temporal"}, "unknown compressor kind 'temporal'; choose from: spatial, causal3d"),
        ({"bottleneck": "vae"}, "unknown bottleneck 'vae'; choose from: kl, vq"),
        ({"bottleneck": "vq", "num_codebooks": 3}, "8 channels cannot have codebook_size = 16, num_codebooks = 3"),
        ({"loss": CompressorLossSettings(kl_weight=-1)}, "kl_weight = -1 is negative"),
        ({"loss": CompressorLossSettings(discriminator_width=6)}, "must be a multiple of 4"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"latent_channels": 1}, "choose 4 to 193"),
    ],
)
def test_invalid_settings_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        CompressorTask(CompressorSettings(**(SMALL | change)))


def test_runs_without_large_enough_clips_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no index\.parquet; run `recaption shard"):
        CompressorTask(CompressorSettings(**SMALL), RunFolder(str(tmp_path / "empty")))
    run = run_with_clips(tmp_path, 1)
    with pytest.raises(UsageError, match=r"none of the 1 clips .* has 17 frames of 32x32 px"):
        CompressorTask(CompressorSettings(**(SMALL | {"num_frames": 17})), run)


@pytest.mark.parametrize(("kind", "bottleneck"), [("causal3d", "vq"), ("spatial", "kl")])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path, kind, bottleneck):
    """Weights, codebooks, latent statistics, discriminator, and the EMA of all of them."""
    settings = CompressorSettings(
        **SMALL, kind=kind, bottleneck=bottleneck,
        loss=CompressorLossSettings(discriminator_weight=0.1, discriminator_start=2, discriminator_width=4),
    )  # fmt: skip
    trainer = TrainerSettings(
        num_steps=6, lr=1e-3, schedule="constant", warmup_steps=0, checkpoint_every=3, device="cpu"
    )
    train(CompressorTask(settings), trainer, str(tmp_path / "whole"), progress=False)
    train(CompressorTask(settings), replace(trainer, num_steps=3), str(tmp_path / "parts"), progress=False)
    resumed = train(CompressorTask(settings), trainer, str(tmp_path / "parts"), progress=False)
    assert resumed.resumed_from == 3
    for name in ("model", "ema"):
        path = f"checkpoints/step-000006/{name}.safetensors"
        assert (tmp_path / "whole" / path).read_bytes() == (tmp_path / "parts" / path).read_bytes()
    last = read_lines(str(tmp_path / "whole" / "metrics.jsonl"))[-1]
    assert {"log/discriminator", "log/adversarial"} <= last.keys()
    assert {"val/psnr_db", "val/ssim"} <= last.keys()
    if bottleneck == "vq":
        assert 0 < last["log/codes_used_share"] <= 1
        assert 1 <= last["log/code_perplexity"] <= 16


def test_codebooks_learn_and_no_code_stays_unused(tmp_path):
    settings = CompressorSettings(**SMALL | {"bottleneck": "vq", "num_scenes": 2})
    trainer = TrainerSettings(num_steps=30, lr=2e-3, warmup_steps=5, device="cpu", log_every=10)
    train(CompressorTask(settings), trainer, str(tmp_path), progress=False)
    lines = read_lines(str(tmp_path / "metrics.jsonl"))
    assert lines[-1]["loss"] < lines[1]["loss"]
    assert lines[-1]["log/codes_used_share"] > 0.9


def test_generator_and_discriminator_get_their_own_gradients():
    """From one backward pass, without leaking into each other."""
    task = CompressorTask(
        CompressorSettings(**SMALL, loss=CompressorLossSettings(discriminator_weight=1.0, discriminator_start=0))
    )
    model, discriminator = task.model, task.model.discriminator
    pixels = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    recon = model(pixels).pixels_BCTHW
    reconstruction_loss = (recon - pixels).abs().mean()
    parts = adversarial_loss(
        discriminator, pixels, recon, reconstruction_loss=reconstruction_loss, last_weight=model.decoder.conv_out.weight
    )
    expected_norm = torch.autograd.grad(reconstruction_loss, model.decoder.conv_out.weight, retain_graph=True)[0].norm()
    (parts.generator + parts.discriminator).backward()
    # At the last layer the generator's gradient has the norm of the reconstruction's.
    torch.testing.assert_close(model.decoder.conv_out.weight.grad.norm(), expected_norm, rtol=0.1, atol=1e-6)
    real, fake = (x.transpose(1, 2).flatten(0, 1) for x in (pixels, recon.detach()))
    hinge = 0.5 * (torch.relu(1 - discriminator(real)).mean() + torch.relu(1 + discriminator(fake)).mean())
    alone = torch.autograd.grad(hinge, list(discriminator.parameters()))
    for parameter, gradient in zip(discriminator.parameters(), alone):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_discriminator_starts_at_its_batch_and_is_not_loaded_with_the_compressor(tmp_path):
    settings = CompressorSettings(
        **SMALL, loss=CompressorLossSettings(discriminator_weight=0.1, discriminator_start=5, discriminator_width=4)
    )
    task = CompressorTask(settings)
    (batch,) = batches_from(task, 0, 1)
    assert "discriminator" not in task.loss(batch, step=4, seed=0).logs
    assert "discriminator" in task.loss(batch, step=5, seed=0).logs
    train(task, TrainerSettings(num_steps=1, device="cpu"), str(tmp_path), progress=False)
    assert not any("discriminator" in name for name, _ in load(str(tmp_path)).named_parameters())


def test_the_perceptual_loss_is_logged_and_reaches_the_decoder():
    settings = CompressorSettings(**SMALL, loss=CompressorLossSettings(perceptual_weight=1.0))
    task = CompressorTask(settings)
    (batch,) = batches_from(task, 0, 1)
    with_term = task.loss(batch, step=0, seed=0)
    assert float(with_term.logs["perceptual"]) > 0
    assert task.validate(task.model.eval(), 0)["perceptual"] > 0
    with_term.loss_sum.backward()
    gradient = task.model.decoder.conv_out.weight.grad.clone()
    without = CompressorTask(CompressorSettings(**SMALL))
    without.loss(batch, step=0, seed=0).loss_sum.backward()
    assert (gradient - without.model.decoder.conv_out.weight.grad).norm() > 0.01 * gradient.norm()
    assert not any("tower" in name for name, _ in task.model.named_parameters())
