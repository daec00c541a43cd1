"""The compressors that `recaption train compressor` trains: spatial patches or spacetime patches, KL or VQ.

    model = Autoencoder("causal3d", latent_channels=32)             # 4 frames x 8 x 8 px per latent place
    model.encode(torch.zeros(1, 3, 9, 96, 96)).shape                # (1, 32, 3, 12, 12)
    model = Autoencoder("spatial", latent_channels=16)              # every frame for itself: (1, 16, 9, 12, 12)
    model = Autoencoder("causal3d", bottleneck="vq", codes=512, groups=8)

Encoder and decoder are corrections to the fixed transform of patch_transform.py with as many channels: training starts
where that stands instead of at noise, which on a CPU is most of the way (the shortcuts without weights of DC-AE, arXiv
2410.10733, taken to their end). Both work on squares of 4x4 px of a whole group of frames, the way LTX-Video enters its
(arXiv 2501.00103), so that most work is a few wide matrix products.

The first frame is a group of its own, as if it stood still; the groups after it have four frames, or one. The latents'
mean and standard deviation per channel are recorded while it trains and travel in the checkpoint; encode and decode
normalise by them.

Shapes: B clips, C channels, T frames, H rows, W columns; small letters in the latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.errors import CheckpointMismatchError, UsageError
from train.checkpoint import step_folder as checkpoint
from train.checkpoint.weights import load_weights, weights_hash
from train.compressors import bottleneck as bottlenecks
from train.compressors.blocks import ZERO_GAIN, Past, Tower
from train.compressors.bottleneck import Bottled
from train.compressors.interface import check_latents, check_pixels
from train.compressors.patch_transform import FRAME_STRIDE, SPATIAL_STRIDE, PatchTransform

KINDS = {"spatial": 1, "causal3d": FRAME_STRIDE}
"""Frames per latent frame."""


VERSION = 2
"""Of the layers: weights of another version do not fit."""


DISCRIMINATOR = "discriminator."
"""What the names of weights begin with that are trained beside a compressor and are no part of it."""


WHITENING = 1.0
"""Of the fixed transform inside: its channels come out with unit variance."""


SQUARE_PX = 4
"""Squares of so many pixels enter and leave; half of SPATIAL_STRIDE."""


STATISTICS_MOMENTUM = 0.01
"""The recorded mean and variance follow about the last hundred batches."""


CHUNK_LATENT_FRAMES = 16
"""Longer clips are encoded and decoded in pieces of so many latent frames, which gives the same and needs less memory."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    pixels_BCTHW: Tensor
    """Not clamped."""
    bottled: Bottled


class Autoencoder(nn.Module):
    """Encoder, bottleneck, decoder and the statistics of what lies between.

    Args:
        kind: `spatial` (a latent frame per frame) or `causal3d` (per 4 frames, after the first).
        width: channels on squares of 4x4 px; twice that on those of 8x8.
        latent_channels: numbers per latent place (8 x 8 px x RGB = 192 numbers go in, or 768).
        blocks: residual blocks on squares of 4x4 and of 8x8 px, in the encoder; the decoder has `decoder_blocks`.
        bottleneck: `kl` or `vq`; a VQ has `codes` in each of `groups` lists.

    Raises:
        UsageError: sizes that cannot be built.
    """

    spatial_stride = SPATIAL_STRIDE
    latent_mean: Tensor
    latent_var: Tensor
    num_recorded: Tensor

    def __init__(
        self,
        kind: str = "causal3d",
        *,
        width: int = 128,
        latent_channels: int = 32,
        blocks: tuple[int, int] = (1, 1),
        decoder_blocks: tuple[int, int] = (2, 2),
        bottleneck: str = "kl",
        codes: int = 512,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UsageError(f"compressor {kind!r} is unknown; there are: {', '.join(KINDS)}")
        if width < 8 or latent_channels < 1 or min(*blocks, *decoder_blocks) < 0:
            raise UsageError(
                f"compressor {kind} cannot be built with {width = }, {latent_channels = }, {blocks = }, "
                f"{decoder_blocks = }; the width is at least 8, the channels at least 1"
            )
        self.name = kind
        self.frame_stride = KINDS[kind]
        self.num_channels = latent_channels
        self.bottleneck = bottlenecks.build(bottleneck, latent_channels, codes=codes, groups=groups)
        self.config: dict[str, Any] = {
            "kind": kind,
            "version": VERSION,
            "width": width,
            "latent_channels": latent_channels,
            "blocks": list(blocks),
            "decoder_blocks": list(decoder_blocks),
            "bottleneck": bottleneck,
            **self.bottleneck.config,
        }
        self.linear = PatchTransform(latent_channels, whitening=WHITENING, frame_stride=self.frame_stride)
        numbers = 3 * self.frame_stride * SQUARE_PX**2
        looks_back = self.frame_stride > 1
        self.encoder = Tower(
            numbers, (width, 2 * width), self.bottleneck.num_inputs, blocks=blocks, scale=0.5, looks_back=looks_back
        )
        fine, coarse = decoder_blocks
        self.decoder = Tower(
            latent_channels, (2 * width, width), numbers, blocks=(coarse, fine), scale=2, looks_back=looks_back
        )
        nn.init.constant_(self.encoder.leave.bias[latent_channels:], self.bottleneck.initial_bias / ZERO_GAIN)  # type: ignore[index]
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_var", torch.ones(latent_channels))
        self.register_buffer("num_recorded", torch.zeros(()))

    # --- training -----------------------------------------------------------------------------------------------------

    def forward(self, pixels_BCTHW: Tensor) -> Reconstruction:
        """There and back; in training mode with noise, and the latents' statistics are recorded."""
        self._check(pixels_BCTHW)
        bottled: Bottled = self.bottleneck(self._encoded(pixels_BCTHW, Past()))
        if self.training:
            self._record(bottled.latents_BCthw.detach())
        return Reconstruction(pixels_BCTHW=self._decoded(bottled.latents_BCthw, Past()), bottled=bottled)

    def _encoded(self, pixels_BCTHW: Tensor, past: Past, *, is_first: bool = True) -> Tensor:
        """What the bottleneck takes, (B, num_inputs, t, h, w).

        Args:
            is_first: whether the clip's first frame, a group of its own, is among these; else all groups are whole.
        """
        if is_first:
            still = pixels_BCTHW[:, :, :1].expand(-1, -1, self.frame_stride - 1, -1, -1)
            grouped, skipped = torch.cat([still, pixels_BCTHW], dim=2), 0
        else:
            grouped, skipped = pixels_BCTHW, 1
            pixels_BCTHW = torch.cat([pixels_BCTHW[:, :, :1], pixels_BCTHW], dim=2)
        transformed = self.linear.analyse(pixels_BCTHW)[:, :, skipped:]
        groups_BtCHW = grouped.unflatten(2, (-1, self.frame_stride)).transpose(1, 2).flatten(2, 3)
        correction = self.encoder(F.pixel_unshuffle(groups_BtCHW, SQUARE_PX), past).transpose(1, 2).float()
        return torch.cat([correction[:, : self.num_channels] + transformed, correction[:, self.num_channels :]], dim=1)

    def _decoded(self, latents_BCthw: Tensor, past: Past, *, is_first: bool = True) -> Tensor:
        """Not clamped."""
        groups_BtCHW = F.pixel_shuffle(self.decoder(latents_BCthw.transpose(1, 2), past).float(), SQUARE_PX)
        correction = groups_BtCHW.unflatten(2, (3, self.frame_stride)).transpose(1, 2).flatten(2, 3)
        if is_first:
            return self.linear.synthesise(latents_BCthw) + correction[:, :, self.frame_stride - 1 :]
        whole = torch.cat([latents_BCthw[:, :, :1], latents_BCthw], dim=2)
        return self.linear.synthesise(whole)[:, :, 1:] + correction

    @torch.no_grad()
    def _record(self, latents_BCthw: Tensor) -> None:
        places = latents_BCthw.transpose(0, 1).flatten(1)
        self.num_recorded += 1
        share = torch.clamp(1 / self.num_recorded, min=STATISTICS_MOMENTUM)
        centre = self.latent_mean.lerp(places.mean(1), share)
        spread = (places - centre[:, None]).square().mean(1)
        self.latent_mean.copy_(centre)
        self.latent_var.lerp_(spread, share)

    # --- use ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, pixels_BCTHW: Tensor, *, chunk_latent_frames: int = CHUNK_LATENT_FRAMES) -> Tensor:
        self._check(pixels_BCTHW)
        past, stride = Past(), self.frame_stride
        pieces = []
        for start in range(0, 1 + (pixels_BCTHW.shape[2] - 1) // stride, chunk_latent_frames):
            first_frame = (start - 1) * stride + 1 if start else 0
            piece = pixels_BCTHW[:, :, first_frame : (start + chunk_latent_frames - 1) * stride + 1]
            pieces.append(self.bottleneck.latents(self._encoded(piece, past, is_first=start == 0)))
        centre, spread = self._statistics()
        return (torch.cat(pieces, dim=2) - centre) / spread

    @torch.no_grad()
    def decode(self, latents_BCthw: Tensor, *, chunk_latent_frames: int = CHUNK_LATENT_FRAMES) -> Tensor:
        check_latents(latents_BCthw, num_channels=self.num_channels, name=self.name)
        centre, spread = self._statistics()
        latents = self.bottleneck.snap(latents_BCthw.float() * spread + centre)
        past = Past()
        pieces = [
            self._decoded(piece, past, is_first=number == 0)
            for number, piece in enumerate(latents.split(chunk_latent_frames, dim=2))
        ]
        return torch.cat(pieces, dim=2).clamp(-1, 1)

    def _check(self, pixels_BCTHW: Tensor) -> None:
        check_pixels(pixels_BCTHW, frame_stride=self.frame_stride, spatial_stride=SPATIAL_STRIDE, name=self.name)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        shape = (-1, 1, 1, 1)
        return self.latent_mean.view(shape), self.latent_var.clamp(min=1e-8).sqrt().view(shape)


def load_trained(path: str) -> Autoencoder:
    """The compressor of a checkpoint, with the averaged weights.

    Raises:
        UsageError, CheckpointMismatchError: nothing there; not a compressor; weights that do not fit.
    """
    config, weights = checkpoint.load_model(path, task="compressor")
    model = config.get("model")
    if not isinstance(model, dict) or model.get("kind") not in KINDS or model.get("version") != VERSION:
        raise CheckpointMismatchError(f"{path} names no compressor that this version can build: {model!r}")
    autoencoder = Autoencoder(**{name: value for name, value in model.items() if name != "version"})
    # A discriminator trained beside it is of no use here.
    weights = {name: value for name, value in weights.items() if not name.startswith(DISCRIMINATOR)}
    load_weights(autoencoder, weights, path)
    digest = weights_hash(weights)
    autoencoder.name = f"{autoencoder.name}-{digest[:8]}"
    autoencoder.config = {**autoencoder.config, "weights_sha256": digest}
    return autoencoder
