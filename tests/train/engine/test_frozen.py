"""Frozen networks beside a model, and trainings of a part of a model over a frozen base."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from recaption.errors import CheckpointMismatchError
from recaption.weights import weights_hash
from tests.stand_ins.block_task import BlockTask, settings
from tests.stand_ins.ranks import exit_codes, start_ranks
from train.checkpoint import step_folder
from train.checkpoint.trained_part import FrozenBase, trained_part, with_base
from train.engine.trainer import train
from train.parallel import process_group

FROZEN = "blocks.0.0.weight"
"""The weight that BlockModel does not train."""
BASE = FrozenBase(spec="somewhere", weights_hash="0123456789ab")


class PartTask(BlockTask):
    """Trains the part of its model that is not frozen, with a teacher beside it."""

    def __init__(self, base: FrozenBase | None = BASE) -> None:
        super().__init__()
        self.base = base
        self.config |= {"base": None if base is None else base.config}
        self.teacher = nn.Linear(4, 1)

    def frozen_networks(self):
        return (self.teacher,)

    def frozen_bytes(self):
        return 0

    def loss(self, batch, *, step, seed):
        assert not self.teacher.training
        assert not any(parameter.requires_grad for parameter in self.teacher.parameters())
        return super().loss(batch, step=step, seed=seed)


def train_part(folder: str, num_steps: int, base: FrozenBase | None = BASE, **changes):
    """Returns the task and the newest checkpoint."""
    task = PartTask(base)
    train(task, settings(num_steps=num_steps, schedule="constant", **changes), folder, progress=False)
    return task, step_folder.find(folder)


def train_part_on_ranks(folder: str) -> None:
    with process_group.process_group("cpu"):
        train_part(folder, 4, parallel="fsdp", accumulation=2)


def test_a_checkpoint_holds_the_trained_part_alone(tmp_path):
    task, checkpoint = train_part(str(tmp_path / "part"), 4)
    whole, everything = train_part(str(tmp_path / "whole"), 4, base=None)
    assert FROZEN in everything.weights(ema=False)
    for ema in (False, True):
        saved = checkpoint.weights(ema=ema)
        assert saved.keys() == trained_part(task.model.state_dict(keep_vars=True)).keys()
        assert FROZEN not in saved
        assert all(torch.equal(saved[name], everything.weights(ema=ema)[name]) for name in saved)
    sizes = [os.path.getsize(os.path.join(one.path, step_folder.MODEL_FILE)) for one in (checkpoint, everything)]
    assert sizes[1] - sizes[0] >= whole.model.blocks[0][0].weight.nbytes


def test_a_resume_over_a_frozen_base_is_exact_and_another_base_is_refused(tmp_path):
    train_part(str(tmp_path / "part"), 4)
    _, resumed = train_part(str(tmp_path / "part"), 8)
    _, straight = train_part(str(tmp_path / "straight"), 8)
    for ema in (False, True):
        expected = straight.weights(ema=ema)
        assert all(torch.equal(value, expected[name]) for name, value in resumed.weights(ema=ema).items())
    other = FrozenBase(spec="somewhere", weights_hash="ba9876543210")
    with pytest.raises(CheckpointMismatchError, match=r"base.weights_hash: '0123456789ab' there, 'ba9876543210' now"):
        train_part(str(tmp_path / "part"), 12, base=other)


def test_ranks_write_the_same_part_when_sharded(tmp_path):
    assert exit_codes(start_ranks(train_part_on_ranks, str(tmp_path / "sharded"))) == [0, 0]
    _, alone = train_part(str(tmp_path / "alone"), 4)
    sharded = step_folder.find(str(tmp_path / "sharded"))
    expected = alone.weights(ema=True)
    found = sharded.weights(ema=True)
    assert found.keys() == expected.keys()
    for name in found.keys() - {"num_calls"}:  # a buffer of each rank's own calls
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_the_base_is_put_under_the_part_again_and_checked():
    base, part = {"a": torch.ones(2), "b": torch.zeros(2)}, {"c": torch.ones(1)}
    config = {"base": FrozenBase(spec="x", weights_hash=weights_hash(base)).config}
    assert with_base({}, part, "here") == part
    assert with_base(config, part, "here", read_base=lambda spec: base).keys() == {"a", "b", "c"}
    changed = base | {"a": torch.zeros(2)}
    with pytest.raises(CheckpointMismatchError, match=r"here was trained over x with weights .*put the old ones back"):
        with_base(config, part, "here", read_base=lambda spec: changed)
