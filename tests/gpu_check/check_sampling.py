"""Sampling from a checkpoint on the device: speed, and against the CPU in float32."""

from __future__ import annotations

import numpy as np
import short_training
import torch
from table import RIGHT, WRONG, Check, Row

from packing.buckets import Bucket
from train.sampling.sampler import Sampler

PROMPTS = ["a red field", "a blue field", "a white field", "a black field"]
MIN_PSNR_DB = {"fp32": 40.0, "bf16": 25.0}
"""Of the device's video against the CPU's in float32."""


def run(check: Check) -> None:
    check.one("sampling", lambda: _speed(check))
    for precision in ("fp32", "bf16"):
        check.one(f"sampling {precision} as on a CPU", lambda precision=precision: _against_the_cpu(check, precision))


def _sampler(check: Check, device: str) -> Sampler:
    """With noise on the weights: what was trained for a moment predicts little more than 0, which hides differences."""
    with short_training.own_text_encoder(check):
        sampler = Sampler.from_checkpoint(short_training.trained_folder(check), device=device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sampler.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    return sampler


def _speed(check: Check) -> Row:
    sampler = _sampler(check, str(check.device))
    size, num_steps = short_training.buckets(check)[0], 2 if check.size.is_small else 20
    videos = []
    seconds = check.seconds(lambda: videos.append(sampler.sample(PROMPTS, size=size, num_steps=num_steps)))
    tokens = len(PROMPTS) * sampler.grid.num_tokens(size.num_frames, size.height_px, size.width_px)
    same = all(np.array_equal(one, other) for one, other in zip(videos[0], videos[-1], strict=True))
    return Row(
        check="sampling",
        status=RIGHT if all(video.std() > 0 for video in videos[0]) else WRONG,
        tokens_per_second=2 * tokens * num_steps / seconds,
        peak_bytes=check.peak_bytes(),
        note=f"{len(PROMPTS)} videos of {size.num_frames} frames in {seconds:.2f} s, {num_steps} steps with guidance; "
        f"{'the same' if same else 'not the same'} twice",
    )


def _against_the_cpu(check: Check, precision: str) -> Row:
    size = Bucket(1, *((32, 48) if check.size.is_small else (64, 64)), 8)
    expected, got = (
        _sampler(check, device).sample(["a red field"], size=size, num_steps=4, precision=of)[0].astype(float)
        for device, of in (("cpu", "fp32"), (str(check.device), precision))
    )
    error = float(np.square(got - expected).mean())
    psnr = 10 * np.log10(255**2 / error) if error else np.inf
    return Row(
        check=f"sampling {precision} as on a CPU",
        status=RIGHT if psnr >= MIN_PSNR_DB[precision] else WRONG,
        note=f"PSNR {psnr:.1f} dB (at least {MIN_PSNR_DB[precision]:.0f})",
    )
