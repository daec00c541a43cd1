"""How much of a device's arithmetic a run uses: FLOPs that the model needs, over what the device could do.

    flops = transformer_flops([720, 64], [24, 11], width=1152, depth=28)      # of a row, forward and backward
    flops / seconds / peak_flops(device)                                      # MFU, arXiv 2204.02311 appendix B

Needed means: forward once and backward once, twice the forward; what activation checkpointing computes again is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from packing.grid import sample_flops

PEAK_BF16_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "H800": 989e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A40": 150e12,
    "A6000": 155e12,
    "RTX 4090": 165e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}
"""Dense bfloat16 on tensor cores per second, from the makers' data sheets; the first name that the device's holds counts."""
BACKWARD_AND_FORWARD = 3.0
"""Backward takes two multiplications for each of the forward's."""


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOPs per second of a GPU that is in the table, whatever precision is trained in; else None."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_BF16_FLOPS.items() if known in name), None)


def transformer_flops(num_tokens: Sequence[int], num_text_tokens: Sequence[int], *, width: int, depth: int) -> float:
    """Forward and backward of blocks with self-attention, cross-attention to each sample's own text, and an MLP of 4 x
    width, over one row. Embeddings and modulation are left out: under 2 % at usual lengths."""
    tokens, text = (np.asarray(counts, dtype=np.float64) for counts in (num_tokens, num_text_tokens))
    cross = 4.0 * width * width * (tokens + text) + 4.0 * width * tokens * text
    forward = sample_flops(tokens, width=width) + cross
    return float(BACKWARD_AND_FORWARD * depth * forward.sum())
