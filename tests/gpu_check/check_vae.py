"""A video VAE of diffusers with random weights: round trip, and against the CPU."""

from __future__ import annotations

import diffusers
import torch
from table import RIGHT, WRONG, Check, Row

from train.compressors.pretrained import PretrainedCompressor

SMALL = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
MAX_ERROR = 2e-2
"""Relative, of latents in float32: convolutions run in TF32 on a GPU."""


def run(check: Check) -> None:
    check.one("VAE as on a CPU", lambda: _against_the_cpu(check))
    check.one("VAE", lambda: _speed(check))


def _compressor(check: Check, device: str, *, small: bool) -> PretrainedCompressor:
    torch.manual_seed(0)
    options = {**SMALL, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4} if small else {}
    vae = PretrainedCompressor(diffusers.AutoencoderKLWan(**options), source="random")
    return vae.to(device).eval().requires_grad_(False)


def _against_the_cpu(check: Check) -> Row:
    pixels = torch.rand(1, 3, 5, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected, got = (
        _compressor(check, device, small=True).encode(pixels.to(device)).double().cpu()
        for device in ("cpu", str(check.device))
    )
    error = float((got - expected).norm() / expected.norm())
    return Row(
        check="VAE as on a CPU",
        status=RIGHT if error <= MAX_ERROR else WRONG,
        note=f"relative error of latents {error:.1e}",
    )


def _speed(check: Check) -> Row:
    frames, height, width = (5, 32, 48) if check.size.is_small else (17, 256, 448)
    vae = _compressor(check, str(check.device), small=check.size.is_small)
    pixels = torch.rand(1, 3, frames, height, width, device=check.device) * 2 - 1
    decoded = []
    seconds = check.seconds(lambda: decoded.append(vae.decode(vae.encode(pixels))))
    is_right = decoded[-1].shape == pixels.shape and bool(decoded[-1].isfinite().all())
    return Row(
        check="VAE",
        status=RIGHT if is_right else WRONG,
        peak_bytes=check.peak_bytes(),
        note=f"{frames / seconds:.1f} frames/s of {width}x{height}, encoded and decoded in float32",
    )
