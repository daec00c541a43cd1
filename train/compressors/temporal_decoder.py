"""Temporal layers in the decoder of an image autoencoder, against the flicker of frames that are decoded one by one.

    compressor = TemporalDecoder(load("RUN/train/vae"))               # kind `spatial`, or diffusers:ID#vae (AutoencoderKL)
    compressor.encode(pixels_BCTHW)                                   # as the image autoencoder: latents on disk stay valid
    compressor.decode(latents_BCthw)                                  # at first as the image autoencoder, to the bit

After each residual block of the frozen decoder z + (1 - alpha) r(z), alpha = sigmoid(m), r two convolutions along time whose
last one starts at zero. Trained alone, with a discriminator of video patches, as in "Align your Latents" (arXiv 2304.08818).

Shapes: B clips, C channels, T frames, H rows, W columns; N = B x T frames.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.errors import CheckpointMismatchError, UsageError
from recaption.weights import weights_hash
from train.checkpoint.step_folder import Checkpoint, find
from train.checkpoint.trained_part import FrozenBase
from train.checkpoint.weights import load_weights
from train.compressors.autoencoder import DISCRIMINATOR_PREFIX, Autoencoder, Reconstruction
from train.compressors.blocks import CausalBlock, CausalCache, ChannelRMSNorm
from train.compressors.bottleneck import BottleneckOutput
from train.compressors.interface import check_latents
from train.compressors.pretrained import PretrainedCompressor

KIND = "temporal-decoder"
"""In the config of a checkpoint, where an autoencoder has its own kind."""
BASE_PREFIX = "base."
WINDOW_FRAMES = 16
"""Longer clips are decoded in windows: memory does not grow with the length."""
HALO_FRAMES = 8
"""Frames on both sides of a window that are decoded with it and dropped. A layer looks 2 frames to either side: up to four
layers, the result is that of the whole clip."""


class TemporalConvMix(nn.Module):
    """z + (1 - alpha) r(z), r two convolutions over three frames at every place; nothing for single frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelRMSNorm(channels)
        self.conv1 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.conv2 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]
        self.mix_factor = nn.Parameter(torch.zeros(1))
        """m: alpha = sigmoid(m) is the share of the image decoder."""

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        if x_BTCHW.shape[1] == 1:
            return x_BTCHW
        h_BCTHW = self.conv1(F.silu(self.norm(x_BTCHW)).transpose(1, 2))
        residual_BTCHW = self.conv2(F.silu(h_BCTHW)).transpose(1, 2)
        mixed = x_BTCHW + (1 - torch.sigmoid(self.mix_factor)) * residual_BTCHW
        return torch.empty_like(x_BTCHW).copy_(mixed)  # other strides would round differently in the next convolution


class TemporalDecoder(nn.Module):
    """An image compressor whose decoder has temporal layers; behind the Compressor protocol.

    Its name and config are those of the image compressor, because its latents are.

    Args:
        base: `Autoencoder` of kind `spatial`, or a `PretrainedCompressor` of an AutoencoderKL; frozen here.

    Raises:
        UsageError: another compressor.
    """

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.name, self.config = base.name, base.config
        self.num_channels, self.frame_stride, self.spatial_stride = (
            base.num_channels,
            base.frame_stride,
            base.spatial_stride,
        )
        self.temporal = nn.ModuleList()
        self._num_frames = 1
        for block, channels in _decoder_blocks(base):
            self.temporal.append(TemporalConvMix(channels))
            block.register_forward_hook(functools.partial(self._mixed, len(self.temporal) - 1))

    def train(self, mode: bool = True) -> TemporalDecoder:
        """The image compressor stays in eval mode: no noise in its latents, no statistics of new ones."""
        super().train(mode)
        self.base.eval()
        return self

    @property
    def last_weight(self) -> Tensor:
        """Of the last layer that is trained: where the gradients of the losses are compared."""
        weight: Tensor = self.temporal[-1].conv2.weight  # type: ignore[assignment, union-attr]
        return weight

    def _mixed(self, number: int, block: nn.Module, args: Any, output: Tensor) -> Tensor:
        if output.ndim == 5:
            return self.temporal[number](output)  # type: ignore[no-any-return]
        x_BTCHW = output.unflatten(0, (-1, self._num_frames))
        return self.temporal[number](x_BTCHW).flatten(0, 1)  # type: ignore[no-any-return]

    def forward(self, pixels_BCTHW: Tensor) -> Reconstruction:
        """The latents of the image encoder, decoded: not clamped."""
        latents = self.base.encode(pixels_BCTHW)
        output = BottleneckOutput(latents_BCthw=latents, loss_B=latents.new_zeros(len(latents)))
        return Reconstruction(pixels_BCTHW=self._decode(latents), bottleneck_output=output)

    def _decode(self, latents_BCthw: Tensor) -> Tensor:
        self._num_frames = latents_BCthw.shape[2]
        if isinstance(self.base, Autoencoder):
            return self.base.decoded(latents_BCthw, CausalCache())
        return self.base.decoded(latents_BCthw)  # type: ignore[no-any-return, operator]

    def encode(self, pixels_BCTHW: Tensor) -> Tensor:
        return self.base.encode(pixels_BCTHW)  # type: ignore[no-any-return, operator]

    @torch.no_grad()
    def decode(self, latents_BCthw: Tensor, *, window_frames: int = WINDOW_FRAMES) -> Tensor:
        check_latents(latents_BCthw, num_channels=self.num_channels, name=self.name)
        num_frames = latents_BCthw.shape[2]
        parts = []
        for start in range(0, num_frames, window_frames):
            first = max(0, start - HALO_FRAMES)
            window = self._decode(latents_BCthw[:, :, first : start + window_frames + HALO_FRAMES])
            parts.append(window[:, :, start - first : start - first + window_frames])
        return torch.cat(parts, dim=2).clamp(-1, 1)


def _decoder_blocks(base: Any) -> list[tuple[nn.Module, int]]:
    """Residual blocks of the decoder with their channels."""
    if isinstance(base, Autoencoder) and base.frame_stride == 1:
        blocks = [module for module in base.decoder.modules() if isinstance(module, CausalBlock)]
        return [(block, block.conv2.out_channels) for block in blocks]
    if isinstance(base, PretrainedCompressor) and base.config["kind"] == "AutoencoderKL":
        modules = base.autoencoder.decoder.modules()  # type: ignore[operator, union-attr]
        return [(module, int(module.out_channels)) for module in modules if type(module).__name__ == "ResnetBlock2D"]
    raise UsageError(
        "temporal layers are added to the decoder of an image autoencoder (kind spatial, or diffusers' AutoencoderKL), not "
        f"to {getattr(base, 'name', base)}"
    )


def frozen_base(spec: str, compressor: nn.Module) -> FrozenBase:
    """The image compressor at `spec` as the base of a checkpoint."""
    path = find(spec).path if os.path.isdir(spec) else spec
    return FrozenBase(spec=path, weights_hash=weights_hash(compressor.state_dict()), prefix=BASE_PREFIX)


def load_temporal_decoder(checkpoint: Checkpoint, base: Any) -> TemporalDecoder:
    """The trained temporal layers (EMA) of a checkpoint over their image compressor.

    Raises:
        CheckpointMismatchError: the image compressor has other weights by now, or another form.
    """
    saved = FrozenBase(**checkpoint.config["base"])
    found = weights_hash(base.state_dict())
    if found != saved.weights_hash:
        raise CheckpointMismatchError(
            f"{checkpoint.path} was trained over {saved.spec} with weights {saved.weights_hash}, there are {found} now: "
            "put the old ones back"
        )
    decoder = TemporalDecoder(base)
    weights = checkpoint.weights(ema=checkpoint.has_ema)
    own = {name: tensor for name, tensor in weights.items() if not name.startswith((DISCRIMINATOR_PREFIX, BASE_PREFIX))}
    load_weights(
        decoder.temporal, {name.removeprefix("temporal."): tensor for name, tensor in own.items()}, checkpoint.path
    )
    return decoder
