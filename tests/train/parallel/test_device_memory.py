from __future__ import annotations

import pytest
import torch

from recaption.errors import UsageError
from tests.stand_ins.block_task import BlockTask, settings
from train.engine.batch_numbers import StepBatches
from train.engine.trainer import train
from train.parallel import device_memory


class Heavy(BlockTask):
    def activation_bytes(self, precision, *, activation_checkpointing):
        return 10**13 if precision == "fp32" else 0


def test_state_is_20_bytes_per_trainable_weight_and_4_per_frozen_one():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False))
    model[1].requires_grad_(False)
    assert device_memory.state_bytes(model, has_ema=True) == 9 * 20 + 9 * 4
    assert device_memory.state_bytes(model, has_ema=False) == 9 * 16 + 9 * 4


def test_sharded_state_is_a_shard_and_two_gathered_blocks():
    model = BlockTask().model
    replica = device_memory.estimate(model, has_ema=True)
    shard = device_memory.estimate(model, num_shards=4, is_sharded=True, has_ema=True)
    assert shard.state_bytes == -(-replica.state_bytes // 4) + 2 * 2 * 4 * (7 * 7 + 7)


def test_a_replica_holds_autocast_copies_a_few_flat_gradients_and_the_frozen_networks(monkeypatch):
    model = BlockTask().model
    num_weights = sum(p.numel() for p in model.parameters())
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    alone = device_memory.estimate(model, has_ema=True)
    assert (
        device_memory.estimate(model, has_ema=True, precision="bf16").state_bytes == alone.state_bytes + 2 * num_weights
    )
    of_two = device_memory.estimate(model, has_ema=True, num_shards=2)
    assert of_two.state_bytes == alone.state_bytes + 4 * num_trained
    monkeypatch.setattr(device_memory, "MAX_FLAT_BYTES", 100)
    assert device_memory.estimate(model, has_ema=True, num_shards=2).state_bytes == alone.state_bytes + 100
    assert device_memory.estimate(model, has_ema=True, frozen_bytes=7).total_bytes == alone.total_bytes + 7


def test_a_gpu_with_too_little_memory_is_refused_with_what_to_change(monkeypatch):
    monkeypatch.setattr(device_memory, "device_bytes", lambda device: 80 * 10**9)
    needed = device_memory.estimate(BlockTask().model, has_ema=True, activations_bytes=10**11)
    with pytest.raises(
        UsageError,
        match=r"about 100 GB .* cuda has 80 GB: use a smaller .*activation-checkpointing, parallel fsdp",
    ):
        device_memory.check_fits(needed, torch.device("cuda"))
    fits = device_memory.estimate(BlockTask().model, has_ema=True, activations_bytes=10**10)
    device_memory.check_fits(fits, torch.device("cuda"))


def test_a_cpu_with_too_little_memory_is_warned_about_before_the_run(tmp_path, caplog):
    train(Heavy(), settings(num_steps=1, accumulation=1), str(tmp_path), progress=False)
    assert "activations), cpu has" in caplog.text
    caplog.clear()
    train(BlockTask(), settings(num_steps=1, accumulation=1), str(tmp_path / "small"), progress=False)
    assert "activations" not in caplog.text


def test_global_batch_size_stays_when_the_number_of_ranks_changes(caplog):
    one = StepBatches(num_ranks=1, accumulation=4)
    assert list(one.take_step()) == [0, 1, 2, 3]
    two = StepBatches(num_ranks=2, accumulation=4)
    two.load_state_dict(one.state_dict(), "here")
    assert list(two.take_step()) == [2, 3]
    assert [two.global_number(number, rank) for number in (2, 3) for rank in (0, 1)] == [4, 5, 6, 7]
    three = StepBatches(num_ranks=3, accumulation=4)
    three.load_state_dict(two.state_dict() | {"accumulation": 4}, "here")
    assert "4 batches, which 3 ranks cannot share evenly" in caplog.text
    assert list(three.take_step()) == [3, 4, 5, 6], "no batch is read twice: 8 were read, 9 starts the next full round"
    with pytest.raises(UsageError, match=r"here was trained with 4 batches per step \(accumulation = 4\), now it is 3"):
        StepBatches(num_ranks=1, accumulation=3).load_state_dict(one.state_dict(), "here")
