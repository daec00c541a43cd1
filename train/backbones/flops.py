"""FLOPs of a transformer over a pack, for MFU.

    flops = backbone.flops([720, 64], [24, 11])           # of a pack, forward and backward
    flops / seconds / peak_flops(device)                                      # MFU, arXiv 2204.02311 appendix B

Model FLOPs: one forward and one backward (twice the forward); recomputation by activation checkpointing is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from packing.grid import Shape3, layer_flops_coefficients, sample_flops

COST_LENGTHS = (1024, 4096)
"""Tokens of the two samples that `cost_model_width` compares."""
MAX_COST_MODEL_WIDTH = 1 << 20
FORWARD_AND_BACKWARD = 3.0
"""In units of the forward: the backward takes two multiplications for each one."""


def tokens_in_frames_and_places(
    num_tokens: Sequence[int], token_shapes: Sequence[Shape3]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean tokens of each sample's frames, and of its places along time; float64 (S) each.

    Args:
        token_shapes: tokens along (frames, rows, columns) before any were dropped; empty: every sample is one frame.
    """
    tokens = np.asarray(num_tokens, dtype=np.float64)
    if not token_shapes:
        return tokens, np.ones_like(tokens)
    shapes = np.asarray(token_shapes, dtype=np.float64)
    return tokens / shapes[:, 0], np.maximum(tokens / shapes[:, 1:].prod(axis=1), 1)


def transformer_flops(num_tokens: Sequence[int], num_text_tokens: Sequence[int] | None, *, width: int) -> float:
    """Forward and backward FLOPs of one block over a pack: self-attention, cross-attention, an MLP of 4 x width.

    Args:
        num_text_tokens: None: a block without cross-attention.
    """
    tokens = np.asarray(num_tokens, dtype=np.float64)
    forward = sample_flops(tokens, width=width)
    if num_text_tokens is not None:
        text = np.asarray(num_text_tokens, dtype=np.float64)
        forward = forward + 4.0 * width * width * (tokens + text) + 4.0 * width * tokens * text
    return float(FORWARD_AND_BACKWARD * forward.sum())


def cost_model_width(backbone: Any) -> int:
    """Width of the plain transformer whose FLOPs grow with the length of a sample as those of `backbone` do.

    Only the ratio of the linear to the quadratic part matters: packs of equal cost are found by it (`packing.plan`).
    """
    first, second = (backbone.flops([length], [0]) / length for length in COST_LENGTHS)
    slope = (second - first) / (COST_LENGTHS[1] - COST_LENGTHS[0])
    linear = first - slope * COST_LENGTHS[0]
    unit_linear, unit_square = layer_flops_coefficients(1)
    if slope <= linear * 1e-9:  # no attention over the whole sample
        return MAX_COST_MODEL_WIDTH
    return int(min(max(1, round(linear / slope * unit_square / unit_linear)), MAX_COST_MODEL_WIDTH))
