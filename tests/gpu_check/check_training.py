"""A short training with a resume, what a step waits for, and memory against the estimate that a run is refused by."""

from __future__ import annotations

import shutil
from typing import Any
from unittest import mock

import short_training
import torch
from table import NOT_HERE, RIGHT, WRONG, Check, Row

from train.engine import trainer
from train.engine.metrics import read_lines
from train.parallel import device_memory

MAX_LOSS_DIFFERENCE = 0.02
"""Relative, between a resumed and an uninterrupted run: flash attention's backward adds in any order."""
FIRST_CHECKED_STEP = 2
"""Before it kernels are loaded and memory is pinned for the first time."""


def run(check: Check) -> None:
    check.one("training", lambda: _training(check))
    if check.is_cuda:
        check.one("a step waits for nothing", lambda: _without_waiting(check))
    else:
        check.rows.append(Row(check="a step waits for nothing", status=NOT_HERE, note="torch says so on a GPU only"))
    check.one("resume", lambda: _resume(check))


def _training(check: Check) -> Row:
    needed: list[device_memory.MemoryEstimate] = []
    check_fits = device_memory.check_fits

    def kept(estimate: device_memory.MemoryEstimate, *rest: Any, **options: Any) -> None:
        needed.append(estimate)
        check_fits(estimate, *rest, **options)

    with mock.patch.object(device_memory, "check_fits", kept):
        folder = short_training.trained_folder(check)
    lines = read_lines(f"{folder}/metrics.jsonl")
    losses = [line["loss"] for line in lines]
    last = lines[-1]
    flops = last["tflops_per_second"]
    return Row(
        check="training",
        status=RIGHT if losses[-1] < losses[0] or check.size.is_small else WRONG,
        tokens_per_second=last["tokens_per_second"],
        flops_per_second=flops * 1e12 if flops else None,
        mfu=last["mfu"],
        peak_bytes=check.peak_bytes(),
        estimate_bytes=needed[-1].total_bytes if needed else None,
        note=f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {last['step']} steps, validation {last['val/loss']:.3f}, "
        f"waited {last['data_wait_share']:.0%} for data",
    )


def _without_waiting(check: Check) -> Row:
    """torch raises an error in any operation that waits for the device."""
    one_step = trainer._Loop._one_step

    def checked(loop: Any, batches: Any) -> Any:
        if loop.step < FIRST_CHECKED_STEP:
            return one_step(loop, batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return one_step(loop, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    folder = short_training.new_folder()
    try:
        with mock.patch.object(trainer._Loop, "_one_step", checked):
            result = short_training.train_for(check, folder, FIRST_CHECKED_STEP + 3)
    finally:
        shutil.rmtree(folder)
    return Row(check="a step waits for nothing", status=RIGHT, note=f"steps 3 to {result.steps} under sync debug mode")


def _resume(check: Check) -> Row:
    num_steps = check.size.num_steps
    folder = short_training.new_folder()
    try:
        shutil.copytree(short_training.trained_folder(check), folder, dirs_exist_ok=True)
        resumed = short_training.train_for(check, folder, 2 * num_steps)
        got = [line["loss"] for line in read_lines(f"{folder}/metrics.jsonl")][num_steps:]
        shutil.rmtree(folder)
        short_training.train_for(check, folder, 2 * num_steps)
        expected = [line["loss"] for line in read_lines(f"{folder}/metrics.jsonl")][num_steps:]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    worst = max(abs(one - other) / abs(other) for one, other in zip(got, expected, strict=True))
    is_right = resumed.resumed_from == num_steps and worst <= MAX_LOSS_DIFFERENCE
    return Row(
        check="resume",
        status=RIGHT if is_right else WRONG,
        note=f"from step {resumed.resumed_from} of {2 * num_steps}; losses differ from those of an uninterrupted run by at "
        f"most {worst:.1e}",
    )
