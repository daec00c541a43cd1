"""The training loop of all tasks: captioner, compressor and diffusion transformer.

    result = train(task, TrainerSettings(num_steps=2000, lr=1e-3), "RUN/train/dit")
    result.checkpoint      # RUN/train/dit/checkpoints/step-002000
    train(task, ...)       # the same call again resumes from the newest checkpoint, or finds nothing left to do

One step: `accumulation` batches on every rank -> gradient of (sum of losses / sum of weights), both summed over all
batches and ranks, so the gradient does not depend on how samples are split -> clip -> AdamW -> EMA.

Exact resume: batches are indexed by number and random numbers seeded by (seed, global batch number). A run killed at any
moment and restarted, on any number of ranks, ends with the weights of an uninterrupted one.

A batch is copied to the device once, pinned and non-blocking (parallel/transfer.py); nothing in a step waits for the device
but writing a log line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm

from recaption.errors import ErrorBudgetError, RecaptionError, UsageError
from recaption.run_folder import TEMPORARY_SUFFIX
from train.checkpoint import step_folder
from train.checkpoint.async_checkpointer import AsyncCheckpointer
from train.checkpoint.safetensors_storage import local_shard
from train.engine.batch_numbers import StepBatches
from train.engine.device_peak import peak_flops
from train.engine.ema import EMA
from train.engine.metrics import LogWindow, MetricsLog
from train.engine.optimizer import apply_step, build_optimizer, lr_at, set_lr, total_norm
from train.engine.resume import check_resumable, newest_path
from train.engine.settings import TrainerSettings
from train.engine.stopwatch import StepTimer
from train.engine.task import (
    HasActivationEstimate,
    HasCompiledModules,
    HasFrozenBase,
    HasFrozenNetworks,
    HasPreparation,
    HasSamples,
    HasState,
    Task,
)
from train.engine.train_state import TrainState
from train.parallel import device_memory, fsdp, process_group
from train.parallel.collectives import broadcast_module, sum_gradients, sum_over_ranks
from train.parallel.control import ControlGroup, StopSignals
from train.parallel.transfer import copied, to_device


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Result of `train`; identical on all ranks except `loss`, which only rank 0 has."""

    steps: int
    loss: float
    """Mean over the steps of the last log line."""
    checkpoint: str
    tokens_per_second: float
    """Unpadded tokens of all ranks per second of step time of this call (validation and saving excluded)."""
    resumed_from: int | None
    """Step of the checkpoint that this call resumed from."""
    skipped_steps: int = 0
    validation: dict[str, float] = field(default_factory=dict)


def train(
    task: Task, settings: TrainerSettings, folder: str, *, resume: bool = True, progress: bool = True
) -> TrainResult:
    """Train until `num_steps`, from the newest checkpoint in `folder` if there is one.

    Under torchrun (or inside a process group) every rank calls this. On SIGTERM or Ctrl-C it finishes the step, writes a
    checkpoint and raises SystemExit or KeyboardInterrupt.

    Raises:
        UsageError: settings that make no sense; `resume=False` where checkpoints exist already; too little memory.
        CheckpointMismatchError: the checkpoints in `folder` are of another model, task or data order.
        ErrorBudgetError: more than `max_skipped_steps` steps without a finite loss.
    """
    settings.check()
    if settings.sample_every and not isinstance(task, HasSamples):
        raise UsageError(f"the {task.name} task cannot sample during training: leave sample_every at 0")
    group = process_group.process_group(settings.device, timeout_minutes=settings.timeout_minutes)
    with group as device, StopSignals() as stop:
        loop = _Loop(task, settings, os.path.abspath(folder), device, progress=progress)
        resumed_from = loop.restore(resume=resume)
        try:
            return loop.run(stop, resumed_from)
        finally:
            loop.close()


class _Loop:
    """One call of `train` on one rank."""

    def __init__(
        self, task: Task, settings: TrainerSettings, folder: str, device: torch.device, *, progress: bool
    ) -> None:
        self.task, self.settings, self.folder, self.device = task, settings, folder, device
        self.checkpoints = os.path.join(folder, "checkpoints")
        self.config = {"task": task.name, **task.config}
        self.progress = progress
        self.is_main = process_group.rank() == 0
        self.control = ControlGroup(timeout_minutes=settings.timeout_minutes)
        self.model = task.model
        self.is_sharded = self._setup_model()
        self.optimizer = build_optimizer(
            self.model, lr=settings.lr, weight_decay=settings.weight_decay, betas=settings.betas
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.ema = EMA(self.model, settings.ema_decay) if settings.ema_decay else None
        has_base = isinstance(task, HasFrozenBase) and task.base is not None
        self.tensors = TrainState(self.model, self.optimizer, self.ema, has_frozen_base=has_base)
        self.checkpointer = AsyncCheckpointer(
            self.checkpoints,
            keep_last=settings.keep_checkpoints,
            is_sharded=self.is_sharded,
            timeout_minutes=settings.timeout_minutes,
        )
        self.step_batches = StepBatches(process_group.num_ranks(), settings.accumulation)
        self.window = LogWindow(device)
        self.step = 0
        self.skipped = 0
        self.timer = StepTimer()
        self.log: MetricsLog | None = None
        if settings.compile:
            for module in self._compiled_modules():
                module.compile()

    def _compiled_modules(self) -> list[nn.Module]:
        """What `compile` compiles: the task's own choice, a model's layers, or the whole model."""
        if isinstance(self.task, HasCompiledModules):
            return self.task.compiled_modules()
        return list(fsdp.blocks_of(self.model) or [self.model])

    def _setup_model(self) -> bool:
        """Move the model to the device, sharded or as a replica; returns whether it is sharded."""
        settings, num_ranks = self.settings, process_group.num_ranks()
        has_ema = settings.ema_decay > 0
        is_sharded = fsdp.should_shard(
            settings.parallel,
            self.model,
            name=self.task.name,
            state_bytes=device_memory.state_bytes(self.model, has_ema=has_ema),
            device_bytes=device_memory.device_bytes(self.device) if self.device.type == "cuda" else None,
        )
        activations = 0
        if isinstance(self.task, HasActivationEstimate):
            activations = self.task.activation_bytes(
                settings.precision, activation_checkpointing=settings.activation_checkpointing
            )
        placed: tuple[nn.Module, ...] = ()
        frozen_bytes = 0
        if isinstance(self.task, HasFrozenNetworks):
            placed, frozen_bytes = tuple(self.task.frozen_networks()), self.task.frozen_bytes()
            frozen_bytes += device_memory.frozen_bytes(placed, num_shards=num_ranks if is_sharded else 1)
        needed = device_memory.estimate(
            self.model,
            num_shards=num_ranks,
            is_sharded=is_sharded,
            activation_checkpointing=settings.activation_checkpointing,
            has_ema=has_ema,
            precision=settings.precision,
            activations_bytes=activations,
            frozen_bytes=frozen_bytes,
        )
        device_memory.check_fits(needed, self.device, num_ranks=process_group.num_local_ranks())
        if settings.activation_checkpointing:
            fsdp.apply_activation_checkpointing(self.model, name=self.task.name)
        if is_sharded:
            fsdp.shard(self.model, device=self.device, precision=settings.precision, group=self.control.group)
        else:
            self.model.to(self.device)
            broadcast_module(self.model)
        fsdp.place_frozen(
            placed, self.device, is_sharded=is_sharded, precision=settings.precision, group=self.control.group
        )
        return is_sharded

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def restore(self, *, resume: bool) -> int | None:
        """Load the newest checkpoint and truncate the log to it; returns its step, or None if there is none."""
        path = self.control.broadcast(newest_path(self.checkpoints) if self.is_main else None)
        checkpoint = None if path is None else step_folder.read(path)
        if checkpoint is not None and not resume:
            raise UsageError(f"{self.folder} already holds step {checkpoint.step}; resume it or choose another --name")
        if checkpoint is not None:
            self._load(checkpoint)
        if self.is_main:
            self._write_config()
            self.log = MetricsLog(self.folder, from_step=self.step)
        return None if checkpoint is None else checkpoint.step

    def _load(self, checkpoint: step_folder.Checkpoint) -> None:
        check_resumable(checkpoint, self.config, self.settings)
        checkpoint.load_into(self.tensors.tensors())
        self.step_batches.load_state_dict(checkpoint.state["batches"], checkpoint.path)
        self.window.load_state_dict(checkpoint.state["window"])
        self.timer.load_state_dict(checkpoint.state["timer"])
        self.step, self.skipped = checkpoint.step, checkpoint.state["skipped"]
        if isinstance(self.task, HasState):
            self.task.load_state_dict(checkpoint.state["task"])

    def save(self) -> None:
        """Checkpoint in the background, while training continues."""
        state = {
            "settings": dataclasses.asdict(self.settings),
            "skipped": self.skipped,
            "batches": self.step_batches.state_dict(),
            "timer": self.timer.state_dict(),
            "window": self.window.state_dict(self.control),
            "task": self.task.state_dict() if isinstance(self.task, HasState) else {},
        }
        self.checkpointer.save(self.tensors.tensors(), step=self.step, config=self.config, state=state)

    def _write_config(self) -> None:
        os.makedirs(self.folder, exist_ok=True)
        final = os.path.join(self.folder, "config.yaml")
        resolved = {
            **step_folder.as_json(self.config),
            "trainer": step_folder.as_json(dataclasses.asdict(self.settings)),
        }
        with open(final + TEMPORARY_SUFFIX, "w", encoding="utf-8") as file:
            yaml.safe_dump(resolved, file, sort_keys=False, allow_unicode=True)
        os.replace(final + TEMPORARY_SUFFIX, final)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self, stop: StopSignals, resumed_from: int | None) -> TrainResult:
        settings = self.settings
        batches = self.task.batches(self.step_batches.next, process_group.rank(), process_group.num_ranks())
        seconds_before, tokens, should_stop = self.timer.window_start, 0.0, False
        bar = tqdm(
            total=settings.num_steps,
            initial=self.step,
            desc=f"train {self.task.name}",
            unit="step",
            disable=not (self.progress and self.is_main),
        )
        self.model.train()
        self.timer.start()
        with bar:
            while self.step < settings.num_steps and not should_stop:
                grad_norm, lr = self._one_step(batches)
                bar.update()
                is_last = self.step == settings.num_steps
                should_stop = self.control.any(stop.signal is not None)
                is_validating = is_last or _is_due(self.step, settings.validate_every)
                is_sampling = _is_due(self.step, settings.sample_every) or is_last
                is_sampling = is_sampling or (is_validating and not settings.sample_every)
                if is_validating or is_sampling or self.step == 1 or _is_due(self.step, settings.log_every):
                    tokens += self._write_line(grad_norm, lr, bar, is_validating=is_validating, is_sampling=is_sampling)
                if is_last or should_stop or _is_due(self.step, settings.checkpoint_every):
                    with self.timer.paused():
                        self.save()
        self.checkpointer.wait()
        self.control.wait()
        if should_stop and self.step < settings.num_steps:
            stop.raise_signal()
        last = self.log.last_line if self.log is not None else {}
        loss = last.get("loss")
        return TrainResult(
            steps=self.step,
            loss=float("nan") if loss is None else loss,
            checkpoint=os.path.join(self.checkpoints, f"step-{self.step:06d}"),
            tokens_per_second=tokens / max(1e-9, self.timer.seconds() - seconds_before),
            resumed_from=resumed_from,
            skipped_steps=self.skipped,
            validation={k.removeprefix("val/"): v for k, v in last.items() if k.startswith("val/")},
        )

    def _one_step(self, batches: Iterator[Any]) -> tuple[Tensor, float]:
        """One optimizer step; returns (gradient norm before clipping, on the device; learning rate)."""
        settings = self.settings
        lr = lr_at(
            self.step,
            peak=settings.lr,
            num_steps=settings.num_steps,
            warmup_steps=settings.warmup_steps,
            schedule=settings.schedule,
            final_fraction=settings.final_lr_fraction,
            decay_fraction=settings.decay_fraction,
        )
        set_lr(self.optimizer, lr)
        sums = self._backward(batches)
        for parameter in self.parameters:
            # A parameter unused by this rank's batches still takes part in the sum over ranks.
            parameter.grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        if not self.is_sharded:
            sum_gradients(self.parameters)
        loss_sum, weight = sum_over_ranks(sums)[:2]

        grad_norm = total_norm([p.grad for p in self.parameters]) / weight.float()
        is_finite = torch.isfinite(grad_norm) & torch.isfinite(loss_sum)
        scale = 1.0 / weight.float()
        if settings.max_grad_norm:
            scale = scale * (settings.max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0)
        for parameter in self.parameters:
            gradient = local_shard(parameter.grad)
            gradient.mul_(scale.to(gradient.dtype))
        apply_step(self.optimizer, skip=~is_finite)
        self.optimizer.zero_grad(set_to_none=True)

        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        skipped = torch.zeros_like(sums)
        skipped[LogWindow.STEP_SUMS.index("skipped")] = 1
        self.window.add_step(torch.where(is_finite, sums, skipped))
        return grad_norm, lr

    def _backward(self, batches: Iterator[Any]) -> Tensor:
        """Backward of this rank's un-normalised losses; returns their sums in the order of LogWindow.STEP_SUMS."""
        sums = self.window.zeros()
        counts = [0.0, 0.0, 0.0]
        numbers = self.step_batches.take_step()
        for number in numbers:
            with self.timer.data_wait():
                batch = to_device(self._next_batch(batches, number), self.device)
            _seed_everything(self.settings.seed, self.step_batches.global_number(number, process_group.rank()))
            if self.is_sharded:
                fsdp.set_gradient_sync(self.model, number == numbers[-1])
            with self._autocast():
                parts = self.task.loss(batch, step=number, seed=self.settings.seed)
            parts.loss_sum.backward()
            sums[0] += parts.loss_sum.detach()
            sums[1] += parts.weight.detach() if isinstance(parts.weight, Tensor) else parts.weight
            of_batch = (parts.num_tokens, parts.capacity_tokens, parts.flops)
            counts = [before + number for before, number in zip(counts, of_batch, strict=True)]
            self.window.add_logs(parts.logs)
        sums[2:5] = copied(torch.tensor(counts, dtype=sums.dtype), self.device)
        return sums

    def _next_batch(self, batches: Iterator[Any], number: int) -> Any:
        """The next batch on the CPU, with what its loss needs besides the model."""
        try:
            batch = next(batches)
        except StopIteration:
            raise RecaptionError(f"task {self.task.name} ran out of batches at batch {number}") from None
        if isinstance(self.task, HasPreparation):
            batch = self.task.prepared(batch, step=number, seed=self.settings.seed)
        return batch

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    # --- log lines ----------------------------------------------------------------------------------------------------

    def _write_line(self, grad_norm: Tensor, lr: float, bar: tqdm, *, is_validating: bool, is_sampling: bool) -> float:
        """Write one log line and start the next window; returns the window's tokens over all ranks."""
        sums = self.window.read(self.control)
        seconds, data_wait = self.timer.end_window()
        self.skipped += int(sums["skipped"])
        flops = sums["flops"] / max(1e-9, seconds) / process_group.num_ranks()
        peak = peak_flops(self.device)
        line = {
            "step": self.step,
            "loss": sums["loss"] / sums["weight"] if sums["weight"] else float("nan"),
            "lr": lr,
            "grad_norm": float(grad_norm),
            "tokens_per_second": sums["tokens"] / max(1e-9, seconds),
            "fill": sums["tokens"] / sums["capacity"] if sums["capacity"] else None,
            "data_wait_share": data_wait / max(1e-9, seconds),
            "tflops_per_second": flops / 1e12 if flops else None,
            "mfu": flops / peak if flops and peak else None,
            "seconds": self.timer.seconds(),
            "skipped_steps": self.skipped,
        }
        line |= {name: value for name, value in sums.items() if name.startswith("log/")}
        self.window.clear()
        if is_validating or is_sampling:
            with self.timer.paused():
                line |= self._validate_and_sample(is_validating=is_validating, is_sampling=is_sampling)
        if self.log is not None:
            self.log.write(line)
        bar.set_postfix_str(f"loss {line['loss']:.4f}", refresh=False)
        if self.skipped > self.settings.max_skipped_steps:
            raise ErrorBudgetError(
                f"{self.skipped} of {self.step} steps had a non-finite loss or gradient, "
                f"{self.settings.max_skipped_steps} are allowed; lower --lr, or look for broken samples"
            )
        return sums["tokens"]

    @torch.no_grad()
    def _validate_and_sample(self, *, is_validating: bool, is_sampling: bool) -> dict[str, float]:
        """Validate and sample with the EMA weights: on rank 0 while the others wait, or on all ranks if sharded."""
        metrics: dict[str, float] = {}
        start = time.perf_counter()
        if self.is_main or self.is_sharded:
            self.model.eval()
            with self.ema.swapped_in() if self.ema else contextlib.nullcontext(), self._autocast():
                if is_validating:
                    values = self.task.validate(self.model, self.step)
                    metrics = {f"val/{name}": float(value) for name, value in values.items()}
                if is_sampling and isinstance(self.task, HasSamples):
                    for name, (pixels_THWC, fps) in self.task.sample(self.model, self.step).items():
                        if self.log is not None:
                            self.log.write_video(name, pixels_THWC, step=self.step, fps=fps)
        self.model.train()
        self.control.wait_for_main(time.perf_counter() - start)
        return metrics

    def close(self) -> None:
        self.checkpointer.close()
        if self.log is not None:
            self.log.close()


def _seed_everything(seed: int, global_number: int) -> None:
    """Seed torch from the global batch number, so that random numbers do not depend on rank or history."""
    state = np.random.SeedSequence([seed, global_number]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]) >> 1)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
