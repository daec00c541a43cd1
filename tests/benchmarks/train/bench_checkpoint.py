"""How long training is blocked by a checkpoint: asynchronous against synchronous saving.

    python tests/benchmarks/train/bench_checkpoint.py [--width 512 --depth 6 --rounds 5]

Both save the same state (weights, EMA, Adam moments) in turn; the baseline is writing and flushing as many bytes to one
file. Prints medians and their ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import torch
from torch import nn

from train.checkpoint import step_folder
from train.checkpoint.async_checkpointer import AsyncCheckpointer
from train.checkpoint.safetensors_storage import shard_of
from train.engine.ema import EMA
from train.engine.optimizer import apply_step, build_optimizer
from train.engine.train_state import TrainState


def seconds(function, *arguments, **named) -> float:
    start = time.perf_counter()
    function(*arguments, **named)
    return time.perf_counter() - start


def write_plainly(path: str, num_bytes: int) -> None:
    data = bytes(1 << 20)
    with open(path, "wb") as file:
        for _ in range(num_bytes >> 20):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = nn.Sequential(*(nn.Linear(options.width, 12 * options.width) for _ in range(options.depth)))
    optimizer = build_optimizer(model, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.99))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    apply_step(optimizer, skip=torch.zeros(()))
    tensors = TrainState(model, optimizer, EMA(model, 0.9)).tensors()
    num_bytes = sum(shard_of(tensor).local.nbytes for tensor in tensors.values())
    synchronous, blocked, whole, plain = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = AsyncCheckpointer(os.path.join(folder, "asynchronous"), keep_last=1, is_sharded=False)
        for step in range(1, options.rounds + 1):
            named = {"step": step, "config": {}, "state": {}}
            synchronous.append(
                seconds(step_folder.write, os.path.join(folder, "a"), tensors=tensors, keep_last=1, **named)
            )
            start = time.perf_counter()
            blocked.append(seconds(checkpointer.save, tensors, **named))
            checkpointer.wait()
            whole.append(time.perf_counter() - start)
            plain.append(seconds(write_plainly, os.path.join(folder, "plain"), num_bytes))
    synchronous_s, blocked_s, whole_s, plain_s = map(statistics.median, (synchronous, blocked, whole, plain))
    print(f"{num_bytes / 1e6:.0f} MB, medians of {options.rounds}")
    print(f"training blocked, asynchronous / synchronous: {blocked_s / synchronous_s:.3f}")
    print(f"until it is on disk, asynchronous / synchronous: {whole_s / synchronous_s:.2f}")
    print(f"synchronous / the same bytes written plainly: {synchronous_s / plain_s:.2f}")


if __name__ == "__main__":
    main()
