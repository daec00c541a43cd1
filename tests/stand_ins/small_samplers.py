"""A sampler of a tiny random transformer, in memory, for tests of what is sampled from what.

sampler = small_sampler(stride=1, window_frames=5)          # 16x24 px at 8 frames per second
"""

from __future__ import annotations

import torch
from torch import nn

from packing.buckets import Bucket
from train.backbones.registry import build
from train.compressors.registry import load
from train.diffusion.frame_conditioning import DEFAULT_CONDITIONS
from train.diffusion.process import DiffusionSettings
from train.sampling.sampler import Sampler
from train.text.encoder import TextEncoder

HEIGHT_PX, WIDTH_PX, FPS = 16, 24, 8


class LetterTower:
    """One token per text, a number from its letters."""

    width, pooled_width = 4, 4

    def encode(self, texts):
        numbers = torch.tensor([[float(sum(map(ord, text)) % 7)] * 4 for text in texts])
        return numbers, torch.ones(len(texts), dtype=torch.int64), numbers


def small_sampler(stride=1, *, conditions=DEFAULT_CONDITIONS, window_frames=5, patch=(1, 1, 1), diffusion=None):
    """A sampler whose compressor encodes groups of `stride` frames, 1 or 4."""
    torch.manual_seed(0)
    compressor = load("patch:64,frame-stride=1" if stride == 1 else "patch:24")
    width = compressor.num_channels * patch[0]
    model = build("dit", token_width=width, text_width=4, pooled_width=4, width=24, depth=1, num_heads=2)
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.2)
    return Sampler(
        model,
        encoder=TextEncoder(LetterTower(), spec="letters", weights_hash="0"),
        compressor=compressor,
        patch=patch,
        diffusion=diffusion or DiffusionSettings(),
        buckets=(Bucket(window_frames, HEIGHT_PX, WIDTH_PX, FPS),),
        conditions=conditions,
    )
