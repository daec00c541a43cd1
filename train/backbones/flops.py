"""How much of a device's arithmetic a run uses: FLOPs that the model needs, over what the device could do.

    flops = transformer_flops([720, 64], [24, 11], width=1152, depth=28)      # of a row, forward and backward
    flops / seconds / peak_flops(device)                                      # MFU, arXiv 2204.02311 appendix B

Needed means: forward once and backward once, twice the forward; what activation checkpointing computes again is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packing.grid import sample_flops

BACKWARD_AND_FORWARD = 3.0
"""Backward takes two multiplications for each of the forward's."""


def transformer_flops(num_tokens: Sequence[int], num_text_tokens: Sequence[int], *, width: int, depth: int) -> float:
    """Forward and backward of blocks with self-attention, cross-attention to each sample's own text, and an MLP of 4 x
    width, over one row. Embeddings and modulation are left out: under 2 % at usual lengths."""
    tokens, text = (np.asarray(counts, dtype=np.float64) for counts in (num_tokens, num_text_tokens))
    cross = 4.0 * width * width * (tokens + text) + 4.0 * width * tokens * text
    forward = sample_flops(tokens, width=width) + cross
    return float(BACKWARD_AND_FORWARD * depth * forward.sum())
