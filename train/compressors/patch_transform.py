"""The `patch` compressor: a fixed orthonormal transform (lapped DCT) of space, time and colour.

    compressor = PatchTransform(num_channels=48)
    compressor.encode(torch.zeros(1, 3, 9, 96, 96)).shape      # (1, 48, 3, 12, 12)

Nothing to train or download. RGB becomes luma and two colour differences; groups of 4 frames and blocks of 8x8 px become
DCT coefficients; of the 768 coefficients of a block the `num_channels` with most energy are kept (48: 39 luma, 9
colour). The first frame is a group of its own, repeated 4 times, so its temporal channels are 0. With `frame-stride=1`
each frame is coded alone: blocks of 192 coefficients.

Blocks overlap: before the DCT, 4 px on either side of each block border are rotated into each other (the lapped
transform in its pre-filter form: Tran, Liang, Tu, "Lapped transform via time-domain pre- and post-filtering", IEEE TSP
2003). That keeps the transform orthonormal, gains 0.4 to 0.9 dB over the plain DCT with the same channels, and hides the
block borders that a model's errors would otherwise show.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from recaption.errors import UsageError
from train.compressors.interface import check_latents, check_pixels

FRAME_STRIDE = 4
"""Default frames per latent frame; the alternative is 1."""
SPATIAL_STRIDE = 8
DEFAULT_CHANNELS = 48
DEFAULT_WHITENING = 0.7
ROTATIONS_RADIANS = (0.552, 0.380, 0.181)
"""Angles of the three plane rotations inside the pre-filter: they maximise the coding gain of 8-px blocks on a
first-order process with correlation 0.95 (9.256 dB; the plain DCT has 8.826, the best orthonormal lapped
transform of this length 9.259)."""
STANDARD_DEVIATIONS = """
0000 11.52  1000 5.581  2000 3.247  0001 2.463  0100 1.463  0011 1.311  0002 1.278  0003 0.993  0200 0.965  1001 0.913
0012 0.826  0004 0.739  0101 0.735  0300 0.682  2001 0.673  1100 0.658  0013 0.629  0022 0.609  0005 0.570  0201 0.549
0111 0.519  0014 0.472  0301 0.465  1011 0.460  0023 0.452  0211 0.425  0311 0.393  1200 0.390  0006 0.374  0007 0.373
0024 0.372  1002 0.372  2100 0.368  0015 0.357  0102 0.353  0033 0.342  0202 0.306  0112 0.293  0034 0.292  1101 0.283
0302 0.279  2011 0.275  0025 0.269  0212 0.267  1300 0.264  2002 0.261  1003 0.255  0016 0.253  0312 0.244  1012 0.238
0044 0.233  0035 0.222  0103 0.219  0017 0.215  1201 0.208  2200 0.203  0026 0.201  0122 0.200  0113 0.196  1111 0.196
2003 0.195  0222 0.192  0203 0.190  0045 0.189  2101 0.185  0322 0.183  0303 0.180  0027 0.179  0213 0.178  0036 0.178
0313 0.175  1022 0.171  1004 0.166  0055 0.166  1301 0.163  0037 0.159  0046 0.158  1211 0.154  0047 0.152  0123 0.150
0104 0.148  0056 0.147  1013 0.147  0323 0.147  0223 0.144  0057 0.137  0066 0.137  0114 0.136  2012 0.134  0204 0.133
0067 0.129  2201 0.128  1311 0.128  0304 0.128  0214 0.127  2004 0.127  2111 0.126  0314 0.125  2300 0.124  0077 0.124
1005 0.122  0324 0.121  1102 0.119  0124 0.118  0133 0.118  0105 0.116  0333 0.113  1023 0.113  0224 0.111  0233 0.111
0115 0.110  1112 0.107  1202 0.106  0205 0.105
"""
"""Each entry: digits of colour axis (0 luma), temporal, vertical and horizontal frequency; then the coefficient's RMS.

Largest first; an entry also stands for vertical and horizontal swapped. Pixels are -1..1. Measured on 80 rendered scenes and
114 spans of 17 frames of 41 real videos, at 8 frames per second, 96x96 and 256x144 px, both kinds with equal weight."""


def _without_autocast(method: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Disable autocast: half precision would lose more than the dropped coefficients do."""

    @wraps(method)
    def wrapped(self: Any, values: Tensor) -> Tensor:
        with torch.autocast(values.device.type, enabled=False):
            return method(self, values)

    return wrapped


class PatchTransform(nn.Module):
    """The fixed transform as a module with buffers but no parameters.

    Args:
        num_channels: coefficients kept per block of frame_stride frames x 8 x 8 px x RGB.
        whitening: 1 = every channel has unit variance; 0 = channels keep their relative scale;
            between, channel c has a standard deviation of sigma_c ** (1 - whitening), scaled so that the
            channels' mean square is 1. At 1 a diffusion model weights the faintest detail like a block's mean
            colour, whose errors are 30 times as visible; at 0 details drown in the noise at once.
        frame_stride: 4, or 1 to code each frame alone.
    """

    spatial_stride = SPATIAL_STRIDE
    channel_index: Tensor
    scale: Tensor
    colour: Tensor
    temporal: Tensor
    spatial: Tensor
    prefilter: Tensor

    def __init__(
        self,
        num_channels: int = DEFAULT_CHANNELS,
        whitening: float = DEFAULT_WHITENING,
        frame_stride: int = FRAME_STRIDE,
    ) -> None:
        super().__init__()
        if frame_stride not in (1, FRAME_STRIDE):
            raise UsageError(f"compressor patch takes a frame-stride of 1 or {FRAME_STRIDE}, not {frame_stride}")
        self.frame_stride = frame_stride
        table = _coefficients(frame_stride)
        if not 4 <= num_channels <= len(table):
            raise UsageError(
                f"compressor patch:{num_channels} is not possible with a frame stride of {frame_stride}; "
                f"choose 4 to {len(table)} channels"
            )
        if not 0 <= whitening <= 1:
            raise UsageError(f"compressor patch takes a whitening of 0 to 1, not {whitening}")
        self.num_channels = num_channels
        self.config: dict[str, Any] = {
            "kind": "patch",
            "version": 1,
            "num_channels": num_channels,
            "whitening": whitening,
        }
        self.name = "patch"
        if num_channels != DEFAULT_CHANNELS:
            self.name += f"-{num_channels}"
        if whitening != DEFAULT_WHITENING:
            self.name += f"-w{whitening:g}"
        if frame_stride != FRAME_STRIDE:
            self.name += f"-f{frame_stride}"
            self.config["frame_stride"] = frame_stride
        sigma = torch.tensor([deviation for _, deviation in table[:num_channels]])
        target_std = sigma ** (1 - whitening)
        target_std = target_std / target_std.square().mean().sqrt()
        self.register_buffer(
            "channel_index", torch.tensor([index for index, _ in table[:num_channels]]), persistent=False
        )
        self.register_buffer("scale", target_std / sigma, persistent=False)
        self.register_buffer("colour", _cosine_matrix(3), persistent=False)
        self.register_buffer("temporal", _cosine_matrix(frame_stride), persistent=False)
        self.register_buffer("spatial", _cosine_matrix(SPATIAL_STRIDE), persistent=False)
        self.register_buffer("prefilter", _prefilter(), persistent=False)

    @torch.no_grad()
    def encode(self, pixels_BCTHW: Tensor) -> Tensor:
        return self.analyse(pixels_BCTHW)

    @torch.no_grad()
    def decode(self, latents_BCthw: Tensor) -> Tensor:
        return self.synthesise(latents_BCthw).clamp(-1, 1)

    @_without_autocast
    def analyse(self, pixels_BCTHW: Tensor) -> Tensor:
        """Differentiable `encode`."""
        check_pixels(pixels_BCTHW, frame_stride=self.frame_stride, spatial_stride=SPATIAL_STRIDE, name=self.name)
        x = pixels_BCTHW.float()
        x = torch.cat([x[:, :, :1].expand(-1, -1, self.frame_stride - 1, -1, -1), x], dim=2)
        x = torch.einsum("bcthw,dc->bdthw", x, self.colour)
        x = torch.einsum("bdnthw,st->bdsnhw", x.unflatten(2, (-1, self.frame_stride)), self.temporal)
        # (B, colour, temporal, t, H, W) -> (.., H, w, u) -> (.., w, u, h, v)
        x = self._to_frequencies(self._to_frequencies(x).movedim(4, -1))
        x = x.permute(0, 1, 2, 7, 5, 3, 6, 4).flatten(1, 4)
        return x[:, self.channel_index] * self.scale.view(-1, 1, 1, 1)

    @_without_autocast
    def synthesise(self, latents_BCthw: Tensor) -> Tensor:
        """Differentiable `decode`, not clamped."""
        check_latents(latents_BCthw, num_channels=self.num_channels, name=self.name)
        batch, _, frames, rows, columns = latents_BCthw.shape
        num_coefficients = 3 * self.frame_stride * SPATIAL_STRIDE**2
        x = torch.zeros(batch, num_coefficients, frames, rows, columns, device=latents_BCthw.device)
        x[:, self.channel_index] = latents_BCthw.float() / self.scale.view(-1, 1, 1, 1)
        x = x.unflatten(1, (3, self.frame_stride, SPATIAL_STRIDE, SPATIAL_STRIDE))
        # (B, colour, temporal, v, u, t, h, w) -> (.., w, u, h, v) -> (.., w, u, H) -> (.., H, w, u) -> (.., H, W)
        x = self._to_pixels(self._to_pixels(x.permute(0, 1, 2, 5, 7, 4, 6, 3)).movedim(-1, 4))
        x = torch.einsum("bdsnhw,st->bdnthw", x, self.temporal).flatten(2, 3)
        return torch.einsum("bdthw,dc->bcthw", x, self.colour)[:, :, self.frame_stride - 1 :]

    def _to_frequencies(self, x: Tensor) -> Tensor:
        """Pixels along the last axis (n) to blocks of DCT coefficients (n/8, 8)."""
        half = SPATIAL_STRIDE // 2
        if x.shape[-1] > SPATIAL_STRIDE:
            across = x[..., half:-half].unflatten(-1, (-1, SPATIAL_STRIDE)) @ self.prefilter.T
            x = torch.cat([x[..., :half], across.flatten(-2), x[..., -half:]], dim=-1)
        return x.unflatten(-1, (-1, SPATIAL_STRIDE)) @ self.spatial.T

    def _to_pixels(self, x: Tensor) -> Tensor:
        """The inverse, which for an orthonormal transform is the transpose: (n/8, 8) to (n,)."""
        half = SPATIAL_STRIDE // 2
        x = (x @ self.spatial).flatten(-2)
        if x.shape[-1] > SPATIAL_STRIDE:
            across = x[..., half:-half].unflatten(-1, (-1, SPATIAL_STRIDE)) @ self.prefilter
            x = torch.cat([x[..., :half], across.flatten(-2), x[..., -half:]], dim=-1)
        return x


def parse_options(text: str) -> dict[str, Any]:
    """Parse the options after `patch:`, such as `48` or `48,whitening=1.0,frame-stride=1`.

    Raises:
        UsageError: invalid options.
    """
    options: dict[str, Any] = {}
    try:
        for index, part in enumerate(text.split(",") if text else []):
            name, equals, value = part.partition("=")
            if index == 0 and not equals:
                options["num_channels"] = int(name)
            elif name == "whitening":
                options["whitening"] = float(value)
            elif name == "frame-stride":
                options["frame_stride"] = int(value)
            else:
                raise ValueError(part)
    except ValueError as error:
        raise UsageError(
            f"invalid compressor patch:{text}; write patch, patch:64 or patch:64,whitening=1.0,frame-stride=1"
        ) from error
    return options


def _coefficients(frame_stride: int = FRAME_STRIDE) -> list[tuple[int, float]]:
    """(coefficient index within a block, standard deviation), most energy first.

    For single frames, variances are averaged over the temporal frequencies of a group.
    """
    entries = STANDARD_DEVIATIONS.split()
    variances: dict[int, float] = {}
    for digits, deviation in zip(entries[::2], entries[1::2]):
        colour, temporal, one, other = map(int, digits)
        if frame_stride == 1:
            temporal = 0
        for vertical, horizontal in sorted({(one, other), (other, one)}):
            index = ((colour * frame_stride + temporal) * SPATIAL_STRIDE + vertical) * SPATIAL_STRIDE + horizontal
            variances[index] = variances.get(index, 0.0) + float(deviation) ** 2 * frame_stride / FRAME_STRIDE
    return sorted(((index, math.sqrt(variance)) for index, variance in variances.items()), key=lambda entry: -entry[1])


def _cosine_matrix(length: int) -> Tensor:
    """Orthonormal DCT-II, (frequency, position). Over RGB: the sum, red minus blue, green against both."""
    position = torch.arange(length, dtype=torch.float64)
    matrix = torch.cos(math.pi / length * (position + 0.5) * position[:, None]) * math.sqrt(2 / length)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def _prefilter() -> Tensor:
    """Orthonormal 8x8 pre-filter across a block border; leaves signals symmetric about the border unchanged."""
    half = SPATIAL_STRIDE // 2
    identity, mirrored = torch.eye(half, dtype=torch.float64), torch.eye(half, dtype=torch.float64).flip(0)
    butterfly = torch.cat([torch.cat([identity, mirrored], 1), torch.cat([mirrored, -identity], 1)]) / math.sqrt(2)
    inner = torch.eye(SPATIAL_STRIDE, dtype=torch.float64)
    for axis, angle in enumerate(ROTATIONS_RADIANS, start=half):
        rotation = torch.eye(SPATIAL_STRIDE, dtype=torch.float64)
        rotation[axis, axis] = rotation[axis + 1, axis + 1] = math.cos(angle)
        rotation[axis, axis + 1], rotation[axis + 1, axis] = math.sin(angle), -math.sin(angle)
        inner = inner @ rotation
    return (butterfly @ inner @ butterfly).float()
