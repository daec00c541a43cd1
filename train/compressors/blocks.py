"""Layers of the autoencoder: 2-D convolutions per frame plus a 1x1 convolution over the previous frame.

    cache = CausalCache()
    x_BTCHW = block(x_BTCHW, cache)      # a whole clip, or its next chunk: the cache holds each block's last frame

Causal in time, and norms act on single cells: later frames never affect earlier ones, an image is a video of one frame,
and a clip processed in chunks gives exactly what it gives at once.

Shapes: B clips, T latent frames, C channels, H rows, W columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ZERO_GAIN = 0.1


class CausalCache:
    """Each block's last input frame, carried from one chunk of a clip to the next."""

    def __init__(self) -> None:
        self._frames: dict[int, Tensor] = {}

    def previous_frames(self, block: nn.Module, x_BTCHW: Tensor) -> Tensor:
        """`x_BTCHW` shifted by one frame; the clip's first frame is its own predecessor."""
        first = self._frames.get(id(block), x_BTCHW[:, :1])
        self._frames[id(block)] = x_BTCHW[:, -1:]
        return torch.cat([first, x_BTCHW[:, :-1]], dim=1)


class ChannelRMSNorm(nn.Module):
    """RMSNorm over the channels of each cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        scale = torch.rsqrt(x_BTCHW.square().mean(2, keepdim=True) + 1e-6)
        return x_BTCHW * scale * self.weight.to(x_BTCHW.dtype).view(-1, 1, 1)


class FrameConv(nn.Conv2d):
    """2-D convolution of each frame.

    Args:
        zero: zero-initialised, with outputs scaled by ZERO_GAIN: Adam's first steps move all weights of a layer alike,
            and the sum over a thousand of them would otherwise jump.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int = 3, *, zero: bool = False) -> None:
        super().__init__(in_channels, out_channels, size, padding=size // 2)
        self.gain = ZERO_GAIN if zero else 1.0
        if zero:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        frames = x_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        bias = None if self.bias is None else self.bias * self.gain
        return self._conv_forward(frames, self.weight * self.gain, bias).unflatten(0, x_BTCHW.shape[:2])


class CausalBlock(nn.Module):
    """Residual block: norm, convolution, SiLU, convolution; initialised to the identity.

    Args:
        uses_previous_frame: add a 1x1 convolution of the previous frame.
    """

    def __init__(self, channels: int, *, uses_previous_frame: bool) -> None:
        super().__init__()
        self.norm = ChannelRMSNorm(channels)
        self.conv1 = FrameConv(channels, channels)
        self.conv_previous = FrameConv(channels, channels, 1, zero=True) if uses_previous_frame else None
        self.conv2 = FrameConv(channels, channels, zero=True)

    def forward(self, x_BTCHW: Tensor, cache: CausalCache) -> Tensor:
        normed = self.norm(x_BTCHW)
        inner = self.conv1(normed)
        if self.conv_previous is not None:
            inner = inner + self.conv_previous(cache.previous_frames(self, normed))
        return x_BTCHW + self.conv2(F.silu(inner))


class ConvTrunk(nn.Module):
    """Two stages of residual blocks with one change of resolution: the autoencoder's encoder or decoder.

    Args:
        widths, blocks: channels and number of blocks of each stage.
        scale: 0.5 halves the resolution between the stages (encoder), 2 doubles it (decoder).
    """

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, int],
        out_channels: int,
        *,
        blocks: tuple[int, int],
        scale: float,
        uses_previous_frame: bool,
    ) -> None:
        super().__init__()
        first, second = widths
        self.scale = scale
        self.conv_in = FrameConv(in_channels, first)
        self.stage1 = nn.ModuleList(
            CausalBlock(first, uses_previous_frame=uses_previous_frame) for _ in range(blocks[0])
        )
        self.resample = FrameConv(4 * first, second, 1) if scale < 1 else FrameConv(first, 4 * second, 1)
        self.stage2 = nn.ModuleList(
            CausalBlock(second, uses_previous_frame=uses_previous_frame) for _ in range(blocks[1])
        )
        self.norm = ChannelRMSNorm(second)
        self.conv_out = FrameConv(second, out_channels, zero=True)

    def forward(self, x_BTCHW: Tensor, cache: CausalCache) -> Tensor:
        x = self.conv_in(x_BTCHW)
        for block in self.stage1:
            x = block(x, cache)
        x = self.resample(F.pixel_unshuffle(x, 2)) if self.scale < 1 else F.pixel_shuffle(self.resample(x), 2)
        for block in self.stage2:
            x = block(x, cache)
        return self.conv_out(F.silu(self.norm(x)))
