"""The training of one arm with one seed: CPU clock, loss curve on held-out clips, and resume from its own checkpoints.

    run = ArmRun(experiment, arm, seed=0, scenes=scenes, folder=folder, prerequisites={})
    run.train()                 # again after a kill: goes on from the newest checkpoint
    run.checkpoint, run.curve() # {"step": [...], "cpu_seconds": [...], "tokens": [...], "loss": [...]}

CPU seconds are those of the thread that trains (`time.thread_time`: loss, gradients, optimizer, EMA; not reading ahead and
writing checkpoints), without validation. They are part of a checkpoint: steps that a kill undid are not counted twice.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from packing.buckets import Bucket
from packing.loader.loader import PackLoader
from packing.plan.settings import PlanSettings
from tests.evidence.experiment import CAPACITY_TOKENS, RECIPE_DIT, RECIPE_TRAINER, Arm, Experiment
from tests.evidence.world import Scenes, write_json
from train.checkpoint import step_folder
from train.engine.metrics import read_lines
from train.engine.settings import TrainerSettings
from train.engine.task import LossParts
from train.engine.trainer import train
from train.generator.batch import DitBatch
from train.generator.settings import DitSettings
from train.generator.task import DitTask
from train.sampling.sampler import Sampler
from train.text.encoder import TextEncoder
from train.text.encoder import load as load_text_encoder

if TYPE_CHECKING:
    _Task = DitTask
else:
    _Task = object

VALIDATION_PACKS = 2
"""Of a point of the loss curve; the readings use more clips."""
TIMED_STEPS = (4, 12)
"""Steps between which a training is timed for an arm of equal cost."""
ENDED = "ended.json"


class CpuClock(_Task):
    """Mixin of a task: counts thread CPU seconds and tokens of its training, over all resumes."""

    cpu_seconds = 0.0
    num_tokens = 0
    on_point: Callable[[int, float], None] | None = None
    """Called with (step, CPU seconds) at each validation."""
    _started: float | None = None

    def batches(self, start_step: int, rank: int, num_ranks: int) -> Iterator[Any]:
        self._started = time.thread_time()
        yield from super().batches(start_step, rank, num_ranks)

    def loss(self, batch: Any, *, step: int, seed: int) -> LossParts:
        parts = super().loss(batch, step=step, seed=seed)
        self.num_tokens += parts.num_tokens
        return parts

    def validate(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        self._read_clock()
        if self.on_point is not None:
            self.on_point(step, self.cpu_seconds)
        found = super().validate(model, step)
        self._started = time.thread_time()
        return found | {"cpu_seconds": self.cpu_seconds, "tokens": float(self.num_tokens)}

    def state_dict(self) -> dict[str, Any]:
        self._read_clock()
        of_task = super().state_dict() if hasattr(super(), "state_dict") else {}
        return {"task": of_task, "cpu_seconds": self.cpu_seconds, "num_tokens": self.num_tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cpu_seconds, self.num_tokens = state["cpu_seconds"], state["num_tokens"]
        if hasattr(super(), "load_state_dict"):
            super().load_state_dict(state["task"])

    def _read_clock(self) -> None:
        now = time.thread_time()
        if self._started is not None:
            self.cpu_seconds += now - self._started
        self._started = now


@cache
def text_encoder(spec: str) -> TextEncoder:
    """Loaded once for all arms: frozen, with the encoded captions in its cache."""
    return load_text_encoder(spec)


class HeldOutTask(DitTask):
    """`DitTask` that is validated on held-out clips of a world, at a trained size and at one that is not."""

    curve_packs: Mapping[str, list[DitBatch]] = {}
    """Prefix of the curve -> packs."""

    def validate(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        losses = {prefix: self.validation_loss(model, packs) for prefix, packs in self.curve_packs.items()}
        return {prefix + name: value for prefix, found in losses.items() for name, value in found.items()}

    def packs(self, scenes: Scenes, size: Bucket, capacity: int, number: int) -> list[DitBatch]:
        """The first `number` packs of held-out clips of a size."""
        source, plan = scenes.held_out(size), PlanSettings(capacity=capacity)
        loader = PackLoader(source, settings=plan, grid=self.grid, prefetch=0)
        chosen = zip(range(min(number, loader.num_packs_per_epoch)), loader)
        return [DitBatch.from_packed(pack, self.encoder) for _, pack in chosen]


class ClockedDitTask(CpuClock, HeldOutTask):
    """The task of an arm."""


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed."""

    experiment: Experiment
    arm: Arm
    seed: int
    scenes: Scenes
    folder: Path
    prerequisites: Mapping[str, ArmRun]
    """By arm: trainings of the same seed that this one starts from or uses."""
    on_point: Callable[[ArmRun, int, float], None] | None = None
    """Called with (self, step, CPU seconds) now and then."""

    def train(self) -> None:
        """Train, or go on with the training; nothing happens where it has ended."""
        if self.has_ended:
            return
        checkpoint = Path(self.arm.train(self) if self.arm.train else self.train_dit())
        write_json(self.folder / ENDED, {"checkpoint": str(checkpoint.resolve().relative_to(self.folder.resolve()))})

    @property
    def has_ended(self) -> bool:
        if self.arm.checkpoint_of:
            return self.prerequisites[self.arm.checkpoint_of].has_ended
        return (self.folder / ENDED).exists()

    @property
    def checkpoint(self) -> str:
        """Of the ended training."""
        if self.arm.checkpoint_of:
            return self.prerequisites[self.arm.checkpoint_of].checkpoint
        return str(self.folder / json.loads((self.folder / ENDED).read_text())["checkpoint"])

    @cached_property
    def sampler(self) -> Sampler:
        return Sampler.from_checkpoint(self.checkpoint)

    # --- the transformer ----------------------------------------------------------------------------------------------

    def train_dit(self, task: ClockedDitTask | None = None) -> str:
        """Train a transformer by `recaption`'s own loop; returns its checkpoint.

        Args:
            task: in place of the arm's.
        """
        task = task or self.task()
        if self.on_point is not None:
            task.on_point = lambda step, seconds: self.on_point(self, step, seconds) if self.on_point else None
        task.curve_packs = {
            prefix: task.packs(self.scenes, size, CAPACITY_TOKENS, VALIDATION_PACKS)
            for prefix, size in self.scenes.world.validated_sizes().items()
        }
        return train(
            task, self.trainer_settings(self.num_steps()), str(self.folder / "train"), progress=False
        ).checkpoint

    def task(self) -> ClockedDitTask:
        """The arm's task with newly initialised weights, or those it starts from."""
        settings = self.dit_settings()
        plan = {
            "capacity": CAPACITY_TOKENS,
            "cost_model_width": RECIPE_DIT["width"],
            **self.arm.plan,
            "seed": self.seed,
        }
        return ClockedDitTask(
            self.arm.source(self) if self.arm.source else self.scenes.training(),
            settings,
            PlanSettings(**plan),
            compressor=self.scenes.world.compressor,
            encoder=text_encoder(settings.text_encoder),
            buckets=self.scenes.world.sizes,
            seed=self.seed,
        )

    def dit_settings(self) -> DitSettings:
        start = self.prerequisites[self.arm.start_from].checkpoint if self.arm.start_from else ""
        settings = DitSettings(**{**RECIPE_DIT, **self.arm.dit, "holdout_share": 0.0, "init_from": start})
        nested = {name: given for name, given in vars(settings).items() if isinstance(given, Mapping)}
        recipe = {name: {**RECIPE_DIT.get(name, {}), **given} for name, given in nested.items()}
        made = {name: dataclasses.replace(getattr(DitSettings(), name), **given) for name, given in recipe.items()}
        return dataclasses.replace(settings, **made)

    def trainer_settings(self, num_steps: int) -> TrainerSettings:
        settings = {**RECIPE_TRAINER, "num_steps": num_steps, **self.arm.trainer, "seed": self.seed, "device": "cpu"}
        return TrainerSettings(**settings)

    def num_steps(self) -> int:
        """The experiment's, or as many as the arm's CPU-minutes take: timed once and written down for a resume."""
        if not self.arm.cpu_minutes:
            return int(self.arm.trainer.get("num_steps", self.experiment.steps))
        path = self.folder / "timed.json"
        if not path.exists():
            seconds = self._seconds_per_step()
            steps = max(1, round(60 * self.arm.cpu_minutes / seconds))
            write_json(path, {"num_steps": steps, "seconds_per_step": seconds})
        return int(json.loads(path.read_text())["num_steps"])

    def _seconds_per_step(self) -> float:
        task, times = self.task(), {}
        task.on_point = times.__setitem__
        settings = self.trainer_settings(TIMED_STEPS[1])
        fields = {"validate_every": 1, "checkpoint_every": TIMED_STEPS[1], "warmup_steps": 0}
        with tempfile.TemporaryDirectory() as folder:
            train(task, TrainerSettings(**{**vars(settings), **fields}), folder, progress=False)
        return (times[TIMED_STEPS[1]] - times[TIMED_STEPS[0]]) / (TIMED_STEPS[1] - TIMED_STEPS[0])

    # --- what it cost and how it went ---------------------------------------------------------------------------------

    @cached_property
    def state(self) -> dict[str, Any]:
        """`cpu_seconds` and `num_tokens` of the ended training, without those of its prerequisites."""
        if self.arm.checkpoint_of:
            return {"cpu_seconds": 0.0, "num_tokens": 0}
        state: dict[str, Any] = step_folder.find(self.checkpoint).state["task"]
        return state

    @property
    def cpu_seconds(self) -> float:
        """Of the training and of all that it needed."""
        return float(self.state["cpu_seconds"]) + sum(run.cpu_seconds for run in self.prerequisites.values())

    @property
    def num_parameters(self) -> int:
        weights = step_folder.find(self.checkpoint).weights(ema=False)
        return sum(weight.numel() for weight in weights.values())

    def curve(self) -> dict[str, list[float]]:
        """Points of the loss curve, with step, tokens and CPU seconds of each."""
        points = [
            line for line in read_lines(str(self.folder / "train" / "metrics.jsonl")) if "val/cpu_seconds" in line
        ]
        names = [name for name in (points[0] if points else {}) if name.startswith("val/")]
        curve = {"step": [float(point["step"]) for point in points]}
        return curve | {name.removeprefix("val/"): [point[name] for point in points] for name in names}
