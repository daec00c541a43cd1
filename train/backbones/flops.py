"""FLOPs of a transformer over a pack, for MFU.

    flops = backbone.flops([720, 64], [24, 11])           # of a pack, forward and backward
    flops / seconds / peak_flops(device)                                      # MFU, arXiv 2204.02311 appendix B

Model FLOPs: one forward and one backward (twice the forward); recomputation by activation checkpointing is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packing.grid import sample_flops

FORWARD_AND_BACKWARD = 3.0
"""In units of the forward: the backward takes two multiplications for each one."""


def transformer_flops(num_tokens: Sequence[int], num_text_tokens: Sequence[int], *, width: int) -> float:
    """Forward and backward FLOPs of one block over a pack: self-attention, cross-attention, an MLP of 4 x width."""
    tokens, text = (np.asarray(counts, dtype=np.float64) for counts in (num_tokens, num_text_tokens))
    cross = 4.0 * width * width * (tokens + text) + 4.0 * width * tokens * text
    forward = sample_flops(tokens, width=width) + cross
    return float(FORWARD_AND_BACKWARD * forward.sum())
