"""An experiment as it is declared: a question, arms that answer it, what is read from each, and the claims to be judged.

    EXPERIMENT = Experiment(
        question="Do long skips help a U-shaped transformer at equal tokens?",
        source="U-ViT (2209.12152), figure 2",
        arms=(Arm("skips", dit={"backbone": "uvit"}), Arm("no_skips", dit={"backbone": "uvit", "uvit": {"skips": False}})),
        claims=(Claim("with skips more prompts are followed", "skips", "no_skips"),),
    )

A file in experiments/ declares one; its name is the file's. `python -m tests.evidence NAME` runs it (run.py).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packing.loader.sources import SampleSource
from packing.plan.settings import PlanSettings
from recaption.errors import UsageError
from tests.evidence.readings import ClipLoss, PromptFollowing, Reading
from tests.evidence.world import World
from train.backbones.registry import BACKBONES
from train.engine.settings import TrainerSettings
from train.generator.settings import DitSettings

if TYPE_CHECKING:
    from tests.evidence.training import ArmRun

EXPERIMENTS = Path(__file__).parent / "experiments"
SEEDS = (0, 1, 2)
MIN_SEEDS = 3
"""Finished seeds of every arm before there is a verdict."""
MIN_CPU_MINUTES = 12.0
"""CPU-minutes of training of every arm and seed, the trainings it starts from included."""
MIN_PROMPTS = 300
MIN_FOLLOWED = 0.5
"""Fraction of the prompts that the best arm of a comparison follows; below it models have not learned enough to compare."""

CAPACITY_TOKENS = 768
"""Of a pack."""
RECIPE_DIT: Mapping[str, Any] = {
    "width": 256,
    "depth": 4,
    "num_heads": 4,
    "patch": (2, 2, 2),
    "absolute_positions": True,
    "diffusion": {"timestep_mean": 0.5},
}
"""Settings of `recaption train dit` that every arm has unless it says otherwise: those of bench_prompt_following.py, which
follow 53 % of 30 prompts after 3000 steps at the full learning rate, 63 % after 5000."""
RECIPE_TRAINER: Mapping[str, Any] = {
    "lr": 2e-3,
    "ema_decay": 0.998,
    "precision": "bf16",
    "validate_every": 250,
    "checkpoint_every": 250,
    "keep_checkpoints": 1,
}


@dataclass(frozen=True)
class Arm:
    """One way to train, compared with the others of its experiment."""

    name: str
    about: str = ""
    """What it is, for the page, where its name does not say it."""
    dit: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `DitSettings` that differ from RECIPE_DIT; nested settings (`diffusion`) by their own fields."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainerSettings` that differ from RECIPE_TRAINER and the experiment's steps."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `PlanSettings`: token dropping, temporal crops, capacity."""
    compressor: str = ""
    """In place of the world's: the same scenes, encoded by another one."""
    source: Callable[[ArmRun], SampleSource] | None = None
    """In place of the world's training clips: other captions, say."""
    cpu_minutes: float = 0.0
    """Train as many steps as take this long, timed once, instead of the experiment's steps: for equal cost."""
    start_from: str = ""
    """Arm whose checkpoint (of the same seed) is loaded first; its cost is counted."""
    needs: tuple[str, ...] = ()
    """Further arms whose checkpoints `train` uses; their cost is counted."""
    checkpoint_of: str = ""
    """Arm whose checkpoint is read once more, by other readings (fewer steps of the solver); nothing is trained."""
    train: Callable[[ArmRun], str] | None = None
    """In place of the transformer's training: trains in `run.folder`, resumes there, and returns its checkpoint."""
    readings: tuple[Reading, ...] | None = None
    """In place of the experiment's; () for an arm that others only start from."""
    waits_for: str = ""
    """What does not exist yet, so that this arm is left out: the end of "waits for ..."."""

    def missing(self) -> str:
        """What this arm waits for; empty if it can be trained."""
        if self.waits_for:
            return self.waits_for
        backbone = self.dit.get("backbone", "dit")
        if backbone not in BACKBONES:
            return f"the backbone {backbone}"
        given = ((DitSettings(), self.dit), (TrainerSettings(), self.trainer), (PlanSettings(capacity=1), self.plan))
        return next((f"the setting {name}" for settings, names in given for name in _unknown(settings, names)), "")

    @property
    def prerequisites(self) -> tuple[str, ...]:
        return tuple(name for name in (self.start_from, self.checkpoint_of, *self.needs) if name)


@dataclass(frozen=True)
class Claim:
    """`better` has a value of `reading` that is better than that of `worse`, by more than `margin`."""

    text: str
    better: str
    worse: str
    reading: str = "follows"
    """A series of the readings (readings.py), or `loss_at_equal_cpu` and its kin (results.py)."""
    margin: float = 0.0
    """In units of the reading. Below 0: `better` is at most so much worse, as for a cheaper model."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms x seeds, read alike."""

    question: str
    source: str
    """Where the claim was published."""
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    readings: tuple[Reading, ...] = (PromptFollowing(), ClipLoss())
    world: World = field(default_factory=World)
    steps: int = 6000
    equal_parameters: float | None = None
    """Arms may differ by this fraction in their number of weights."""
    seeds: tuple[int, ...] = SEEDS
    is_micro: bool = False
    """A test of the harness: nothing it shows counts."""
    name: str = ""
    """That of its file."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise UsageError(f"two arms of experiment {self.name!r} have one name: {', '.join(names)}")
        for index, arm in enumerate(self.arms):
            for needed in arm.prerequisites:
                if needed not in names[:index]:
                    raise UsageError(f"arm {arm.name!r} needs {needed!r}, which is not an arm before it")
        for claim in self.claims:
            for name in (claim.better, claim.worse):
                if name not in names:
                    raise UsageError(f"claim {claim.text!r} is about {name!r}; the arms are {', '.join(names)}")

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def readings_of(self, arm: Arm) -> tuple[Reading, ...]:
        return self.readings if arm.readings is None else arm.readings

    def missing(self) -> dict[str, str]:
        """Arm -> what it waits for, those included that start from such an arm."""
        found: dict[str, str] = {}
        for arm in self.arms:
            sentence = arm.missing() or next((found[needed] for needed in arm.prerequisites if needed in found), "")
            if sentence:
                found[arm.name] = sentence
        return found

    def runnable(self) -> tuple[Arm, ...]:
        """Arms that can be trained, those before the arms that start from them."""
        missing = self.missing()
        return tuple(arm for arm in self.arms if arm.name not in missing)


def _unknown(settings: Any, given: Mapping[str, Any]) -> Iterator[str]:
    """Names that the dataclass does not have, nested ones with their path."""
    for name, value in given.items():
        if not hasattr(settings, name):
            yield f"{name} of {type(settings).__name__}"
        elif isinstance(value, Mapping):
            yield from _unknown(getattr(settings, name), value)


def experiment_names() -> list[str]:
    return sorted(path.stem for path in EXPERIMENTS.glob("*.py"))


def load_experiment(name: str) -> Experiment:
    """The experiment that experiments/NAME.py declares.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in experiment_names():
        raise UsageError(f"there is no experiment {name!r}; there are: {', '.join(experiment_names())}")
    module = importlib.import_module(f"tests.evidence.experiments.{name}")
    experiment: Experiment = module.EXPERIMENT
    return dataclasses.replace(experiment, name=name)
