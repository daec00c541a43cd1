"""The Task protocol: model, batches and loss for the training loop, plus optional capabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from train.checkpoint.trained_part import FrozenBase


@dataclass(frozen=True, kw_only=True)
class LossParts:
    """Un-normalised loss of one batch; the trainer divides by the summed weights of the whole step."""

    loss_sum: Tensor
    """Scalar with a gradient: sum over the batch's samples (or tokens) of loss times weight."""
    weight: Tensor | float
    """Sum of those weights: the number of samples for a per-sample mean, of tokens for a per-token mean."""
    logs: Mapping[str, Tensor | float] = field(default_factory=dict)
    """Detached scalars for the log line, averaged over batches and written as `log/<name>`."""
    num_tokens: int = 0
    """Tokens of the batch without padding, for tokens_per_second (samples, if the task has no tokens)."""
    capacity_tokens: int = 0
    """Tokens including padding; fill = num_tokens / capacity_tokens."""
    flops: float = 0.0
    """Model FLOPs of the batch, forward and backward, without recomputation; 0 = unknown. See train/backbones/flops.py."""


class Task(Protocol):
    """A training task. Subclass it or match it structurally; `validate` may be inherited."""

    name: str
    """`captioner`, `compressor` or `dit`; recorded in its checkpoints."""
    model: nn.Module
    """What is optimised, averaged (EMA) and saved. Keep frozen helpers (a text encoder) outside, or without requires_grad.
    A model that supports FSDP has its layers in `blocks` (nn.ModuleList) and is used through `forward` alone."""
    config: dict[str, Any]
    """JSON-serialisable; everything needed to rebuild the model and the data order. A resume with another one is refused."""

    def batches(self, start_step: int, rank: int, num_ranks: int) -> Iterator[Any]:
        """Endless iterator over this rank's batches `start_step`, `start_step + 1`, ...

        Numbers count batches, not optimizer steps: with accumulation 4, optimizer step 10 starts at batch 40. Batch n
        of rank r is number n * num_ranks + r of the global sequence: a step of 2 ranks with one batch each equals a step
        of 1 rank with two. The trainer moves batches to the device (tuples, lists, dicts, objects with `.to(device)`), once,
        from pinned memory and without waiting.
        """
        ...

    def loss(self, batch: Any, *, step: int, seed: int) -> LossParts:
        """Loss of batch number `step`. torch's global generators have been seeded from `seed` and the batch's position in
        the global sequence."""
        ...

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Validation metrics of `model` (EMA weights, eval mode, no gradients) after `step` optimizer steps.

        Called on rank 0 alone, or on all ranks if the model is sharded; then every rank must make the same model calls.
        """
        return {}


@runtime_checkable
class HasCompiledModules(Protocol):
    """A task whose loss does not call its model as a whole, so that `compile` has to know what it does call."""

    def compiled_modules(self) -> list[nn.Module]:
        """Modules whose `forward` the loss runs; repeated layers rather than all at once, so that they compile once."""
        ...


@runtime_checkable
class HasPreparation(Protocol):
    """A task whose batches need more than was read: random numbers, indices, masks."""

    def prepared(self, batch: Any, *, step: int, seed: int) -> Any:
        """The batch with everything that its loss needs, computed on the CPU before the trainer moves it: `loss` itself
        copies nothing to the device and reads nothing back.

        Args:
            step, seed: as of `loss`.
        """
        ...


@runtime_checkable
class HasState(Protocol):
    """A task with data-order state to check on resume (the packing plan's hash). JSON-serialisable."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class HasSamples(Protocol):
    """A task that samples videos during training; they go to TensorBoard and to RUN/train/NAME/samples/."""

    def sample(self, model: nn.Module, step: int) -> dict[str, tuple[Any, int]]:
        """Name -> (uint8 RGB frames (T, H, W, 3), frames per second). Called like `validate`."""
        ...


@runtime_checkable
class HasActivationEstimate(Protocol):
    """A task that can estimate activation memory, so that a run that cannot fit is refused before it starts."""

    def activation_bytes(self, precision: str, *, activation_checkpointing: bool) -> int:
        """Estimated activation bytes of one rank's largest batch; `precision` is `fp32` or `bf16`.

        Args:
            activation_checkpointing: all blocks but the one in backward keep only their input.
        """
        ...


@runtime_checkable
class HasFrozenNetworks(Protocol):
    """A task with networks besides its model that are not trained: a teacher, a text encoder, a compressor for samples."""

    def frozen_networks(self) -> Sequence[nn.Module]:
        """Networks that every step needs. The engine places them on the device before the first step, sharded like the
        model, in eval mode and without gradients."""
        ...

    def frozen_bytes(self) -> int:
        """Bytes on the device of those that the task places itself."""
        ...


@runtime_checkable
class HasFrozenBase(Protocol):
    """A task that trains a part of its model: `requires_grad` is off for the weights of a base that it was built from.

    Its checkpoints hold the trained part alone, and the id and hash of the base in `config["base"]`, so that a resume or a
    sampling from another base is refused. None: the whole model is trained and saved.
    """

    base: FrozenBase | None
