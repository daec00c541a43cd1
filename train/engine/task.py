"""What can be trained: a Task gives the one loop its model, its batches and their loss; the rest is optional."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


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
    flops: float = 0.0
    """Floating-point operations that the model needs for the batch, forward and backward, nothing recomputed; 0 = not
    known. See `train.backbones.flops`."""


class Task(Protocol):
    """What is trained. Subclass it or only look like it; `validate` may be inherited."""

    name: str
    """`captioner`, `compressor` or `dit`: the kind of checkpoint this makes."""
    model: nn.Module
    """What is optimised, averaged and saved. Frozen helpers (a text encoder) stay outside or have no requires_grad.
    A model that can be sharded names its layers in `blocks` and is only ever called, no other method of it."""
    config: dict[str, Any]
    """JSON-simple, everything needed to rebuild the model and the data order; a resume with another one is refused."""

    def batches(self, start_step: int, rank: int, num_ranks: int) -> Iterator[Any]:
        """Batches number `start_step`, `start_step + 1`, ... without end, this rank's share of each.

        The number counts batches, not optimizer steps: with accumulation 4, optimizer step 10 starts at batch 40. Batch
        n of rank r is number n * num_ranks + r of one sequence: 2 ranks with one batch each see in a step what 1 rank
        sees with two. The trainer moves tensors (in tuples, lists, dicts, or anything with `.to(device)`) to the device.
        """
        ...

    def loss(self, batch: Any, *, step: int, seed: int) -> LossParts:
        """Loss of the batch of number `step`. torch's global generator is seeded before, from `seed` and the batch's
        place in the sequence of all ranks."""
        ...

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Numbers about `model` (with the averaged weights, in eval mode, no gradients) after `step` optimizer steps.

        Called by rank 0, or by all ranks at once where the model is sharded: the same calls of the model on each.
        """
        return {}


@runtime_checkable
class HasState(Protocol):
    """A task whose data order has a state to check on resume (the packing plan's hash). JSON-simple."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class HasSamples(Protocol):
    """A task that can draw videos while it trains; they go to TensorBoard and to RUN/train/NAME/samples/."""

    def sample(self, model: nn.Module, step: int) -> dict[str, tuple[Any, int]]:
        """Name -> (uint8 RGB frames (T, H, W, 3), frames per second). Called as `validate` is."""
        ...


@runtime_checkable
class HasActivations(Protocol):
    """A task that knows what its model keeps for the backward pass, so that too little memory is seen before the run."""

    def activation_bytes(self, precision: str, *, recompute: bool) -> int:
        """Of the largest batch of one rank, an estimate; `precision` is `fp32` or `bf16`.

        Args:
            recompute: blocks keep their input only, all but the one whose gradient is being computed.
        """
        ...
