"""Estimate of the GPU memory that training a backbone takes: weights, gradients, optimizer, EMA, activations.

    training_memory(width=1152, depth=28, capacity=16384, num_ranks=8).activations_bytes / 1e9

Parameters are counted on the model itself; activations are asked of it: a measured number of bytes per token, width
and block. The compressor, the text encoder and fragmentation are not included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recaption.errors import UsageError
from train.parallel.device_memory import AUTOCAST_BYTES, EMA_BYTES, TRAINED_BYTES, WEIGHT_BYTES

STATE_BYTES_PER_PARAMETER = WEIGHT_BYTES + TRAINED_BYTES + EMA_BYTES


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Memory of one rank."""

    num_parameters: int
    model_state_bytes: int
    """Weights, gradients, optimizer and EMA, all on every rank (DDP)."""
    sharded_state_bytes: int
    """The same spread over all ranks (FSDP)."""
    activations_bytes: int
    """One full pack."""
    weight_copies_bytes: int
    """bfloat16 copies of the weights that autocast keeps from forward to backward (DDP)."""


def training_memory(
    *,
    width: int,
    depth: int,
    capacity: int,
    backbone: str = "dit",
    num_ranks: int = 1,
    precision: str = "bf16",
    token_width: int = 64,
    text_width: int = 4096,
    activation_checkpointing: bool = False,
) -> TrainingMemory:
    """Estimate `TrainingMemory` of a backbone with heads of 64.

    Args:
        token_width: latent channels x patch volume.
        text_width: of the text encoder (4096: T5-XXL).
        activation_checkpointing: blocks save their inputs only.

    Raises:
        UsageError: a width that is not a multiple of 64.
    """
    from train.backbones.registry import build

    if width % 64 or depth < 1:
        raise UsageError(f"a transformer of {width = } and {depth = }: the width must be a multiple of 64")
    with torch.device("meta"):
        model = build(
            backbone,
            token_width=token_width,
            text_width=text_width,
            pooled_width=text_width,
            width=width,
            depth=depth,
            num_heads=width // 64,
        )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    state = num_parameters * STATE_BYTES_PER_PARAMETER
    return TrainingMemory(
        num_parameters=num_parameters,
        model_state_bytes=state,
        sharded_state_bytes=-(-state // num_ranks),
        activations_bytes=model.activation_bytes(
            [capacity], [0], precision=precision, checkpointed=activation_checkpointing
        ),
        weight_copies_bytes=AUTOCAST_BYTES * num_parameters if precision == "bf16" else 0,
    )


def activation_bytes(
    *, num_tokens: int, width: int, depth: int, bytes_per_token_and_width: float, checkpointed: bool
) -> int:
    """Activations of equal blocks saved for backward.

    Args:
        bytes_per_token_and_width: what one block saves.
        checkpointed: every block saves its float32 input, and one block at a time everything.
    """
    per_block = bytes_per_token_and_width * num_tokens * width
    return int(per_block + 4 * num_tokens * width * depth if checkpointed else per_block * depth)
