"""Settings of the training loop; each field is a flag, such as `--train-dit.trainer.lr 1e-4`."""

from __future__ import annotations

from dataclasses import dataclass

from recaption.errors import UsageError
from train.engine.optimizer import SCHEDULES
from train.parallel.fsdp import PARALLEL


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    num_steps: int = 1000
    """Total optimizer steps, including those before a resume."""
    accumulation: int = 1
    """Gradient accumulation: batches per rank and optimizer step. A resume on other ranks keeps the global batch size."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 50
    """Steps of linear warmup of the learning rate."""
    schedule: str = "cosine"
    """Learning rate after the warmup: `cosine` (down to `final_lr_fraction`), `wsd` (constant, then linear decay to it) or
    `constant`."""
    final_lr_fraction: float = 0.05
    """Learning rate of the last step as a fraction of the peak, for `cosine` and `wsd`."""
    decay_fraction: float = 0.2
    """Fraction of all steps over which `wsd` decays. Before that, the run does not depend on
    `num_steps`: it can be extended later."""
    weight_decay: float = 0.01
    """Of matrices and convolution kernels; norms, biases and embeddings have none."""
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    """Gradient clipping by global norm; 0 = off."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the weights; 0 = no EMA."""
    precision: str = "fp32"
    """`fp32`, or `bf16` for bfloat16 autocast over float32 weights."""
    parallel: str = "auto"
    """`ddp` (a replica per rank), `fsdp` (FSDP2: weights, moments and EMA sharded; only for models with `blocks`), `auto`
    (fsdp if the state would fill too much of one device)."""
    activation_checkpointing: bool = False
    """Keep only each block's input and recompute the rest in the backward pass: a third more FLOPs, a fraction of the
    memory. Only for models with `blocks`."""
    compile: bool = False
    """torch.compile each of the model's `blocks`, or the whole model if it has none."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU where there is one."""
    timeout_minutes: float = 30.0
    """How long a rank waits for the others in a collective before it gives up. Validation and sampling on rank 0 may take
    longer."""
    seed: int = 0
    """Seed of weights, noise and data order."""
    log_every: int = 10
    checkpoint_every: int = 500
    """Steps between checkpoints; also one after the last step and on SIGTERM or Ctrl-C."""
    keep_checkpoints: int = 2
    validate_every: int = 0
    """Steps between validations; also after the last step; 0 = after the last only."""
    sample_every: int = 0
    """Steps between samplings, for tasks that can sample; also after the last step; 0 = at each validation."""
    max_skipped_steps: int = 20
    """Steps with a non-finite loss or gradient are skipped; more than this many abort the run."""

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
        if self.timeout_minutes <= 0:
            raise UsageError(f"trainer setting timeout_minutes = {self.timeout_minutes} must be above 0")
        if not 0 < self.decay_fraction <= 1:
            raise UsageError(f"trainer setting decay_fraction = {self.decay_fraction} must be above 0 and at most 1")
        if self.ema_decay and not 0 < self.ema_decay < 1:
            raise UsageError(f"trainer setting ema_decay = {self.ema_decay} must be below 1 (0 = no EMA)")


FIXED_ON_RESUME = ("seed", "ema_decay")
"""Settings that a resume cannot change: they determine the random numbers or the files of a checkpoint."""
