"""FLOPs of a transformer over a pack, for MFU.

    flops = backbone.flops([720, 64], [24, 11])           # of a pack, forward and backward
    flops / seconds / peak_flops(device)                                      # MFU, arXiv 2204.02311 appendix B

Model FLOPs: one forward and one backward (twice the forward); recomputation by activation checkpointing is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packing.grid import Shape3, sample_flops

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
