"""The one training loop: captioner, compressor and diffusion transformer are Tasks, this is what runs them.

    result = train(task, TrainerSettings(num_steps=2000, lr=1e-3), "RUN/train/dit")
    result.checkpoint      # RUN/train/dit/checkpoints/step-002000
    train(task, ...)       # the same call again: goes on from the newest checkpoint, or has nothing left to do

What a step does: `accumulation` batches on every rank -> gradient of (sum of losses / sum of weights), both sums over
all batches and ranks, so the gradient is the same however the samples are arranged -> clip -> AdamW -> weight average.

Exact resume: batches come by their number, random numbers by (seed, batch number, rank); a run killed at any moment and
started again ends with the weights of one that was never killed. Nothing in a step waits for the device except
writing a log line.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm

from recaption.errors import CheckpointMismatchError, ErrorBudgetError, RecaptionError, UsageError
from recaption.run_folder import TEMPORARY_SUFFIX
from train import checkpoint, distributed
from train.metrics import MetricsLog, Watch, Window
from train.optim import SCHEDULES, WeightAverage, apply_step, build_optimizer, lr_at, set_lr


@dataclass(frozen=True, kw_only=True)
class LossParts:
    """The loss of one batch, not yet divided: the trainer divides by the weights of the whole step."""

    loss_sum: Tensor
    """Scalar with a gradient: sum over the batch's samples (or tokens) of their loss times their weight."""
    weight: Tensor | float
    """Sum of those weights: the number of samples for a per-sample mean, of tokens for a per-token mean."""
    logs: Mapping[str, Tensor | float] = field(default_factory=dict)
    """Detached scalars for the log line, averaged over batches; shown as `log/<name>`."""
    num_tokens: int = 0
    """Real tokens of the batch, for tokens_per_second (samples, where a task has no tokens)."""
    capacity_tokens: int = 0
    """Tokens that the batch had room for; fill = num_tokens / capacity_tokens."""


class Task(Protocol):
    """What is trained. Subclass it or only look like it; `validate` may be inherited."""

    name: str
    """`captioner`, `compressor` or `dit`: the kind of checkpoint this makes."""
    model: nn.Module
    """What is optimised, averaged and saved. Frozen helpers (a text encoder) stay outside or have no requires_grad."""
    config: dict[str, Any]
    """JSON-simple, everything needed to rebuild the model and the data order; a resume with another one is refused."""

    def batches(self, start_step: int, rank: int, num_ranks: int) -> Iterator[Any]:
        """Batches number `start_step`, `start_step + 1`, ... without end, this rank's share of each.

        The number counts batches, not optimizer steps: with accumulation 4, optimizer step 10 starts at batch 40. The
        batch of a number is the same however we got there. The trainer moves tensors (in tuples, lists, dicts, or
        anything with `.to(device)`) to the device.
        """
        ...

    def loss(self, batch: Any, *, step: int, seed: int) -> LossParts:
        """Loss of the batch of number `step`. torch's global generator is seeded from (seed, step, rank) before."""
        ...

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Numbers about `model` (the averaged weights, in eval mode, no gradients) after `step` optimizer steps."""
        return {}


@runtime_checkable
class HasState(Protocol):
    """A task whose data order has a state to check on resume (the packing plan's hash). JSON-simple."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class HasSamples(Protocol):
    """A task that can draw videos while it trains; they go to TensorBoard."""

    def sample(self, model: nn.Module, step: int) -> dict[str, tuple[Any, int]]:
        """Name -> (uint8 RGB frames (T, H, W, 3), frames per second)."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    num_steps: int = 1000
    """Optimizer steps in all, those before a resume included."""
    accumulation: int = 1
    """Batches per rank and optimizer step."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 50
    schedule: str = "cosine"
    """`cosine` (down to `final_lr_share`) or `constant`, after a linear warmup."""
    final_lr_share: float = 0.05
    """Learning rate of the last step over the peak, for the cosine."""
    weight_decay: float = 0.01
    """Of matrices and kernels; norms, biases and embeddings have none."""
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    """Gradients longer than this are scaled down to it; 0 = never."""
    ema_decay: float = 0.999
    """Of the averaged weights; 0 = no average."""
    precision: str = "fp32"
    """`fp32`, or `bf16` for autocast with float32 weights."""
    compile: bool = False
    """Run the model's forward through torch.compile."""
    device: str = "auto"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    """A checkpoint after every so many steps, after the last one, and when the run is told to stop."""
    keep_checkpoints: int = 2
    validate_every: int = 0
    """Validate, and sample where the task can, after so many steps each and after the last; 0 = after the last only."""
    max_skipped_steps: int = 20
    """Steps whose loss or gradient is not finite are left out; more of them than this end the run."""

    def check(self) -> None:
        """Raises UsageError where a setting makes no sense."""
        for name in ("num_steps", "accumulation", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UsageError(f"trainer setting {name} = {getattr(self, name)}, it must be at least 1")
        for name in ("lr", "warmup_steps", "weight_decay", "max_grad_norm", "validate_every", "max_skipped_steps"):
            if getattr(self, name) < 0:
                raise UsageError(f"trainer setting {name} = {getattr(self, name)} is negative")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule {self.schedule!r} is unknown; there are: {', '.join(SCHEDULES)}")
        if self.precision not in ("fp32", "bf16"):
            raise UsageError(f"precision {self.precision!r} is unknown; there are: fp32, bf16")
        if self.ema_decay and not 0 < self.ema_decay < 1:
            raise UsageError(f"trainer setting ema_decay = {self.ema_decay} must be below 1 (0 = no average)")


FIXED_ON_RESUME = ("seed", "accumulation", "ema_decay")
"""Settings that decide which batches come, or what a checkpoint holds: a resume cannot change them."""


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
        UsageError: settings that make no sense; `resume=False` where checkpoints exist already.
        CheckpointMismatchError: the checkpoints in `folder` are of another model, task or data order.
        ErrorBudgetError: more than `max_skipped_steps` steps without a finite loss.
    """
    settings.check()
    with distributed.process_group(settings.device) as device, distributed.StopSignals() as stop:
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
        self.agreement = distributed.Agreement()
        self.model = task.model.to(device)
        distributed.broadcast_module(self.model)
        self.optimizer = build_optimizer(
            self.model, lr=settings.lr, weight_decay=settings.weight_decay, betas=settings.betas
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.average = WeightAverage(self.model, settings.ema_decay) if settings.ema_decay else None
        self.window = Window(device)
        self.step = 0
        self.skipped = 0
        self.watch = Watch()
        self.log: MetricsLog | None = None
        if settings.compile:
            self.model.compile()

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
        checkpoint.load_weights(self.model, found.weights(ema=False), found.path)
        if self.average is not None:
            checkpoint.load_weights(self.average.model, found.weights(ema=True), found.path)
        self.optimizer.load_state_dict(found.optimizer())
        self.window.load_state_dict(found.state["window"])
        self.watch.load_state_dict(found.state["watch"])
        self.step, self.skipped = found.step, found.state["skipped"]
        if isinstance(self.task, HasState):
            self.task.load_state_dict(found.state["task"])

    def save(self) -> str:
        path = os.path.join(self.checkpoints, f"step-{self.step:06d}")
        if self.is_main:
            state = {
                "settings": dataclasses.asdict(self.settings),
                "skipped": self.skipped,
                "watch": self.watch.state_dict(),
                "window": self.window.state_dict(),
                "task": self.task.state_dict() if isinstance(self.task, HasState) else {},
            }
            checkpoint.write(
                self.checkpoints,
                step=self.step,
                config=self.config,
                state=state,
                model=self.model.state_dict(),
                ema=self.average.model.state_dict() if self.average is not None else None,
                optimizer=self.optimizer.state_dict(),
                keep=self.settings.keep_checkpoints,
            )
        self.agreement.wait()
        return path

    def _write_config(self) -> None:
        os.makedirs(self.folder, exist_ok=True)
        final = os.path.join(self.folder, "config.yaml")
        resolved = {**checkpoint.plain(self.config), "trainer": checkpoint.plain(dataclasses.asdict(self.settings))}
        with open(final + TEMPORARY_SUFFIX, "w", encoding="utf-8") as file:
            yaml.safe_dump(resolved, file, sort_keys=False, allow_unicode=True)
        os.replace(final + TEMPORARY_SUFFIX, final)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def go(self, stop: distributed.StopSignals, resumed_from: int | None) -> TrainResult:
        settings = self.settings
        first_batch = self.step * settings.accumulation
        batches = self.task.batches(first_batch, distributed.rank(), distributed.num_ranks())
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
                if is_validating or self.step == 1 or _is_due(self.step, settings.log_every):
                    tokens += self._write_line(grad_norm, lr, bar, is_validating=is_validating)
                if is_last or is_stopping or _is_due(self.step, settings.checkpoint_every):
                    with self.watch.paused():
                        self.save()
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
        )
        set_lr(self.optimizer, lr)
        sums = self._backward(batches)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        for parameter, gradient in zip(self.parameters, gradients):
            # A parameter that no batch of this rank touched still takes part in the sum over ranks.
            parameter.grad = gradient
        distributed.sum_gradients(self.parameters)
        loss_sum, weight = distributed.sum_over_ranks(sums)[:2]

        grad_norm = nn.utils.get_total_norm(gradients) / weight.float()
        is_finite = torch.isfinite(grad_norm) & torch.isfinite(loss_sum)
        scale = 1.0 / weight.float()
        if settings.max_grad_norm:
            scale = scale * (settings.max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
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
        settings = self.settings
        sums = self.window.zeros()
        for number in range(self.step * settings.accumulation, (self.step + 1) * settings.accumulation):
            with self.watch.waiting():
                try:
                    batch = distributed.to_device(next(batches), self.device)
                except StopIteration:
                    raise RecaptionError(f"the batches of task {self.task.name} ended at batch {number}") from None
            _seed_everything(settings.seed, number, distributed.rank())
            with self._autocast():
                parts = self.task.loss(batch, step=number, seed=settings.seed)
            parts.loss_sum.backward()
            weight = parts.weight.detach() if isinstance(parts.weight, Tensor) else torch.tensor(float(parts.weight))
            counts = torch.tensor([parts.num_tokens, parts.capacity_tokens, 0], dtype=sums.dtype)
            both = torch.stack([parts.loss_sum.detach().to(sums), weight.to(sums)])
            sums += torch.cat([both, counts.to(sums, non_blocking=True)])
            self.window.add_logs(parts.logs)
        return sums

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    # --- log lines ----------------------------------------------------------------------------------------------------

    def _write_line(self, grad_norm: Tensor, lr: float, bar: tqdm, *, is_validating: bool) -> float:
        """Log the window that ends here and start the next one. Returns the window's tokens, of all ranks."""
        sums = self.window.read(self.agreement)
        seconds, waited = self.watch.end_window()
        self.skipped += int(sums["skipped"])
        line = {
            "step": self.step,
            "loss": sums["loss"] / sums["weight"] if sums["weight"] else float("nan"),
            "lr": lr,
            "grad_norm": float(grad_norm),
            "tokens_per_second": sums["tokens"] / max(1e-9, seconds),
            "fill": sums["tokens"] / sums["capacity"] if sums["capacity"] else None,
            "data_wait_share": waited / max(1e-9, seconds),
            "seconds": self.watch.seconds(),
            "skipped_steps": self.skipped,
        }
        line |= {name: value for name, value in sums.items() if name.startswith("log/")}
        self.window.clear()
        if is_validating:
            with self.watch.paused():
                line |= self._validate()
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
    def _validate(self) -> dict[str, float]:
        """Numbers about the averaged weights, by rank 0 while the others wait."""
        found: dict[str, float] = {}
        if self.log is not None:
            model = self.model if self.average is None else self.average.model
            model.eval()
            with self._autocast():
                found = {f"val/{name}": float(value) for name, value in self.task.validate(model, self.step).items()}
                if isinstance(self.task, HasSamples):
                    for name, (pixels_THWC, fps) in self.task.sample(model, self.step).items():
                        self.log.write_video(name, pixels_THWC, step=self.step, fps=fps)
        self.model.train()
        self.agreement.wait()
        return found

    def close(self) -> None:
        if self.log is not None:
            self.log.close()


def _seed_everything(seed: int, number: int, rank: int) -> None:
    """What a batch draws from torch's generators depends on its number, not on what was drawn before."""
    state = np.random.SeedSequence([seed, number, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]) >> 1)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
