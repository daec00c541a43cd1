"""Runs an experiment: arms x seeds, one training at a time, all arms of a seed before the next seed; resumable anywhere.

    run_experiment(load_experiment("backbones"), out="build/evidence", results="tests/evidence/results")

State lies in OUT/NAME/seed-0/ARM (the training's own checkpoints, then readings.json) and OUT/worlds; after each arm the
JSON file of the results, the plot and the contact sheet are written anew, so that they show what there is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recaption.errors import UsageError
from recaption.folder_lock import FolderLock
from recaption.run_folder import RunFolder
from tests.evidence import pictures
from tests.evidence.experiment import (
    CAPACITY_TOKENS,
    RECIPE_DIT,
    RECIPE_TRAINER,
    Arm,
    Experiment,
)
from tests.evidence.results import Results, claims_as_json, series_as_json, thinned
from tests.evidence.training import ArmRun
from tests.evidence.world import Scenes, World, write_json

READINGS = "readings.json"
SETTINGS = "settings.json"


@dataclass
class ExperimentRun:
    """The state of an experiment on disk."""

    experiment: Experiment
    out: Path
    results: Path
    say: Callable[[str], None]
    on_results: Callable[[], None]
    _minutes: dict[str, float] = field(default_factory=dict)
    """CPU-minutes of a training of each arm, as far as known."""
    _scenes: dict[World, Scenes] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.out / self.experiment.name

    def arm_runs(self, seed: int) -> dict[str, ArmRun]:
        """The trainings of a seed, each after those it starts from."""
        found: dict[str, ArmRun] = {}
        for arm in self.experiment.runnable():
            found[arm.name] = ArmRun(
                experiment=self.experiment,
                arm=arm,
                seed=seed,
                scenes=self.scenes_of(arm),
                folder=self.folder / f"seed-{seed}" / arm.name,
                prerequisites={name: found[name] for name in arm.prerequisites},
                on_point=self._say_progress,
            )
        return found

    def run(self, seeds: Sequence[int]) -> None:
        for seed in seeds:
            for run in self.arm_runs(seed).values():
                _check_settings(run)
                if not (run.folder / READINGS).exists():
                    with FolderLock(RunFolder(str(run.folder)), _title(run)):
                        self._run_arm(run)
                self._minutes[run.arm.name] = json.loads((run.folder / READINGS).read_text())["cpu_minutes"]
                self.write_results()

    def _run_arm(self, run: ArmRun) -> None:
        run.train()
        self.say(f"{_title(run)}: reading")
        start = time.thread_time()
        readings = {
            name: series_as_json(series)
            for reading in self.experiment.readings_of(run.arm)
            for name, series in reading.read(run).items()
        }
        found = {
            "cpu_minutes": run.cpu_seconds / 60,
            "num_tokens": run.state["num_tokens"],
            "num_parameters": run.num_parameters,
            "phases_cpu_seconds": {
                "training": round(run.state["cpu_seconds"], 1),
                "readings": round(time.thread_time() - start, 1),
            },
            "curve": thinned(run.curve()),
            "readings": readings,
        }
        write_json(run.folder / READINGS, found)

    def check_parameters(self) -> None:
        """Raises UsageError where arms that are to have as many weights have not."""
        if self.experiment.equal_parameters is None:
            return
        runs = [run for run in self.arm_runs(self.experiment.seeds[0]).values() if run.arm.train is None]
        counts = {run.arm.name: sum(weight.numel() for weight in run.task().model.parameters()) for run in runs}
        self.say(f"{self.experiment.name}: weights {', '.join(f'{name} {count:,}' for name, count in counts.items())}")
        if max(counts.values()) > (1 + self.experiment.equal_parameters) * min(counts.values()):
            raise UsageError(
                f"the arms of {self.experiment.name} differ by more than {self.experiment.equal_parameters:.0%} in their "
                f"number of weights ({counts}): change width or depth"
            )

    def scenes_of(self, arm: Arm) -> Scenes:
        """The world's, or the same scenes by the arm's compressor; rendered at the first call."""
        world = self.experiment.world
        world = dataclasses.replace(world, compressor=arm.compressor or world.compressor)
        if world not in self._scenes:
            self._scenes[world] = world.scenes(self.out / "worlds")
        return self._scenes[world]

    # --- progress -----------------------------------------------------------------------------------------------------

    def _say_progress(self, run: ArmRun, step: int, cpu_seconds: float) -> None:
        num_steps, minutes = run.num_steps(), cpu_seconds / 60
        whole = minutes * num_steps / step
        self._minutes.setdefault(run.arm.name, whole)
        after = self._minutes_after(run, whole)
        self.say(
            f"{_title(run)}: step {step} of {num_steps}, {minutes:.1f} CPU-min, {whole - minutes:.1f} left of this "
            f"training, about {whole - minutes + after:.0f} of the experiment"
        )

    def _minutes_after(self, current: ArmRun, default: float) -> float:
        """Estimated CPU-minutes of the trainings that have not begun."""
        return sum(
            self._minutes.get(run.arm.name, default)
            for seed in self.experiment.seeds
            for run in self.arm_runs(seed).values()
            if not run.has_ended and run.folder != current.folder
        )

    # --- results ------------------------------------------------------------------------------------------------------

    def write_results(self) -> None:
        """JSON, plot and contact sheet of what is finished."""
        experiment = self.experiment
        runs: dict[str, dict[str, Any]] = {}
        for seed in experiment.seeds:
            for name, run in self.arm_runs(seed).items():
                path = run.folder / READINGS
                if path.exists():
                    runs.setdefault(name, {})[str(seed)] = json.loads(path.read_text())
        results = Results(
            {
                "name": experiment.name,
                "question": experiment.question,
                "source": experiment.source,
                "is_micro": experiment.is_micro,
                "claims": claims_as_json(experiment.claims),
                "arms": {arm.name: _arm_as_json(arm) for arm in experiment.arms},
                "waiting": experiment.missing(),
                "recipe": {"dit": RECIPE_DIT, "trainer": RECIPE_TRAINER, "capacity_tokens": CAPACITY_TOKENS},
                "steps": experiment.steps,
                "seeds": list(experiment.seeds),
                "world": dataclasses.asdict(experiment.world),
                "world_cpu_seconds": round(sum(scenes.cpu_seconds for scenes in self._scenes.values()), 1),
                "versions": versions(),
                "runs": runs,
            }
        )
        self.results.mkdir(parents=True, exist_ok=True)
        results.save(self.results / f"{experiment.name}.json")
        pictures.write_plot(results, self.results / f"{experiment.name}.png")
        samples = [run.folder / "samples.npz" for run in self.arm_runs(experiment.seeds[0]).values()]
        pictures.write_sheet(
            {path.parent.name: path for path in samples if path.exists()},
            self.results / f"{experiment.name}-samples.png",
        )
        self.on_results()


def run_experiment(
    experiment: Experiment,
    *,
    out: str | Path,
    results: str | Path,
    seeds: Sequence[int] = (),
    on_results: Callable[[], None] = lambda: None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Run what is left of an experiment; killed at any moment, the same call goes on.

    Args:
        out: folder of the state of all experiments.
        results: folder of the JSON files.
        seeds: train these only; default: all. Two processes may share an experiment by its seeds.
        on_results: called after each arm, when the files of the results are written.
        say: gets one line now and then; default: stderr.

    Raises:
        UsageError: no arm can be trained yet, a seed that the experiment does not have, or state of other settings in `out`.
        FolderInUseError: another process trains the same arm and seed there.
    """
    torch.set_num_threads(1)
    say, seeds = say or _say_on_stderr, seeds or experiment.seeds
    if set(seeds) - set(experiment.seeds):
        raise UsageError(f"experiment {experiment.name} has the seeds {experiment.seeds}, not {tuple(seeds)}")
    for name, sentence in experiment.missing().items():
        say(f"{experiment.name}: arm {name} is left out, it waits for {sentence}")
    if not experiment.runnable():
        raise UsageError(f"experiment {experiment.name} waits for {next(iter(experiment.missing().values()))}")
    run = ExperimentRun(experiment, Path(out), Path(results), say, on_results)
    run.check_parameters()
    run.run(seeds)


def versions() -> dict[str, str]:
    """Of what the result depends on."""
    found = {"python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        found["commit"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found["commit"] = "unknown"
    return found


def _check_settings(run: ArmRun) -> None:
    """Write down the settings of a training, or refuse to go on with another one's state."""
    settings = {
        "arm": _arm_as_json(run.arm),
        "steps": run.experiment.steps,
        "world": run.scenes.world.key(),
        "recipe": [RECIPE_DIT, RECIPE_TRAINER, CAPACITY_TOKENS],
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    path = run.folder / SETTINGS
    if path.exists() and json.loads(path.read_text())["digest"] != digest:
        raise UsageError(
            f"{run.folder} holds a training of {_title(run)} with other settings: remove the folder, or choose another --out"
        )
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"digest": digest} | settings)


def _arm_as_json(arm: Arm) -> dict[str, Any]:
    """What is set; functions by their names."""
    fields = {f.name: getattr(arm, f.name) for f in dataclasses.fields(arm) if f.name not in ("readings", "name")}
    return {
        name: f"{value.__module__}.{value.__qualname__}" if callable(value) else value
        for name, value in fields.items()
        if value
    }


def _title(run: ArmRun) -> str:
    return f"{run.experiment.name}, seed {run.seed}, {run.arm.name}"


def _say_on_stderr(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
