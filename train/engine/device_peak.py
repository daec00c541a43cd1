"""Peak bf16 FLOP/s of known devices, for model FLOPs utilisation (MFU)."""

from __future__ import annotations

import torch

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
"""Device name -> dense bf16 tensor-core FLOP/s, from vendor data sheets; the first key contained in the device name wins."""


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of a GPU in the table, also if training in another precision; None for other devices."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_BF16_FLOPS.items() if known in name), None)
