"""Sampling from distilled models: the number of steps and the guidance that they were trained for.

student = Student(num_steps=8, guidance=(1.0, 6.0))
student.num_steps_for(0)                 # 8
student.num_steps_for(4)                 # 4: every second of its times
student.num_steps_for(5)                 # UsageError
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recaption.errors import UsageError
from train.diffusion.guidance import Guidance
from train.diffusion.noise_schedules import FLOW
from train.diffusion.process import DiffusionSettings

DEFAULT_NUM_STEPS = 30
"""Of models that are not distilled."""
GUIDANCE = "guidance"
"""Scalar input of a model that gives guided predictions in one call: the guidance scale."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """What a distilled checkpoint records (`distilled` in its config)."""

    num_steps: int | None
    """Steps that it takes from noise to video; None: any number, only its guidance is distilled."""
    guidance: tuple[float, float] | None
    """Range of guidance scales that one call gives; None: guidance takes two calls, as usual."""

    @classmethod
    def of(cls, distilled: Mapping[str, Any] | None) -> Student | None:
        """From a checkpoint's config; None for a model that is not distilled."""
        if not distilled:
            return None
        guidance = distilled["guidance"]
        return cls(num_steps=distilled["num_steps"], guidance=None if guidance is None else tuple(guidance))

    def num_steps_for(self, requested: int) -> int:
        """Raises UsageError where the model was not trained for so many steps."""
        if self.num_steps is None:
            return requested or DEFAULT_NUM_STEPS
        if requested and (requested > self.num_steps or self.num_steps % requested):
            divisors = [str(n) for n in range(self.num_steps, 0, -1) if self.num_steps % n == 0]
            raise UsageError(
                f"this model was distilled to {self.num_steps} steps, not {requested}: "
                f"sample it with {' or '.join(divisors)}"
            )
        return requested or self.num_steps

    def solver(self, requested: str, diffusion: DiffusionSettings) -> str:
        """The solver whose steps were distilled; raises UsageError for another."""
        distilled = "euler" if diffusion.schedule == FLOW else "ddim"
        if self.num_steps is not None and requested not in ("auto", distilled):
            raise UsageError(
                f"this model was distilled for steps of {distilled}, not of {requested}: leave the solver out"
            )
        return distilled if requested == "auto" else requested

    def check(self, guidance: Guidance) -> None:
        """Raises UsageError for guidance that the model was not trained for."""
        if self.guidance is None:
            return
        low, high = self.guidance
        if not low <= guidance.scale <= high:
            raise UsageError(
                f"this model was distilled for guidance scales from {low:g} to {high:g}, not {guidance.scale:g}"
            )
        if guidance.interval != (0, 1) or guidance.rescale or guidance.power:
            raise UsageError(
                "this model gives guided predictions in one call: guidance interval, rescale and power have no effect, "
                "leave them out"
            )
