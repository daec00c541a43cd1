"""A small causal 3-D convolutional KL autoencoder, trained by `recaption train compressor`.

    model = Causal3d(width=32, latent_channels=16)
    model.encode(torch.zeros(1, 3, 9, 96, 96)).shape       # (1, 16, 3, 12, 12): 4 frames x 8 x 8 px per latent

Encoder and decoder are corrections to the fixed transform of patch_transform.py with as many channels: training starts
where that stands instead of at noise, which on a CPU is most of the way.

Causal: convolutions look back in time, never forward, and norms see one frame at a time, so the latents of the first
4k+1 frames do not depend on what follows and an image is a video of one frame. The latents' mean and standard deviation
per channel are recorded while it trains and travel in the checkpoint; encode and decode normalise by them.

Shapes: B clips, C channels, T frames, H rows, W columns; small letters in the latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.errors import CheckpointMismatchError, UsageError
from train import checkpoint
from train.compressors import check_latents, check_pixels
from train.compressors.patch_transform import FRAME_STRIDE, SPATIAL_STRIDE, PatchTransform

PIXEL_BLOCK_PX = 2
"""Squares of 2x2 px enter as 12 channels: the widest layers then run on a quarter of the places."""
INITIAL_LOGVAR = -6.0
"""Of the latents around their mean."""
STATISTICS_MOMENTUM = 0.01
"""The recorded mean and variance follow about the last hundred batches."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    pixels_BCTHW: Tensor
    """Not clamped."""
    mean_BCthw: Tensor
    logvar_BCthw: Tensor


class CausalConv3d(nn.Conv3d):
    """Looks at its own and earlier frames only; before the first frame it sees the first frame again."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int, int] = (3, 3, 3), stride: int = 1
    ) -> None:
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=padding)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        num_before = self.kernel_size[0] - 1
        if num_before:
            first = x_BCTHW[:, :, :1].expand(-1, -1, num_before, -1, -1)
            x_BCTHW = torch.cat([first, x_BCTHW], dim=2)
        return super().forward(x_BCTHW)


class FrameNorm(nn.GroupNorm):
    """Group norm whose statistics are of one frame: over the whole clip they would carry the future into the past."""

    def __init__(self, channels: int) -> None:
        super().__init__(num_groups=min(8, channels // 4), num_channels=channels, eps=1e-6)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        frames = x_BCTHW.transpose(1, 2)
        return super().forward(frames.flatten(0, 1)).view(frames.shape).transpose(1, 2)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a shortcut; the second one within a frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = FrameNorm(channels)
        self.conv1 = CausalConv3d(channels, channels)
        self.norm2 = FrameNorm(channels)
        self.conv2 = CausalConv3d(channels, channels, (1, 3, 3))
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Downsample(nn.Module):
    """Half the rows and columns, and 2t-1 frames to t.

    Beside the convolution runs a path without weights, the mean over groups of the 8 places that become one; it
    carries the picture from the first step on (the residual autoencoding of DC-AE, arXiv 2410.10733).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        assert 8 * in_channels % out_channels == 0
        self.out_channels = out_channels
        self.conv = CausalConv3d(in_channels, out_channels, stride=2)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        pairs = torch.cat([x_BCTHW[:, :, :1], x_BCTHW], dim=2)
        places = pairs.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, T, 2, H, 2, W, 2)
        stacked = places.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
        return self.conv(x_BCTHW) + stacked.unflatten(1, (self.out_channels, -1)).mean(2)


class Upsample(nn.Module):
    """Twice the rows and columns, and t frames to 2t-1: the first frame stays one. `Downsample` mirrored."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        assert 8 * out_channels % in_channels == 0
        self.repeats = 8 * out_channels // in_channels
        self.conv = CausalConv3d(in_channels, out_channels * 8)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        stacked = self.conv(x_BCTHW) + x_BCTHW.repeat_interleave(self.repeats, dim=1)
        places = stacked.unflatten(1, (-1, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)  # (B, C, T, 2, H, 2, W, 2)
        return places.flatten(6, 7).flatten(4, 5).flatten(2, 3)[:, :, 1:]


class Causal3d(nn.Module):
    """Encoder, decoder and the statistics of what lies between.

    Args:
        width: channels at half resolution; twice and four times that further in.
        latent_channels: numbers per latent place (4 frames x 8 x 8 px x RGB = 768 numbers go in).
        num_blocks: residual blocks per resolution and side.
    """

    frame_stride = FRAME_STRIDE
    spatial_stride = SPATIAL_STRIDE
    latent_mean: Tensor
    latent_var: Tensor
    num_recorded: Tensor

    def __init__(self, *, width: int = 32, latent_channels: int = 16, num_blocks: int = 1) -> None:
        super().__init__()
        if width < 8 or width % 8 or latent_channels < 1 or num_blocks < 1:
            raise UsageError(
                f"compressor causal3d cannot be built with {width = }, {latent_channels = }, {num_blocks = }; "
                "the width is a multiple of 8, the others are at least 1"
            )
        self.num_channels = latent_channels
        self.sizes = {"width": width, "latent_channels": latent_channels, "num_blocks": num_blocks}
        self.config: dict[str, Any] = {"kind": "causal3d", **self.sizes}
        self.name = "causal3d"
        pixels = 3 * PIXEL_BLOCK_PX**2
        wide, wider = 2 * width, 4 * width

        def blocks(channels: int) -> list[nn.Module]:
            return [ResBlock(channels) for _ in range(num_blocks)]

        self.encoder = nn.Sequential(
            CausalConv3d(pixels, width),
            *blocks(width),
            Downsample(width, wide),
            *blocks(wide),
            Downsample(wide, wider),
            *blocks(wider),
            FrameNorm(wider),
            nn.SiLU(),
            CausalConv3d(wider, 2 * latent_channels),
        )
        self.decoder = nn.Sequential(
            CausalConv3d(latent_channels, wider),
            *blocks(wider),
            Upsample(wider, wide),
            *blocks(wide),
            Upsample(wide, width),
            *blocks(width),
            FrameNorm(width),
            nn.SiLU(),
            CausalConv3d(width, pixels),
        )
        self.linear = PatchTransform(latent_channels, whitening=1.0)
        for last in (self.encoder[-1], self.decoder[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        # Little noise on the latents at first: at a standard deviation of 1 the decoder learns to ignore them.
        nn.init.constant_(self.encoder[-1].bias[latent_channels:], INITIAL_LOGVAR)
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_var", torch.ones(latent_channels))
        self.register_buffer("num_recorded", torch.zeros(()))

    # --- training -----------------------------------------------------------------------------------------------------

    def forward(self, pixels_BCTHW: Tensor) -> Reconstruction:
        """Encode, draw latents around their mean, decode; in training mode the latents' statistics are recorded."""
        mean, logvar = self.moments(pixels_BCTHW)
        latents = mean
        if self.training:
            self._record(mean.detach().float())
            latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return Reconstruction(pixels_BCTHW=self._to_pixels(latents), mean_BCthw=mean, logvar_BCthw=logvar)

    def moments(self, pixels_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, not normalised."""
        check_pixels(pixels_BCTHW, frame_stride=FRAME_STRIDE, spatial_stride=SPATIAL_STRIDE, name=self.name)
        block = PIXEL_BLOCK_PX
        x = pixels_BCTHW.unflatten(4, (-1, block)).unflatten(3, (-1, block))  # (B, C, T, H, 2, W, 2)
        mean, logvar = self.encoder(x.permute(0, 1, 4, 6, 2, 3, 5).flatten(1, 3)).chunk(2, dim=1)
        return self.linear.analyse(pixels_BCTHW) + mean, logvar.clamp(-20, 10)

    def _to_pixels(self, latents_BCthw: Tensor) -> Tensor:
        block = PIXEL_BLOCK_PX
        x = self.decoder(latents_BCthw).unflatten(1, (3, block, block))  # (B, C, 2, 2, T, H, W)
        return self.linear.synthesise(latents_BCthw) + x.permute(0, 1, 4, 5, 2, 6, 3).flatten(5, 6).flatten(3, 4)

    @torch.no_grad()
    def _record(self, mean_BCthw: Tensor) -> None:
        places = mean_BCthw.transpose(0, 1).flatten(1)
        self.num_recorded += 1
        share = torch.clamp(1 / self.num_recorded, min=STATISTICS_MOMENTUM)
        centre = self.latent_mean.lerp(places.mean(1), share)
        spread = (places - centre[:, None]).square().mean(1)
        self.latent_mean.copy_(centre)
        self.latent_var.lerp_(spread, share)

    # --- use ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, pixels_BCTHW: Tensor) -> Tensor:
        mean, _ = self.moments(pixels_BCTHW)
        centre, spread = self._statistics()
        return (mean - centre) / spread

    @torch.no_grad()
    def decode(self, latents_BCthw: Tensor) -> Tensor:
        check_latents(latents_BCthw, num_channels=self.num_channels, name=self.name)
        centre, spread = self._statistics()
        return self._to_pixels(latents_BCthw * spread + centre).clamp(-1, 1)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        shape = (-1, 1, 1, 1)
        return self.latent_mean.view(shape), self.latent_var.clamp(min=1e-8).sqrt().view(shape)


def load_trained(path: str) -> Causal3d:
    """The compressor of a checkpoint, with the averaged weights.

    Raises:
        UsageError, CheckpointMismatchError: nothing there; not a compressor; weights that do not fit.
    """
    config, weights = checkpoint.load_model(path, task="compressor")
    sizes = config.get("model")
    if not isinstance(sizes, dict) or sizes.get("kind") != "causal3d":
        raise CheckpointMismatchError(f"{path} names no compressor that this version can build: {sizes!r}")
    model = Causal3d(**{name: value for name, value in sizes.items() if name != "kind"})
    checkpoint.load_weights(model, weights, path)
    digest = checkpoint.weights_hash(weights)
    model.name = f"causal3d-{digest[:8]}"
    model.config = {**model.config, "weights_sha256": digest}
    return model
