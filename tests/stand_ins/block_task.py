"""A toy model with `blocks`, a task with the same steps on any number of ranks, and functions that test ranks run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from train.engine.settings import TrainerSettings
from train.engine.task import LossParts
from train.engine.trainer import TrainResult, train
from train.parallel import process_group


class BlockModel(nn.Module):
    """Widths that two ranks cannot split evenly, a frozen weight, a buffer, and a layer that few batches use."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.inp = nn.Linear(4, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(2))
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(width, 1)
        self.rare = nn.Embedding(3, 1)
        self.blocks[0][0].weight.requires_grad_(False)
        self.register_buffer("num_calls", torch.zeros(()))

    def forward(self, x_BC: Tensor, is_rare: bool) -> Tensor:
        if self.training:
            self.num_calls += 1
        h = self.inp(x_BC)
        for block in self.blocks:
            h = h + block(h)
        y = self.out(self.drop(h))
        return y + self.rare.weight[1] if is_rare else y


class BlockTask:
    """Batches of unequal size, whose content depends only on the global batch number."""

    name = "blocks"

    def __init__(self, *, bad_batches: tuple[int, ...] = (), die_at_batch: int | None = None) -> None:
        torch.manual_seed(process_group.rank())  # ranks differ on purpose: rank 0's weights must be broadcast
        self.model: nn.Module = BlockModel()
        self.config: dict[str, Any] = {"width": 7}
        self.bad_batches, self.die_at_batch = bad_batches, die_at_batch

    def batches(self, start_step: int, rank: int, num_ranks: int) -> Iterator[tuple[Tensor, int]]:
        number = start_step
        while True:
            global_number = number * num_ranks + rank
            generator = torch.Generator().manual_seed(global_number)
            yield torch.randn((5, 3, 2, 1)[global_number % 4], 4, generator=generator), global_number
            number += 1

    def loss(self, batch: tuple[Tensor, int], *, step: int, seed: int) -> LossParts:
        x_BC, global_number = batch
        if global_number == self.die_at_batch:
            os.kill(os.getpid(), signal.SIGKILL)
        error_B = (self.model(x_BC, global_number % 4 == 0) - x_BC.sum(1, keepdim=True)).square()
        factor = float("nan") if global_number in self.bad_batches else 1.0
        return LossParts(
            loss_sum=error_B.sum() * factor,
            weight=len(x_BC),
            logs={"rows": len(x_BC)},
            num_tokens=len(x_BC),
            capacity_tokens=5,
            flops=1e6,
        )

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        assert not model.training
        return {"output": float(model(torch.ones(2, 4), True).sum())}


def settings(**changes: Any) -> TrainerSettings:
    return TrainerSettings(
        **{
            "num_steps": 12, "accumulation": 4, "lr": 1e-2, "warmup_steps": 2, "checkpoint_every": 2, "log_every": 2,
            "validate_every": 6, "max_grad_norm": 0.5, "ema_decay": 0.9, "device": "cpu",
        }
        | changes
    )  # fmt: skip


def train_blocks(folder: str, changes: dict[str, Any], **task: Any) -> TrainResult:
    return train(BlockTask(**task), settings(**changes), folder, progress=False)


def train_several(runs: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> None:
    """Train several runs, one after the other, in one process group."""
    with process_group.process_group("cpu"):
        for folder, changes, task in runs:
            train_blocks(folder, changes, **task)


def train_until_killed(folder: str, changes: dict[str, Any], die_at_batch: int) -> None:
    train_blocks(folder, changes, die_at_batch=die_at_batch)


def train_until_killed_in_save(folder: str, changes: dict[str, Any], step: int) -> None:
    """Rank 1 is killed after writing its first shard of that step."""
    pwrite = os.pwrite

    def write_and_die(handle: int, data: memoryview, offset_bytes: int) -> int:
        written = pwrite(handle, data, offset_bytes)
        if process_group.rank() == 1 and f"step-{step:06d}." in os.readlink(f"/proc/self/fd/{handle}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    os.pwrite = write_and_die
    train_blocks(folder, changes)
