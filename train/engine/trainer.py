"""The one training loop: captioner, compressor and diffusion transformer are Tasks, this is what runs them.

    result = train(task, TrainerSettings(num_steps=2000, lr=1e-3), "RUN/train/dit")
    result.checkpoint      # RUN/train/dit/checkpoints/step-002000
    train(task, ...)       # the same call again: goes on from the newest checkpoint, or has nothing left to do

What a step does: `accumulation` batches on every rank -> gradient of (sum of losses / sum of weights), both sums over
all batches and ranks, so the gradient is the same however the samples are arranged -> clip -> AdamW -> weight average.

Exact resume: batches come by their number, random numbers by (seed, place in the sequence of all ranks); a run killed at
any moment and started again, on as many ranks or another number, ends with the weights of one that was never killed.
Nothing in a step waits for the device except writing a log line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from recaption.errors import CheckpointMismatchError, ErrorBudgetError, RecaptionError, UsageError
from recaption.run_folder import TEMPORARY_SUFFIX
from train.checkpoint import step_folder as checkpoint
from train.checkpoint.async_checkpointer import Saver
from train.checkpoint.safetensors_storage import local_part
from train.engine.batch_numbers import BatchNumbers
from train.engine.device_peak import peak_flops
from train.engine.ema import WeightAverage
from train.engine.metrics import MetricsLog, Window
from train.engine.optimizer import apply_step, build_optimizer, lr_at, set_lr
from train.engine.settings import FIXED_ON_RESUME, TrainerSettings
from train.engine.stopwatch import Watch
from train.engine.task import HasActivations, HasSamples, HasState, Task
from train.engine.train_state import TrainingState
from train.parallel import device_memory
from train.parallel import fsdp as sharding
from train.parallel import process_group as distributed
from train.parallel.collectives import broadcast_module, sum_gradients, sum_over_ranks
from train.parallel.control import Agreement, StopSignals


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What `train` hands back, the same on every rank except `loss`, which only rank 0 knows."""

    steps: int
    loss: float
    """Of the last log line: mean over its steps."""
    checkpoint: str
    tokens_per_second: float
    """Real tokens of all ranks over the time spent in steps of this call (validation and saving left out)."""
    resumed_from: int | None
    """Step of the checkpoint that this call started from."""
    skipped_steps: int = 0
    validation: dict[str, float] = field(default_factory=dict)


def train(
    task: Task, settings: TrainerSettings, folder: str, *, resume: bool = True, progress: bool = True
) -> TrainResult:
    """Train until `num_steps`, from the newest checkpoint in `folder` if there is one.

    Under torchrun (or inside a process group) every rank calls this. On SIGTERM or Ctrl-C the step is finished, a
    checkpoint written, and SystemExit or KeyboardInterrupt raised.

    Raises:
        UsageError: settings that make no sense; `resume=False` where checkpoints exist already; too little memory.
        CheckpointMismatchError: the checkpoints in `folder` are of another model, task or data order.
        ErrorBudgetError: more than `max_skipped_steps` steps without a finite loss.
    """
    settings.check()
    if settings.sample_every and not isinstance(task, HasSamples):
        raise UsageError(f"the {task.name} draws no samples while it trains: leave sample_every at 0")
    with distributed.process_group(settings.device) as device, StopSignals() as stop:
        run = _Run(task, settings, os.path.abspath(folder), device, progress=progress)
        resumed_from = run.restore(resume=resume)
        try:
            return run.go(stop, resumed_from)
        finally:
            run.close()


class _Run:
    """One call of `train` on one rank."""

    def __init__(
        self, task: Task, settings: TrainerSettings, folder: str, device: torch.device, *, progress: bool
    ) -> None:
        self.task, self.settings, self.folder, self.device = task, settings, folder, device
        self.checkpoints = os.path.join(folder, "checkpoints")
        self.config = {"task": task.name, **task.config}
        self.progress = progress
        self.is_main = distributed.rank() == 0
        self.agreement = Agreement()
        self.model = task.model
        self.is_sharded = self._place_model()
        self.optimizer = build_optimizer(
            self.model, lr=settings.lr, weight_decay=settings.weight_decay, betas=settings.betas
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.average = WeightAverage(self.model, settings.ema_decay) if settings.ema_decay else None
        self.tensors = TrainingState(self.model, self.optimizer, self.average)
        self.saver = Saver(self.checkpoints, keep=settings.keep_checkpoints, is_sharded=self.is_sharded)
        self.numbers = BatchNumbers(distributed.num_ranks(), settings.accumulation)
        self.window = Window(device)
        self.step = 0
        self.skipped = 0
        self.watch = Watch()
        self.log: MetricsLog | None = None
        if settings.compile:
            for part in sharding.blocks_of(self.model) or [self.model]:
                part.compile()

    def _place_model(self) -> bool:
        """Bring the model to the device, whole or this rank's part of it; returns whether it is a part."""
        settings, num_ranks = self.settings, distributed.num_ranks()
        has_average = settings.ema_decay > 0
        is_sharded = sharding.is_to_be_sharded(
            settings.parallel,
            self.model,
            name=self.task.name,
            state_bytes=device_memory.state_bytes(self.model, has_average=has_average),
            device_bytes=device_memory.device_bytes(self.device) if self.device.type == "cuda" else None,
        )
        activations = 0
        if isinstance(self.task, HasActivations):
            activations = self.task.activation_bytes(settings.precision, recompute=settings.recompute)
        needed = device_memory.estimate(
            self.model,
            num_parts=num_ranks,
            is_sharded=is_sharded,
            is_recomputing=settings.recompute,
            has_average=has_average,
            activations_bytes=activations,
        )
        device_memory.check_fits(needed, self.device, num_ranks=distributed.num_ranks_here())
        if settings.recompute:
            sharding.recompute_blocks(self.model, name=self.task.name)
        if is_sharded:
            sharding.shard(self.model, device=self.device, precision=settings.precision, group=self.agreement.group)
        else:
            self.model.to(self.device)
            broadcast_module(self.model)
        return is_sharded

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def restore(self, *, resume: bool) -> int | None:
        """Load the newest checkpoint, cut the log to it; returns its step, or None for a start from nothing."""
        if self.is_main:
            checkpoint.remove_temporary(self.checkpoints)
        self.agreement.wait()
        found = checkpoint.newest(self.checkpoints)
        if found is not None and not resume:
            raise UsageError(f"{self.folder} already holds step {found.step}; resume it or choose another --name")
        if found is not None:
            self._load(found)
        if self.is_main:
            self._write_config()
            self.log = MetricsLog(self.folder, from_step=self.step)
        return None if found is None else found.step

    def _load(self, found: checkpoint.Checkpoint) -> None:
        checkpoint.check_same_config(found, self.config)
        before = found.state["settings"]
        for name in FIXED_ON_RESUME:
            if before[name] != getattr(self.settings, name):
                raise CheckpointMismatchError(
                    f"{found.path} was trained with {name} = {before[name]}, now it is {getattr(self.settings, name)}; "
                    "use the old value or another --name"
                )
        if found.step > self.settings.num_steps:
            raise UsageError(f"{found.path} is past num_steps = {self.settings.num_steps}; ask for more steps")
        found.read_into(self.tensors.tensors())
        self.numbers.load_state_dict(found.state["batches"], found.path)
        self.window.load_state_dict(found.state["window"])
        self.watch.load_state_dict(found.state["watch"])
        self.step, self.skipped = found.step, found.state["skipped"]
        if isinstance(self.task, HasState):
            self.task.load_state_dict(found.state["task"])

    def save(self) -> None:
        """In the background: the steps go on while it is written."""
        state = {
            "settings": dataclasses.asdict(self.settings),
            "skipped": self.skipped,
            "batches": self.numbers.state_dict(),
            "watch": self.watch.state_dict(),
            "window": self.window.state_dict(self.agreement),
            "task": self.task.state_dict() if isinstance(self.task, HasState) else {},
        }
        self.saver.save(self.tensors.tensors(), step=self.step, config=self.config, state=state)

    def _write_config(self) -> None:
        os.makedirs(self.folder, exist_ok=True)
        final = os.path.join(self.folder, "config.yaml")
        resolved = {**checkpoint.plain(self.config), "trainer": checkpoint.plain(dataclasses.asdict(self.settings))}
        with open(final + TEMPORARY_SUFFIX, "w", encoding="utf-8") as file:
            yaml.safe_dump(resolved, file, sort_keys=False, allow_unicode=True)
        os.replace(final + TEMPORARY_SUFFIX, final)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def go(self, stop: StopSignals, resumed_from: int | None) -> TrainResult:
        settings = self.settings
        batches = self.task.batches(self.numbers.next, distributed.rank(), distributed.num_ranks())
        seconds_before, tokens, is_stopping = self.watch.window_start, 0.0, False
        bar = tqdm(
            total=settings.num_steps,
            initial=self.step,
            desc=f"train {self.task.name}",
            unit="step",
            disable=not (self.progress and self.is_main),
        )
        self.model.train()
        self.watch.start()
        with bar:
            while self.step < settings.num_steps and not is_stopping:
                grad_norm, lr = self._one_step(batches)
                bar.update()
                is_last = self.step == settings.num_steps
                is_stopping = self.agreement.any(stop.signal is not None)
                is_validating = is_last or _is_due(self.step, settings.validate_every)
                is_sampling = _is_due(self.step, settings.sample_every) or is_last
                is_sampling = is_sampling or (is_validating and not settings.sample_every)
                if is_validating or is_sampling or self.step == 1 or _is_due(self.step, settings.log_every):
                    tokens += self._write_line(grad_norm, lr, bar, is_validating=is_validating, is_sampling=is_sampling)
                if is_last or is_stopping or _is_due(self.step, settings.checkpoint_every):
                    with self.watch.paused():
                        self.save()
        self.saver.wait()
        self.agreement.wait()
        if is_stopping and self.step < settings.num_steps:
            stop.leave()
        last = self.log.last_line if self.log is not None else {}
        loss = last.get("loss")
        return TrainResult(
            steps=self.step,
            loss=float("nan") if loss is None else loss,
            checkpoint=os.path.join(self.checkpoints, f"step-{self.step:06d}"),
            tokens_per_second=tokens / max(1e-9, self.watch.seconds() - seconds_before),
            resumed_from=resumed_from,
            skipped_steps=self.skipped,
            validation={k.removeprefix("val/"): v for k, v in last.items() if k.startswith("val/")},
        )

    def _one_step(self, batches: Iterator[Any]) -> tuple[Tensor, float]:
        """Gradient norm before clipping (on the device) and learning rate of the step just taken."""
        settings = self.settings
        lr = lr_at(
            self.step,
            peak=settings.lr,
            num_steps=settings.num_steps,
            warmup_steps=settings.warmup_steps,
            schedule=settings.schedule,
            final_share=settings.final_lr_share,
            decay_share=settings.decay_share,
        )
        set_lr(self.optimizer, lr)
        sums = self._backward(batches)
        for parameter in self.parameters:
            # A parameter that no batch of this rank touched still takes part in the sum over ranks.
            parameter.grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        if not self.is_sharded:
            sum_gradients(self.parameters)
        loss_sum, weight = sum_over_ranks(sums)[:2]

        grad_norm = _total_norm([p.grad for p in self.parameters]) / weight.float()
        is_finite = torch.isfinite(grad_norm) & torch.isfinite(loss_sum)
        scale = 1.0 / weight.float()
        if settings.max_grad_norm:
            scale = scale * (settings.max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0)
        for parameter in self.parameters:
            gradient = local_part(parameter.grad)
            gradient.mul_(scale.to(gradient.dtype))
        apply_step(self.optimizer, skip=~is_finite)
        self.optimizer.zero_grad(set_to_none=True)

        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        skipped = torch.zeros_like(sums)
        skipped[Window.STEP_SUMS.index("skipped")] = 1
        self.window.add_step(torch.where(is_finite, sums, skipped))
        return grad_norm, lr

    def _backward(self, batches: Iterator[Any]) -> Tensor:
        """Gradients of the undivided loss of this rank's batches; returns their sums, in Window.STEP_SUMS's order."""
        sums = self.window.zeros()
        numbers = self.numbers.take_step()
        for number in numbers:
            with self.watch.waiting():
                try:
                    batch = distributed.to_device(next(batches), self.device)
                except StopIteration:
                    raise RecaptionError(f"the batches of task {self.task.name} ended at batch {number}") from None
            _seed_everything(self.settings.seed, self.numbers.in_sequence(number, distributed.rank()))
            if self.is_sharded:
                sharding.set_gradient_sync(self.model, number == numbers[-1])
            with self._autocast():
                parts = self.task.loss(batch, step=number, seed=self.settings.seed)
            parts.loss_sum.backward()
            weight = parts.weight.detach() if isinstance(parts.weight, Tensor) else torch.tensor(float(parts.weight))
            counts = torch.tensor([parts.num_tokens, parts.capacity_tokens, parts.flops, 0], dtype=sums.dtype)
            both = torch.stack([parts.loss_sum.detach().to(sums), weight.to(sums)])
            sums += torch.cat([both, counts.to(sums, non_blocking=True)])
            self.window.add_logs(parts.logs)
        return sums

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    # --- log lines ----------------------------------------------------------------------------------------------------

    def _write_line(self, grad_norm: Tensor, lr: float, bar: tqdm, *, is_validating: bool, is_sampling: bool) -> float:
        """Log the window that ends here and start the next one. Returns the window's tokens, of all ranks."""
        sums = self.window.read(self.agreement)
        seconds, waited = self.watch.end_window()
        self.skipped += int(sums["skipped"])
        flops = sums["flops"] / max(1e-9, seconds) / distributed.num_ranks()
        peak = peak_flops(self.device)
        line = {
            "step": self.step,
            "loss": sums["loss"] / sums["weight"] if sums["weight"] else float("nan"),
            "lr": lr,
            "grad_norm": float(grad_norm),
            "tokens_per_second": sums["tokens"] / max(1e-9, seconds),
            "fill": sums["tokens"] / sums["capacity"] if sums["capacity"] else None,
            "data_wait_share": waited / max(1e-9, seconds),
            "tflops_per_second": flops / 1e12 if flops else None,
            "mfu": flops / peak if flops and peak else None,
            "seconds": self.watch.seconds(),
            "skipped_steps": self.skipped,
        }
        line |= {name: value for name, value in sums.items() if name.startswith("log/")}
        self.window.clear()
        if is_validating or is_sampling:
            with self.watch.paused():
                line |= self._look_at_model(is_validating=is_validating, is_sampling=is_sampling)
        if self.log is not None:
            self.log.write(line)
        bar.set_postfix_str(f"loss {line['loss']:.4f}", refresh=False)
        if self.skipped > self.settings.max_skipped_steps:
            raise ErrorBudgetError(
                f"{self.skipped} of {self.step} steps had no finite loss or gradient, "
                f"{self.settings.max_skipped_steps} are allowed; lower --lr, or look for broken samples"
            )
        return sums["tokens"]

    @torch.no_grad()
    def _look_at_model(self, *, is_validating: bool, is_sampling: bool) -> dict[str, float]:
        """Numbers about the averaged weights, and samples: by rank 0 while the others wait, or by all where each has a
        part of the model only."""
        found: dict[str, float] = {}
        if self.is_main or self.is_sharded:
            self.model.eval()
            with self.average.in_place_of_weights() if self.average else contextlib.nullcontext(), self._autocast():
                if is_validating:
                    numbers = self.task.validate(self.model, self.step)
                    found = {f"val/{name}": float(value) for name, value in numbers.items()}
                if is_sampling and isinstance(self.task, HasSamples):
                    for name, (pixels_THWC, fps) in self.task.sample(self.model, self.step).items():
                        if self.log is not None:
                            self.log.write_video(name, pixels_THWC, step=self.step, fps=fps)
        self.model.train()
        self.agreement.wait()
        return found

    def close(self) -> None:
        self.saver.close()
        if self.log is not None:
            self.log.close()


def _total_norm(gradients: list[Tensor | None]) -> Tensor:
    """Of all gradients as one vector, over all ranks where they are sharded."""
    norm = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _seed_everything(seed: int, place: int) -> None:
    """What a batch draws from torch's generators depends on its place in the sequence of all ranks alone."""
    state = np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]) >> 1)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
