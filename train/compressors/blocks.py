"""Layers of the trained compressors: 2-D convolutions within a frame, and one look back at the frame before.

    past = Past()
    x_BTCHW = block(x_BTCHW, past)      # a whole clip, or its next piece: `past` carries the last frame of each block

Causal: nothing looks forward in time and norms see one place at a time, so what comes later never changes what came
before, an image is a video of one frame, and a clip in pieces gives what the clip at once gives, at any size.

Shapes: B clips, T latent frames, C channels, H rows, W columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ZERO_GAIN = 0.1


class Past:
    """The last frame that each block saw, from one piece of a clip to the next."""

    def __init__(self) -> None:
        self._frames: dict[int, Tensor] = {}

    def before(self, block: nn.Module, x_BTCHW: Tensor) -> Tensor:
        """Each frame's predecessor; before the first frame stands the first frame itself."""
        first = self._frames.get(id(block), x_BTCHW[:, :1])
        self._frames[id(block)] = x_BTCHW[:, -1:]
        return torch.cat([first, x_BTCHW[:, :-1]], dim=1)


class PlaceNorm(nn.Module):
    """Divides each place by the root mean square of its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        scale = torch.rsqrt(x_BTCHW.square().mean(2, keepdim=True) + 1e-6)
        return x_BTCHW * scale * self.weight.to(x_BTCHW.dtype).view(-1, 1, 1)


class FrameConv(nn.Conv2d):
    """A convolution over each frame.

    Args:
        zero: start as the zero function. What comes out is then scaled by ZERO_GAIN: Adam's first steps move all
            weights of a layer alike, and without the scale the sum over a thousand of them would be a jump.
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
    """Norm, convolution, SiLU, convolution around a shortcut; starts as the identity.

    Args:
        looks_back: whether each frame also sees the one before it.
    """

    def __init__(self, channels: int, *, looks_back: bool) -> None:
        super().__init__()
        self.norm = PlaceNorm(channels)
        self.conv1 = FrameConv(channels, channels)
        self.back = FrameConv(channels, channels, 1, zero=True) if looks_back else None
        self.conv2 = FrameConv(channels, channels, zero=True)

    def forward(self, x_BTCHW: Tensor, past: Past) -> Tensor:
        normed = self.norm(x_BTCHW)
        inner = self.conv1(normed)
        if self.back is not None:
            inner = inner + self.back(past.before(self, normed))
        return x_BTCHW + self.conv2(F.silu(inner))


class Tower(nn.Module):
    """Blocks one after another between a first and a last convolution, with one change of resolution.

    Args:
        widths, blocks: channels and blocks before and after the change.
        scale: 0.5 = four places become one (an encoder), 2 = one becomes four (a decoder).
    """

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, int],
        out_channels: int,
        *,
        blocks: tuple[int, int],
        scale: float,
        looks_back: bool,
    ) -> None:
        super().__init__()
        first, second = widths
        self.scale = scale
        self.enter = FrameConv(in_channels, first)
        self.before = nn.ModuleList(CausalBlock(first, looks_back=looks_back) for _ in range(blocks[0]))
        self.change = FrameConv(4 * first, second, 1) if scale < 1 else FrameConv(first, 4 * second, 1)
        self.after = nn.ModuleList(CausalBlock(second, looks_back=looks_back) for _ in range(blocks[1]))
        self.norm = PlaceNorm(second)
        self.leave = FrameConv(second, out_channels, zero=True)

    def forward(self, x_BTCHW: Tensor, past: Past) -> Tensor:
        x = self.enter(x_BTCHW)
        for block in self.before:
            x = block(x, past)
        x = self.change(F.pixel_unshuffle(x, 2)) if self.scale < 1 else F.pixel_shuffle(self.change(x), 2)
        for block in self.after:
            x = block(x, past)
        return self.leave(F.silu(self.norm(x)))
