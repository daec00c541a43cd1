"""Trainable video autoencoder: per-frame or causal 3-D, with a KL or VQ bottleneck.

    model = Autoencoder("causal3d", latent_channels=32)             # 4 frames x 8 x 8 px per latent cell
    model.encode(torch.zeros(1, 3, 9, 96, 96)).shape                # (1, 32, 3, 12, 12)
    model = Autoencoder("spatial", latent_channels=16)              # each frame alone: (1, 16, 9, 12, 12)
    model = Autoencoder("causal3d", bottleneck="vq", codebook_size=512, num_codebooks=8)

Encoder and decoder are residual corrections to the fixed transform of patch_transform.py with the same number of
channels: training starts from that transform instead of from noise, which on a CPU is most of the way (compare the
parameter-free shortcuts of DC-AE, arXiv 2410.10733). Both work on patches of 4x4 px of a whole frame group, as LTX-Video
does (arXiv 2501.00103), so that most of the compute is a few wide matrix products.

The first frame is a group of its own, repeated to full length; later groups have four frames, or one. The latents' mean
and variance per channel are tracked during training and saved in the checkpoint; encode and decode normalise by them.

Shapes: B clips, C channels, T frames, H rows, W columns; lower case letters: the latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.errors import CheckpointMismatchError, UsageError
from recaption.weights import weights_hash
from train.checkpoint.step_folder import load_model
from train.checkpoint.weights import build_model
from train.compressors.blocks import ZERO_GAIN, CausalCache, ConvTrunk
from train.compressors.bottleneck import BottleneckOutput, build_bottleneck
from train.compressors.interface import check_latents, check_pixels
from train.compressors.patch_transform import FRAME_STRIDE, SPATIAL_STRIDE, PatchTransform

KINDS = {"spatial": 1, "causal3d": FRAME_STRIDE}
"""Frames per latent frame."""
DISCRIMINATOR_PREFIX = "discriminator."
"""Prefix of weights trained along with a compressor that are not part of it."""
WHITENING = 1.0
"""Of the inner fixed transform: unit variance in every channel."""
PATCH_PX = 4
"""Patch side at the network's input and output; half of SPATIAL_STRIDE."""
STATISTICS_MOMENTUM = 0.01
"""Of the running mean and variance: about the last hundred batches."""
CHUNK_LATENT_FRAMES = 16
"""Longer clips are processed in chunks of this many latent frames: the same result in less memory."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    pixels_BCTHW: Tensor
    """Not clamped."""
    bottleneck_output: BottleneckOutput


class Autoencoder(nn.Module):
    """Encoder, bottleneck, decoder and running statistics of the latents.

    Args:
        kind: `spatial` (a latent frame per frame) or `causal3d` (per 4 frames, after the first).
        width: channels at 4x4 px patches; twice that at 8x8 px.
        latent_channels: channels per latent cell, which covers 8 x 8 px x RGB = 192 values, or 768.
        blocks: encoder residual blocks at 4x4 px and at 8x8 px patches; `decoder_blocks` likewise.
        bottleneck: `kl` or `vq`; a VQ has `num_codebooks` codebooks of `codebook_size` codes.

    Raises:
        UsageError: invalid sizes.
    """

    spatial_stride = SPATIAL_STRIDE
    latent_mean: Tensor
    latent_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        kind: str = "causal3d",
        *,
        width: int = 128,
        latent_channels: int = 32,
        blocks: tuple[int, int] = (1, 1),
        decoder_blocks: tuple[int, int] = (2, 2),
        bottleneck: str = "kl",
        codebook_size: int = 512,
        num_codebooks: int = 1,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UsageError(f"unknown compressor kind {kind!r}; choose from: {', '.join(KINDS)}")
        if width < 8 or latent_channels < 1 or min(*blocks, *decoder_blocks) < 0:
            raise UsageError(
                f"compressor {kind} cannot be built with {width = }, {latent_channels = }, {blocks = }, "
                f"{decoder_blocks = }; the width is at least 8, the channels at least 1"
            )
        self.name = kind
        self.frame_stride = KINDS[kind]
        self.num_channels = latent_channels
        self.bottleneck = build_bottleneck(
            bottleneck, latent_channels, codebook_size=codebook_size, num_codebooks=num_codebooks
        )
        self.config: dict[str, Any] = {
            "kind": kind,
            "width": width,
            "latent_channels": latent_channels,
            "blocks": list(blocks),
            "decoder_blocks": list(decoder_blocks),
            "bottleneck": bottleneck,
            **self.bottleneck.config,
        }
        self.transform = PatchTransform(latent_channels, whitening=WHITENING, frame_stride=self.frame_stride)
        patch_values = 3 * self.frame_stride * PATCH_PX**2
        uses_previous_frame = self.frame_stride > 1
        self.encoder = ConvTrunk(
            patch_values,
            (width, 2 * width),
            self.bottleneck.num_inputs,
            blocks=blocks,
            scale=0.5,
            uses_previous_frame=uses_previous_frame,
        )
        fine, coarse = decoder_blocks
        self.decoder = ConvTrunk(
            latent_channels,
            (2 * width, width),
            patch_values,
            blocks=(coarse, fine),
            scale=2,
            uses_previous_frame=uses_previous_frame,
        )
        nn.init.constant_(self.encoder.conv_out.bias[latent_channels:], self.bottleneck.initial_bias / ZERO_GAIN)  # type: ignore[index]
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_var", torch.ones(latent_channels))
        self.register_buffer("num_batches_tracked", torch.zeros(()))

    # --- training -----------------------------------------------------------------------------------------------------

    def forward(self, pixels_BCTHW: Tensor) -> Reconstruction:
        """Encode and decode; in training mode with noise, updating the latent statistics."""
        self._check(pixels_BCTHW)
        bottleneck_output: BottleneckOutput = self.bottleneck(self._encode(pixels_BCTHW, CausalCache()))
        if self.training:
            self._update_statistics(bottleneck_output.latents_BCthw.detach())
        return Reconstruction(
            pixels_BCTHW=self._decode(bottleneck_output.latents_BCthw, CausalCache()),
            bottleneck_output=bottleneck_output,
        )

    def _encode(self, pixels_BCTHW: Tensor, cache: CausalCache, *, is_first: bool = True) -> Tensor:
        """Input of the bottleneck, (B, num_inputs, t, h, w).

        Args:
            is_first: whether this chunk begins with the clip's first frame, which is a group of its own.
        """
        if is_first:
            repeated = pixels_BCTHW[:, :, :1].expand(-1, -1, self.frame_stride - 1, -1, -1)
            grouped, skipped = torch.cat([repeated, pixels_BCTHW], dim=2), 0
        else:
            grouped, skipped = pixels_BCTHW, 1
            pixels_BCTHW = torch.cat([pixels_BCTHW[:, :, :1], pixels_BCTHW], dim=2)
        transformed = self.transform.analyse(pixels_BCTHW)[:, :, skipped:]
        groups_BtCHW = grouped.unflatten(2, (-1, self.frame_stride)).transpose(1, 2).flatten(2, 3)
        correction = self.encoder(F.pixel_unshuffle(groups_BtCHW, PATCH_PX), cache).transpose(1, 2).float()
        return torch.cat([correction[:, : self.num_channels] + transformed, correction[:, self.num_channels :]], dim=1)

    def _decode(self, latents_BCthw: Tensor, cache: CausalCache, *, is_first: bool = True) -> Tensor:
        """Reconstructed pixels, not clamped."""
        groups_BtCHW = F.pixel_shuffle(self.decoder(latents_BCthw.transpose(1, 2), cache).float(), PATCH_PX)
        correction = groups_BtCHW.unflatten(2, (3, self.frame_stride)).transpose(1, 2).flatten(2, 3)
        if is_first:
            return self.transform.synthesise(latents_BCthw) + correction[:, :, self.frame_stride - 1 :]
        padded = torch.cat([latents_BCthw[:, :, :1], latents_BCthw], dim=2)
        return self.transform.synthesise(padded)[:, :, 1:] + correction

    @torch.no_grad()
    def _update_statistics(self, latents_BCthw: Tensor) -> None:
        values_CN = latents_BCthw.transpose(0, 1).flatten(1)
        self.num_batches_tracked += 1
        weight = torch.clamp(1 / self.num_batches_tracked, min=STATISTICS_MOMENTUM)
        mean = self.latent_mean.lerp(values_CN.mean(1), weight)
        variance = (values_CN - mean[:, None]).square().mean(1)
        self.latent_mean.copy_(mean)
        self.latent_var.lerp_(variance, weight)

    # --- use ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, pixels_BCTHW: Tensor, *, chunk_latent_frames: int = CHUNK_LATENT_FRAMES) -> Tensor:
        self._check(pixels_BCTHW)
        cache, stride = CausalCache(), self.frame_stride
        chunks = []
        for start in range(0, 1 + (pixels_BCTHW.shape[2] - 1) // stride, chunk_latent_frames):
            first_frame = (start - 1) * stride + 1 if start else 0
            chunk = pixels_BCTHW[:, :, first_frame : (start + chunk_latent_frames - 1) * stride + 1]
            chunks.append(self.bottleneck.latents(self._encode(chunk, cache, is_first=start == 0)))
        mean, std = self._statistics()
        return (torch.cat(chunks, dim=2) - mean) / std

    @torch.no_grad()
    def decode(self, latents_BCthw: Tensor, *, chunk_latent_frames: int = CHUNK_LATENT_FRAMES) -> Tensor:
        check_latents(latents_BCthw, num_channels=self.num_channels, name=self.name)
        mean, std = self._statistics()
        latents = self.bottleneck.quantize(latents_BCthw.float() * std + mean)
        cache = CausalCache()
        chunks = [
            self._decode(chunk, cache, is_first=index == 0)
            for index, chunk in enumerate(latents.split(chunk_latent_frames, dim=2))
        ]
        return torch.cat(chunks, dim=2).clamp(-1, 1)

    def decoded(self, latents_BCthw: Tensor, cache: CausalCache) -> Tensor:
        """As `decode`, at once, with gradients and not clamped."""
        mean, std = self._statistics()
        return self._decode(self.bottleneck.quantize(latents_BCthw.float() * std + mean), cache)

    @property
    def last_weight(self) -> Tensor:
        """Of the last layer: where the gradients of the losses are compared."""
        return self.decoder.conv_out.weight

    def _check(self, pixels_BCTHW: Tensor) -> None:
        check_pixels(pixels_BCTHW, frame_stride=self.frame_stride, spatial_stride=SPATIAL_STRIDE, name=self.name)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) per channel, (C, 1, 1, 1)."""
        shape = (-1, 1, 1, 1)
        return self.latent_mean.view(shape), self.latent_var.clamp(min=1e-8).sqrt().view(shape)


def load_trained(path: str) -> Autoencoder:
    """Load a trained compressor, with the EMA weights.

    Raises:
        UsageError: no checkpoint there.
        CheckpointMismatchError: not a compressor, or weights that do not fit.
    """
    config, weights = load_model(path, task="compressor")
    model = config.get("model")
    if not isinstance(model, dict) or model.get("kind") not in KINDS:
        raise CheckpointMismatchError(f"{path} is not a compressor that this version can build: {model!r}")
    weights = {name: value for name, value in weights.items() if not name.startswith(DISCRIMINATOR_PREFIX)}
    autoencoder = build_model(Autoencoder, model, weights, path)
    digest = weights_hash(weights)
    autoencoder.name = f"{autoencoder.name}-{digest[:8]}"
    autoencoder.config = {**autoencoder.config, "weights_sha256": digest}
    return autoencoder
