"""Whether a training fits the memory of its device, said before it starts.

    needed = estimate(model, num_parts=8, has_average=True, is_sharded=True, activations_bytes=task.activation_bytes("bf16"))
    check_fits(needed, device, num_ranks=8)       # UsageError on a GPU, a warning on a CPU, which can swap

Weights are counted, activations are the task's own estimate; what the allocator wastes and what text encoders take come on
top, so that an estimate that does not fit never would.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import nn

from recaption.errors import UsageError
from train.parallel.fsdp import blocks_of

WEIGHT_BYTES = 4


TRAINED_BYTES = 12
"""float32, of each trained number besides itself: gradient, and two moments of Adam."""


AVERAGE_BYTES = 4


GATHERED_BLOCKS = 2
"""Blocks whose whole weights and gradients a rank holds at a time under FSDP: the one in use and the next."""


logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MemoryNeeded:
    """Of one rank."""

    state_bytes: int
    """Weights, gradients, moments, average: of the whole model, or of a rank's part of it."""
    activations_bytes: int
    is_sharded: bool
    is_recomputing: bool

    @property
    def total_bytes(self) -> int:
        return self.state_bytes + self.activations_bytes


def state_bytes(model: nn.Module, *, has_average: bool) -> int:
    """Weights, gradients, moments and average of the whole model."""
    trained = WEIGHT_BYTES + TRAINED_BYTES + AVERAGE_BYTES * has_average
    return sum(p.numel() * (trained if p.requires_grad else WEIGHT_BYTES) for p in model.parameters())


def estimate(
    model: nn.Module,
    *,
    num_parts: int = 1,
    is_sharded: bool = False,
    is_recomputing: bool = False,
    has_average: bool,
    activations_bytes: int = 0,
) -> MemoryNeeded:
    """Of one rank's device.

    Args:
        num_parts: ranks that a sharded model is spread over.
    """
    whole = state_bytes(model, has_average=has_average)
    if is_sharded:
        largest = max(sum(p.numel() for p in block.parameters()) for block in blocks_of(model))
        whole = -(-whole // num_parts) + GATHERED_BLOCKS * 2 * WEIGHT_BYTES * largest
    return MemoryNeeded(
        state_bytes=whole, activations_bytes=activations_bytes, is_sharded=is_sharded, is_recomputing=is_recomputing
    )


def device_bytes(device: torch.device) -> int | None:
    """Memory of a GPU in all, of a CPU what is free now; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def check_fits(needed: MemoryNeeded, device: torch.device, *, num_ranks: int = 1) -> None:
    """Compare with the device, which on a CPU the `num_ranks` ranks of the machine share.

    Raises:
        UsageError: it cannot fit a GPU; what to change is said.
    """
    there = device_bytes(device)
    sharing = num_ranks if device.type == "cpu" else 1
    if there is None or needed.total_bytes * sharing <= there:
        return
    wishes = []
    if needed.activations_bytes:
        wishes += ["a smaller plan capacity or batch", *([] if needed.is_recomputing else ["recompute"])]
    if not needed.is_sharded:
        wishes.append("parallel fsdp on several ranks")
    elif needed.state_bytes > there / 2:
        wishes.append("more ranks")
    gb = [f"{count / 1e9:.3g} GB" for count in (needed.total_bytes * sharing, needed.state_bytes, there)]
    text = (
        f"training needs about {gb[0]} (per rank {gb[1]} of weights and moments, "
        f"{needed.activations_bytes / 1e9:.3g} GB of activations), {device} has {gb[2]}: take "
        f"{', '.join([*wishes, 'or a smaller model'])}"
    )
    if device.type == "cuda":
        raise UsageError(text)
    logger.warning("%s", text)
