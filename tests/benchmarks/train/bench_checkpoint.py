"""How long the steps stand still for a checkpoint: written in the background against written at once.

    python tests/benchmarks/train/bench_checkpoint.py [--width 512 --depth 6 --rounds 5]

Both sides save the same training (weights, average, moments) in turn; also what the file system alone needs for as many
bytes in one file, flushed. Medians, and their ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import torch
from torch import nn

from train.checkpoint import step_folder as checkpoint
from train.checkpoint.async_checkpointer import Saver
from train.engine.ema import WeightAverage
from train.engine.optimizer import apply_step, build_optimizer
from train.engine.train_state import TrainingState


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
    tensors = TrainingState(model, optimizer, WeightAverage(model, 0.9)).tensors()
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    at_once, standing, whole, plain = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(os.path.join(folder, "background"), keep=1, is_sharded=False)
        for step in range(1, options.rounds + 1):
            named = {"step": step, "config": {}, "state": {}}
            at_once.append(
                seconds(checkpoint.write_tensors, os.path.join(folder, "a"), tensors=tensors, keep=1, **named)
            )
            start = time.perf_counter()
            standing.append(seconds(saver.save, tensors, **named))
            saver.wait()
            whole.append(time.perf_counter() - start)
            plain.append(seconds(write_plainly, os.path.join(folder, "plain"), num_bytes))
    at_once_s, standing_s, whole_s, plain_s = map(statistics.median, (at_once, standing, whole, plain))
    print(f"{num_bytes / 1e6:.0f} MB, medians of {options.rounds}")
    print(f"steps stand still, background / at once: {standing_s / at_once_s:.3f}")
    print(f"until it is on disk, background / at once: {whole_s / at_once_s:.2f}")
    print(f"at once / the same bytes written plainly: {at_once_s / plain_s:.2f}")


if __name__ == "__main__":
    main()
