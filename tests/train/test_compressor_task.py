from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from packing.buckets import Bucket
from packing.shards import ShardClip, build_index, video_entry, write_shard
from recaption.errors import ErrorBudgetError, UsageError
from recaption.run_folder import RunFolder
from recaption.scenes import render
from recaption.video_io import encode_video
from train import compressors
from train.compressor_task import CompressorSettings, CompressorTask
from train.metrics import read_lines
from train.trainer import TrainerSettings, train

SMALL = {
    "width": 8, "latent_channels": 8, "batch_size": 2, "num_frames": 5, "height_px": 32, "width_px": 32,
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


def numbered(task: CompressorTask, start: int, count: int, rank: int = 0, num_ranks: int = 1) -> list[torch.Tensor]:
    return list(itertools.islice(task.batches(start, rank, num_ranks), count))


def test_loss_falls_and_the_checkpoint_opens(tmp_path):
    """On two scenes that it sees again and again; better on unseen ones takes hours, not seconds."""
    task = CompressorTask(CompressorSettings(**(SMALL | {"num_scenes": 2})))
    trainer = TrainerSettings(num_steps=40, lr=1e-2, warmup_steps=5, ema_decay=0.9, device="cpu")
    result = train(task, trainer, str(tmp_path), progress=False)
    losses = [line["loss"] for line in read_lines(str(tmp_path / "metrics.jsonl"))]
    assert losses[-1] < 0.8 * losses[0]
    assert result.validation["psnr_db"] > 15
    assert 0.5 < result.validation["latent_rms"] < 2
    compressor = compressors.load(str(tmp_path))
    pixels = next(task._held_out(torch.device("cpu")))
    assert compressor.decode(compressor.encode(pixels)).shape == pixels.shape
    assert compressors.load(result.checkpoint).name == compressor.name


def test_batch_of_a_number_is_the_same_however_we_got_there():
    task = CompressorTask(CompressorSettings(**SMALL))
    all_at_once = numbered(task, 0, 6)
    assert torch.equal(numbered(task, 4, 1)[0], all_at_once[4])
    assert torch.equal(numbered(CompressorTask(CompressorSettings(**SMALL)), 4, 1)[0], all_at_once[4])
    # Two ranks see at batch 2 what one rank sees at batches 4 and 5.
    for rank in range(2):
        assert torch.equal(numbered(task, 2, 1, rank, 2)[0], all_at_once[4 + rank])


def test_every_clip_comes_once_per_epoch():
    task = CompressorTask(CompressorSettings(**SMALL))
    for epoch in range(2):
        clips = torch.cat(numbered(task, 3 * epoch, 3)).flatten(1)
        assert len(torch.unique(clips, dim=0)) == 6


def test_clips_of_a_run_are_cut_to_size_and_some_held_out(tmp_path):
    run = run_with_clips(tmp_path, 4)
    task = CompressorTask(CompressorSettings(**SMALL), run)
    assert (task.source.num_training, task.source.num_held_out) == (3, 1)
    (batch,) = numbered(task, 0, 1)
    assert tuple(batch.shape) == (2, 5, 32, 32, 3)
    assert batch.dtype == torch.uint8
    assert task.validate(task.model.eval(), 0)["psnr_db"] > 10
    video, fps = task.sample(task.model, 0)["reconstruction"]
    assert (video.shape, video.dtype, fps) == ((5, 32, 64, 3), np.uint8, 8)


def test_one_clip_alone_is_trained_on_and_looked_at(tmp_path):
    task = CompressorTask(CompressorSettings(**SMALL), run_with_clips(tmp_path, 1))
    assert (task.source.num_training, task.source.num_held_out) == (1, 1)


def test_damaged_clip_is_replaced_and_said_all_damaged_is_fatal(tmp_path, caplog):
    run = run_with_clips(tmp_path, 4)
    task = CompressorTask(CompressorSettings(**SMALL), run)
    doomed = task.source.training[1]
    tar = bytearray(run.read_bytes(f"{SHARD}.tar"))
    middle = doomed.offset_bytes + 1500
    tar[middle : middle + 64] = bytes(64)
    run.write_bytes(f"{SHARD}.tar", bytes(tar))
    with caplog.at_level(logging.WARNING):
        assert len(numbered(task, 0, 3)) == 3
    assert doomed.clip_id in caplog.text
    run.write_bytes(f"{SHARD}.tar", b"")
    with pytest.raises(ErrorBudgetError, match="clips in a row cannot be read"):
        numbered(CompressorTask(CompressorSettings(**SMALL), run), 0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 8}, r"takes 4k\+1 frames"),
        ({"width_px": 36}, "multiples of 8 px"),
        ({"width": 12}, "width is a multiple of 8"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"latent_channels": 1}, "choose 4 to 193"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        CompressorTask(CompressorSettings(**(SMALL | change)))


def test_runs_without_fitting_clips_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no index\.parquet; run `recaption shard"):
        CompressorTask(CompressorSettings(**SMALL), RunFolder(str(tmp_path / "empty")))
    run = run_with_clips(tmp_path, 1)
    with pytest.raises(UsageError, match=r"none of the 1 clips .* has 17 frames of 32x32 px"):
        CompressorTask(CompressorSettings(**(SMALL | {"num_frames": 17})), run)
