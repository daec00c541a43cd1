"""Asynchronous checkpointing: what is saved, when it blocks, and where its errors appear."""

from __future__ import annotations

import threading

import pytest
import torch

from train.checkpoint import async_checkpointer, step_folder
from train.checkpoint.async_checkpointer import AsyncCheckpointer


def save(checkpointer: AsyncCheckpointer, tensor: torch.Tensor, step: int) -> None:
    checkpointer.save({"model.safetensors/w": tensor}, step=step, config={"task": "toy"}, state={"skipped": 0})


@pytest.fixture
def disk(monkeypatch):
    """An event without which no checkpoint is written: `disk.set()` unblocks them."""
    disk, write = threading.Event(), step_folder.write

    def write_when_allowed(*args, **kwargs):
        assert disk.wait(timeout=60)
        return write(*args, **kwargs)

    monkeypatch.setattr(async_checkpointer.step_folder, "write", write_when_allowed)
    yield disk
    disk.set()


def test_training_may_change_the_weights_while_they_are_written(tmp_path, disk):
    checkpointer = AsyncCheckpointer(str(tmp_path), keep_last=2, is_sharded=False)
    weights = torch.arange(4.0)
    save(checkpointer, weights, 5)
    weights += 100
    assert step_folder.newest(str(tmp_path)) is None, "nothing is visible before it is complete"
    disk.set()
    checkpointer.wait()
    assert torch.equal(step_folder.load_model(str(tmp_path))[1]["w"], torch.arange(4.0))


def test_a_save_waits_for_the_previous_one_and_old_checkpoints_go(tmp_path):
    checkpointer = AsyncCheckpointer(str(tmp_path), keep_last=2, is_sharded=False)
    for step in (1, 2, 3):
        save(checkpointer, torch.full((3,), float(step)), step)
    checkpointer.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003"]
    for step in (2, 3):
        _, weights = step_folder.load_model(str(tmp_path / f"step-{step:06d}"))
        assert (weights["w"] == step).all(), "buffers are shared between saves, values are not"


def test_tensors_may_change_shape_between_saves(tmp_path):
    checkpointer = AsyncCheckpointer(str(tmp_path), keep_last=1, is_sharded=False)
    for step, size in ((1, 3), (2, 5)):
        save(checkpointer, torch.ones(size), step)
    checkpointer.wait()
    assert step_folder.load_model(str(tmp_path))[1]["w"].shape == (5,)


@pytest.mark.parametrize("next_call", ["save", "wait"])
def test_an_error_of_a_save_is_raised_once_by_the_next_call(tmp_path, monkeypatch, next_call):
    checkpointer = AsyncCheckpointer(str(tmp_path), keep_last=1, is_sharded=False)

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(async_checkpointer.step_folder, "write", full)
        save(checkpointer, torch.ones(2), 1)
        with pytest.raises(OSError, match="No space left"):
            save(checkpointer, torch.ones(2), 2) if next_call == "save" else checkpointer.wait()
    save(checkpointer, torch.ones(2), 3)
    checkpointer.wait()
    assert step_folder.find(str(tmp_path)).step == 3


def test_close_lets_a_running_save_finish(tmp_path, disk):
    checkpointer = AsyncCheckpointer(str(tmp_path), keep_last=1, is_sharded=False)
    save(checkpointer, torch.ones(2), 7)
    threading.Timer(0.2, disk.set).start()
    checkpointer.close()
    assert step_folder.find(str(tmp_path)).step == 7


def test_close_gives_up_on_a_save_that_cannot_finish(tmp_path, monkeypatch, disk):
    monkeypatch.setattr(async_checkpointer, "CLOSE_TIMEOUT_SECONDS", 0.1)
    checkpointer = AsyncCheckpointer(str(tmp_path), keep_last=1, is_sharded=False)
    save(checkpointer, torch.ones(2), 7)
    checkpointer.close()
    assert step_folder.newest(str(tmp_path)) is None
    disk.set()
    checkpointer.wait()


def test_without_sharding_only_rank_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(async_checkpointer, "rank", lambda: 1)
    checkpointer = AsyncCheckpointer(str(tmp_path), keep_last=1, is_sharded=False)
    save(checkpointer, torch.ones(2), 7)
    checkpointer.wait()
    assert list(tmp_path.iterdir()) == []
