"""What training a diffusion transformer on packs of a given size takes of one GPU: an estimate, before any is booked.

    training_memory(width=1152, depth=28, capacity=16384, num_ranks=8).activations_bytes / 1e9

Weights are counted on the real class; activations are what autograd was seen to keep per token of a block. Text tokens,
the compressor, the text encoder, and what the allocator wastes come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recaption.errors import UsageError
from train.backbones.dit import Dit
from train.parallel.device_memory import AVERAGE_BYTES, TRAINED_BYTES, WEIGHT_BYTES

STATE_BYTES_PER_PARAMETER = WEIGHT_BYTES + TRAINED_BYTES + AVERAGE_BYTES


KEPT_BYTES_PER_TOKEN_AND_WIDTH = {"fp32": 108.4, "bf16": 56.0}
"""Of one block, kept for the backward pass; measured at widths 192 and 384 (test_activation_memory.py
measures again).
Under bf16 autocast the residual stream and the norms stay float32."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Of one rank."""

    num_parameters: int
    model_state_bytes: int
    """Weights, gradients, optimiser, average, all on every rank (DDP)."""
    sharded_state_bytes: int
    """The same spread over all ranks (FSDP)."""
    activations_bytes: int
    """One full pack."""


def training_memory(
    *,
    width: int,
    depth: int,
    capacity: int,
    num_ranks: int = 1,
    precision: str = "bf16",
    token_width: int = 64,
    text_width: int = 4096,
    recompute: bool = False,
) -> TrainingMemory:
    """See `TrainingMemory`.

    Args:
        token_width: latent channels x patch volume.
        text_width: of the text encoder (4096: T5-XXL).
        recompute: the trainer's setting: blocks keep their inputs only.

    Raises:
        UsageError: a width that does not divide into heads of 64.
    """
    if width % 64 or depth < 1:
        raise UsageError(f"a transformer of {width = } and {depth = }: the width must be a multiple of 64")
    with torch.device("meta"):
        model = Dit(
            token_width=token_width,
            text_width=text_width,
            pooled_width=text_width,
            width=width,
            depth=1,
            num_heads=width // 64,
        )
    per_block = sum(parameter.numel() for parameter in model.blocks.parameters())
    num_parameters = sum(parameter.numel() for parameter in model.parameters()) + (depth - 1) * per_block
    state = num_parameters * STATE_BYTES_PER_PARAMETER
    return TrainingMemory(
        num_parameters=num_parameters,
        model_state_bytes=state,
        sharded_state_bytes=-(-state // num_ranks),
        activations_bytes=activation_bytes(
            width=width, depth=depth, capacity=capacity, precision=precision, recompute=recompute
        ),
    )


def activation_bytes(*, width: int, depth: int, capacity: int, precision: str, recompute: bool = False) -> int:
    """What the blocks keep of one full pack for the backward pass.

    Args:
        recompute: each block keeps its input, in float32, and the one at work what it computes again.
    """
    of_block = KEPT_BYTES_PER_TOKEN_AND_WIDTH[precision] * capacity * width
    return int(of_block + 4 * capacity * width * depth if recompute else of_block * depth)
