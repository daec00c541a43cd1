"""Estimate of the device memory that a training run needs, checked before it starts.

    needed = estimate(model, num_shards=8, has_ema=True, is_sharded=True, activations_bytes=task.activation_bytes("bf16"))
    check_fits(needed, device, num_ranks=8)       # UsageError on a GPU, a warning on a CPU, which can swap

State is counted from the parameters, with the bfloat16 copies that autocast keeps and the flat gradients that are being
all-reduced; activations and frozen networks on the device (text encoder, compressor) are the task's own estimate. Swapping
in the EMA for a validation clones the weights when there are no gradients, so it takes no more than they did. It is a lower
bound: allocator fragmentation comes on top.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from recaption.errors import UsageError
from train.parallel.collectives import MAX_FLAT_BYTES
from train.parallel.fsdp import blocks_of

WEIGHT_BYTES = 4
TRAINED_BYTES = 12
"""Per trainable float32 parameter besides itself: gradient and two Adam moments."""
EMA_BYTES = 4
AUTOCAST_BYTES = 2
"""Per parameter under bf16 autocast: the copy that a layer saves for its backward. FSDP gathers bfloat16 weights instead."""
GATHERED_BLOCKS = 2
"""Blocks that a rank holds all-gathered at a time under FSDP: the one in use and the prefetched next one."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Estimated memory of one rank."""

    state_bytes: int
    """Weights, gradients, Adam moments and EMA of the rank's replica or shard."""
    activations_bytes: int
    is_sharded: bool
    activation_checkpointing: bool
    frozen_bytes: int = 0
    """Networks that are not trained but lie on the device too."""

    @property
    def total_bytes(self) -> int:
        return self.state_bytes + self.activations_bytes + self.frozen_bytes


def state_bytes(model: nn.Module, *, has_ema: bool) -> int:
    """Bytes of weights, gradients, Adam moments and EMA of the unsharded model."""
    trainable = WEIGHT_BYTES + TRAINED_BYTES + EMA_BYTES * has_ema
    return sum(p.numel() * (trainable if p.requires_grad else WEIGHT_BYTES) for p in model.parameters())


def estimate(
    model: nn.Module,
    *,
    num_shards: int = 1,
    is_sharded: bool = False,
    activation_checkpointing: bool = False,
    has_ema: bool,
    precision: str = "fp32",
    activations_bytes: int = 0,
    frozen_bytes: int = 0,
) -> MemoryEstimate:
    """Estimate the memory of one rank.

    Args:
        num_shards: ranks that the model is sharded over, or that sum their gradients.
        precision: `fp32` or `bf16`.
    """
    num_bytes = state_bytes(model, has_ema=has_ema)
    if not is_sharded:
        num_bytes += AUTOCAST_BYTES * sum(p.numel() for p in model.parameters()) * (precision == "bf16")
        num_gradients = sum(p.numel() for p in model.parameters() if p.requires_grad)
        num_bytes += min(WEIGHT_BYTES * num_gradients, MAX_FLAT_BYTES) if num_shards > 1 else 0
    else:
        largest = max(sum(p.numel() for p in block.parameters()) for block in blocks_of(model))
        num_bytes = -(-num_bytes // num_shards) + GATHERED_BLOCKS * 2 * WEIGHT_BYTES * largest
    return MemoryEstimate(
        state_bytes=num_bytes,
        activations_bytes=activations_bytes,
        is_sharded=is_sharded,
        activation_checkpointing=activation_checkpointing,
        frozen_bytes=frozen_bytes,
    )


def frozen_bytes(networks: Iterable[nn.Module], *, num_shards: int = 1) -> int:
    """Bytes of networks that are not trained; those with `blocks` are spread over `num_shards` ranks."""
    return sum(
        -(-sum(parameter.nbytes for parameter in network.parameters()) // (num_shards if blocks_of(network) else 1))
        for network in networks
    )


def device_bytes(device: torch.device) -> int | None:
    """Total memory of a GPU, currently available memory of a CPU; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def check_fits(needed: MemoryEstimate, device: torch.device, *, num_ranks: int = 1) -> None:
    """Compare with the device's memory; on a CPU, the machine's `num_ranks` ranks share it, and it only warns.

    Raises:
        UsageError: too much for a GPU, with what to change.
    """
    available = device_bytes(device)
    ranks_per_device = num_ranks if device.type == "cpu" else 1
    if available is None or needed.total_bytes * ranks_per_device <= available:
        return
    remedies = []
    if needed.activations_bytes:
        remedies += [
            "a smaller plan capacity or batch",
            *([] if needed.activation_checkpointing else ["activation-checkpointing"]),
        ]
    if not needed.is_sharded:
        remedies.append("parallel fsdp on several ranks")
    elif needed.state_bytes > available / 2:
        remedies.append("more ranks")
    gb = [f"{count / 1e9:.3g} GB" for count in (needed.total_bytes * ranks_per_device, needed.state_bytes, available)]
    frozen = f", {needed.frozen_bytes / 1e9:.3g} GB of frozen networks" if needed.frozen_bytes else ""
    message = (
        f"training needs about {gb[0]} (per rank {gb[1]} of weights, moments and EMA, "
        f"{needed.activations_bytes / 1e9:.3g} GB of activations{frozen}), {device} has {gb[2]}: use "
        f"{', '.join([*remedies, 'or a smaller model'])}"
    )
    if device.type == "cuda":
        raise UsageError(message)
    logger.warning("%s", message)
