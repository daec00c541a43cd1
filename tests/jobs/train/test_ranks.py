"""`recaption train --num-workers 2`: ranks of Ray Train, one of which dies during training."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest
import torch

from jobs.cluster.cluster import Cluster
from jobs.recipe.presets import quickstart
from jobs.train.train import train_model
from recaption.errors import CheckpointMismatchError, UsageError
from tests.stand_ins.block_task import train_blocks
from train.captioner.task import CaptionerSettings
from train.checkpoint import step_folder as checkpoint
from train.engine.metrics import read_lines
from train.engine.settings import TrainerSettings
from train.parallel import process_group as distributed
from train.parallel.collectives import sum_over_ranks


def recipe(num_steps: int = 4, batch_size: int = 2, **captioner):
    settings = CaptionerSettings(
        frame_px=32, num_frames=2, vision_width=32, vision_layers=1, num_queries=5, width=32, text_layers=1,
        decoder_layers=1, head_width=16, batch_size=batch_size, num_workers=0, num_validation_scenes=1, **captioner,
    )  # fmt: skip
    trainer = TrainerSettings(
        num_steps=num_steps, lr=1e-3, warmup_steps=1, schedule="constant", log_every=1, checkpoint_every=2, device="cpu",
        ema_decay=0.5,
    )  # fmt: skip
    training = dataclasses.replace(quickstart().train_captioner, captioner=settings, trainer=trainer)
    return dataclasses.replace(quickstart(), train_captioner=training)


@pytest.fixture(scope="module")
def cluster():
    with Cluster(num_workers=2, progress=False) as cluster:
        yield cluster


def rank_and_sum(marker: str) -> list[int]:
    """Ranks and their sum over the process group; the second rank dies at its first attempt."""
    if distributed.rank() == 1 and not os.path.exists(marker):
        Path(marker).touch()
        time.sleep(3)
        os._exit(1)
    total = sum_over_ranks(torch.tensor([distributed.rank() + 1.0]))
    return [distributed.rank(), distributed.num_ranks(), int(total.item())]


def raise_usage_error() -> None:
    raise UsageError("no such thing")


@pytest.mark.slow
def test_ranks_that_die_are_restarted(cluster, tmp_path):
    found = cluster.run_training(rank_and_sum, str(tmp_path / "died"), num_workers=2, scratch=str(tmp_path / "ray"))
    assert found == [0, 2, 3]
    assert (tmp_path / "died").exists()
    assert not (tmp_path / "ray").exists()


@pytest.mark.slow
def test_a_usage_error_is_raised_without_a_restart(cluster, tmp_path):
    with pytest.raises(UsageError, match="no such thing"):
        cluster.run_training(raise_usage_error, num_workers=2, scratch=str(tmp_path / "ray"))


def train_and_die_once(folder: str, parallel: str, marker: str) -> int | None:
    """The step resumed from; the second rank dies in the tenth step of the first attempt."""
    will_die = distributed.rank() == 1 and not os.path.exists(marker)
    if will_die:
        Path(marker).touch()
    changes = {"accumulation": 2, "parallel": parallel}
    return train_blocks(folder, changes, die_at=4 * 9 + 1 if will_die else None).resumed_from


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_training_with_a_dead_rank_ends_with_the_same_weights(cluster, tmp_path, parallel):
    folder = str(tmp_path / "train")
    resumed_from = cluster.run_training(
        train_and_die_once, folder, parallel, str(tmp_path / "died"), num_workers=2, scratch=str(tmp_path / "ray")
    )
    assert resumed_from in (6, 8)
    train_blocks(str(tmp_path / "uninterrupted"), {})
    for ema in (False, True):
        _, one = checkpoint.load_model(str(tmp_path / "uninterrupted"), ema=ema)
        _, two = checkpoint.load_model(folder, ema=ema)
        for name in one.keys() - {"num_calls"}:
            torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_ranks_of_ray_train_equal_one_rank_of_twice_the_batch(cluster, tmp_path):
    two = train_model("captioner", str(tmp_path / "run"), "two", recipe(), cluster, num_ranks=2, progress=False)
    here = Cluster(progress=False)
    train_model("captioner", str(tmp_path / "run"), "one", recipe(batch_size=4), here, progress=False)
    assert two["steps"] == 4
    one_line, two_line = (
        read_lines(str(tmp_path / "run" / "train" / name / "metrics.jsonl"))[0] for name in ("one", "two")
    )
    assert two_line["loss"] == pytest.approx(one_line["loss"], rel=1e-4)
    assert two_line["grad_norm"] == pytest.approx(one_line["grad_norm"], rel=1e-3)
    resumed = train_model(
        "captioner", str(tmp_path / "run"), "two", recipe(num_steps=6), cluster, num_ranks=2, progress=False
    )
    assert resumed["resumed_from"] == 4
    assert checkpoint.find(str(tmp_path / "run" / "train" / "two")).step == 6
    with pytest.raises(UsageError, match="already holds checkpoints"):
        train_model(
            "captioner", str(tmp_path / "run"), "two", recipe(), cluster, num_ranks=2, resume=False, progress=False
        )
    with pytest.raises((CheckpointMismatchError, Exception), match="other settings"):
        train_model(
            "captioner", str(tmp_path / "run"), "two", recipe(batch_size=3), cluster, num_ranks=2, progress=False
        )


def test_num_workers_under_torchrun_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="leave it out under torchrun"):
        train_model("captioner", str(tmp_path), "x", recipe(), Cluster(num_workers=2), num_ranks=2, progress=False)
