"""Settings of a sampling: solver, number of steps, guidance, precision; resolved for the model that is sampled."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from train.diffusion.guidance import Guidance
from train.diffusion.process import DiffusionSettings
from train.diffusion.solvers import choose_solver
from train.parallel.process_group import choose_precision
from train.sampling.student import DEFAULT_NUM_STEPS, Student

MAX_PACK_TOKENS = 32_768
"""Tokens of one model call, with and without guidance's second copy: bounds memory."""


@dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """Solver, number of steps, and guidance."""

    num_steps: int = 0
    """0: 30, or those that a distilled model was trained for."""
    guidance: float | Guidance = 4.0
    """A scale, or `Guidance` with all settings: 1 = none (one model call instead of two), higher = closer to the prompt and
    less diverse."""
    solver: str = "auto"
    """`auto`, or a solver of `train.diffusion.solvers` that supports the schedule the model was trained on."""
    precision: str = "auto"
    """Of the model calls: `fp32` or `bf16` (autocast); auto: bf16 on a GPU, fp32 on a CPU, whatever the training had."""

    def resolved(
        self, diffusion: DiffusionSettings, device: torch.device, student: Student | None = None
    ) -> SolverSettings:
        """With `Guidance` for a scale, and what `auto` stands for; raises UsageError where they do not fit the model."""
        guidance = Guidance.of(self.guidance)
        guidance.check()
        solver, num_steps = choose_solver(self.solver, diffusion), self.num_steps or DEFAULT_NUM_STEPS
        if student is not None:
            solver, num_steps = student.solver(self.solver, diffusion), student.num_steps_for(self.num_steps)
            student.check(guidance)
        precision = choose_precision(self.precision, device)
        return dataclasses.replace(self, guidance=guidance, solver=solver, precision=precision, num_steps=num_steps)

    @property
    def max_pack_tokens(self) -> int:
        """Tokens of one copy of a pack."""
        return MAX_PACK_TOKENS // Guidance.of(self.guidance).num_copies(has_context=True)
