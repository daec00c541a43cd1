"""Every setting of the loop. Flags come from these fields: `--train-dit.trainer.lr 1e-4`."""

from __future__ import annotations

from dataclasses import dataclass

from recaption.errors import UsageError
from train.engine.optimizer import SCHEDULES
from train.parallel.fsdp import PARALLEL


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    num_steps: int = 1000
    """Optimizer steps in all, those before a resume included."""
    accumulation: int = 1
    """Batches per rank and optimizer step. A run that goes on with other ranks keeps its batches per step in all."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 50
    schedule: str = "cosine"
    """After a linear warmup: `cosine` (down to `final_lr_share`), `wsd` (constant, then straight down to it), `constant`."""
    final_lr_share: float = 0.05
    """Learning rate of the last step over the peak, for `cosine` and `wsd`."""
    decay_share: float = 0.2
    """Share of all steps in which `wsd` goes down. Until then the run does not depend on `num_steps`: ask for more later."""
    weight_decay: float = 0.01
    """Of matrices and kernels; norms, biases and embeddings have none."""
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    """Gradients longer than this are scaled down to it; 0 = never."""
    ema_decay: float = 0.999
    """Of the averaged weights; 0 = no average."""
    precision: str = "fp32"
    """`fp32`, or `bf16` for autocast with float32 weights."""
    parallel: str = "auto"
    """How several ranks share a model: `ddp` (each has all of it), `fsdp` (each has a part of weights, moments and average;
    only for models that name their blocks), `auto` (fsdp where one device would be too full)."""
    recompute: bool = False
    """Keep only the inputs of blocks and compute the rest again in the backward pass: a third more arithmetic, a fraction
    of the memory. Only for models that name their blocks."""
    compile: bool = False
    """Run the model through torch.compile, block by block where it names its blocks."""
    device: str = "auto"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    """A checkpoint after every so many steps, after the last one, and when the run is told to stop."""
    keep_checkpoints: int = 2
    validate_every: int = 0
    """Validate after so many steps each and after the last; 0 = after the last only."""
    sample_every: int = 0
    """Sample after so many steps each and after the last, where the task can; 0 = whenever it validates."""
    max_skipped_steps: int = 20
    """Steps whose loss or gradient is not finite are left out; more of them than this end the run."""

    def check(self) -> None:
        """Raises UsageError where a setting makes no sense."""
        for name in ("num_steps", "accumulation", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UsageError(f"trainer setting {name} = {getattr(self, name)}, it must be at least 1")
        for name in (
            "lr", "warmup_steps", "weight_decay", "max_grad_norm", "validate_every", "sample_every", "max_skipped_steps",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise UsageError(f"trainer setting {name} = {getattr(self, name)} is negative")
        for name, choices in (("schedule", SCHEDULES), ("precision", ("fp32", "bf16")), ("parallel", PARALLEL)):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} {getattr(self, name)!r} is unknown; there are: {', '.join(choices)}")
        if not 0 < self.decay_share <= 1:
            raise UsageError(f"trainer setting decay_share = {self.decay_share} must be above 0 and at most 1")
        if self.ema_decay and not 0 < self.ema_decay < 1:
            raise UsageError(f"trainer setting ema_decay = {self.ema_decay} must be below 1 (0 = no average)")


FIXED_ON_RESUME = ("seed", "ema_decay")
"""Settings that decide which random numbers come, or what a checkpoint holds: a resume cannot change them."""
