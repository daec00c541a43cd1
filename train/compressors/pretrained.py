"""Pretrained video and image VAEs of diffusers as compressors (`diffusers:ID`).

    load("diffusers:Wan-AI/Wan2.1-T2V-1.3B-Diffusers#vae")     # hub id # subfolder of the weights
    load("diffusers:/models/wan-vae")                           # or a folder on disk

Video VAEs of Wan, CogVideoX, HunyuanVideo, LTX-Video and Mochi; needs the extra: pip install 'recaption[vae]'. Latents
are the posterior mean, normalised by the model's config: (z - mean) / std, times the scaling factor. Image VAEs
(AutoencoderKL of Stable Diffusion and Flux, AutoencoderDC of Sana) encode each frame alone: a latent frame per frame,
--encode.frame-stride 1.

Shapes: B clips, C channels, T frames, H rows, W columns; lower case letters: the latent grid.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recaption import hub
from recaption.errors import CheckpointMismatchError, UsageError
from recaption.hub import first_line
from train.compressors.interface import check_latents, check_pixels

VIDEO_CLASSES = (
    "AutoencoderKLWan",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLHunyuanVideo",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLMochi",
)
IMAGE_CLASSES = ("AutoencoderKL", "AutoencoderDC")
CLASSES = (*VIDEO_CLASSES, *IMAGE_CLASSES)
"""Supported classes. Not AutoencoderKLCosmos: its statistics vary over time as well as over channels."""
MAX_FRAMES_PER_BATCH = 16
"""Frames per forward pass of an image VAE."""


def folder_name(source: str) -> str:
    """Name of the latents folder of an id or path: its last 64 characters, beginning with a letter or digit."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", source)[-64:].strip("-.")


class PretrainedCompressor(nn.Module):
    """A diffusers autoencoder behind the Compressor protocol.

    Args:
        autoencoder: an instance of one of CLASSES.
        source: id or path; part of the name and the config.

    Raises:
        UsageError: an unsupported class.
    """

    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(self, autoencoder: Any, *, source: str) -> None:
        super().__init__()
        kind = type(autoencoder).__name__
        if kind not in CLASSES:
            raise UsageError(f"diffusers:{source} is a {kind}; supported classes: {', '.join(CLASSES)}")
        settings = autoencoder.config
        self.autoencoder = autoencoder
        self.num_channels = int(settings.z_dim if kind == "AutoencoderKLWan" else settings.latent_channels)
        self.frame_stride, self.spatial_stride = _strides(autoencoder)
        self.is_image_model = kind in IMAGE_CLASSES
        self.needs_timestep = bool(settings.get("timestep_conditioning", False))
        self.name = folder_name(source)
        self.config: dict[str, Any] = {"kind": kind, "source": source}

        # LTX-Video has mean and std as buffers of the model, the others in their config, or not at all.
        mean = getattr(autoencoder, "latents_mean", settings.get("latents_mean"))
        std = getattr(autoencoder, "latents_std", settings.get("latents_std"))
        mean = torch.zeros(self.num_channels) if mean is None else torch.as_tensor(mean).detach().float().clone()
        std = torch.ones(self.num_channels) if std is None else torch.as_tensor(std).detach().float().clone()
        factor = float(settings.get("scaling_factor") or 1.0)
        shift = float(settings.get("shift_factor") or 0.0)
        self.register_buffer("latent_mean", mean + shift, persistent=False)
        self.register_buffer("latent_scale", factor / std, persistent=False)

    @classmethod
    def from_pretrained(cls, source: str) -> PretrainedCompressor:
        """Load `ID`, `ID#SUBFOLDER` or a folder on disk.

        Raises:
            UsageError: diffusers is not installed, or there is no supported autoencoder.
            WeightsUnreachableError: neither on disk nor downloadable; raised within seconds.
        """
        try:
            import diffusers
        except ImportError as error:
            raise UsageError(
                f"compressor diffusers:{source} needs the diffusers package: pip install 'recaption[vae]'"
            ) from error
        path, _, subfolder = source.partition("#")
        if not path:
            raise UsageError("write diffusers:ID, diffusers:ID#SUBFOLDER or diffusers:/path/of/a/folder")
        is_local = os.path.isdir(path)
        if is_local:
            # diffusers would prefer a config.json of the parent folder over the one in the subfolder.
            path, subfolder = os.path.join(path, subfolder), ""
        options = {"subfolder": subfolder} if subfolder else {}
        what = f"compressor diffusers:{source}"
        remedy = (
            "download the folder with config.json and diffusion_pytorch_model.safetensors and pass "
            "diffusers:/path/of/that/folder"
        )
        config_file = f"{subfolder}/config.json" if subfolder else "config.json"
        is_local = is_local or hub.is_on_disk(path, what=what, hint=remedy, file=config_file)
        try:
            kind = diffusers.AutoencoderKLWan.load_config(path, local_files_only=is_local, **options)["_class_name"]
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            hint = "" if "#" in source else "; in pipelines the VAE is in a subfolder: append #vae"
            raise UsageError(f"diffusers:{source} has no config of a model{hint}") from error
        if kind not in CLASSES:
            raise UsageError(f"diffusers:{source} is a {kind}; supported classes: {', '.join(CLASSES)}")
        try:
            model = getattr(diffusers, kind).from_pretrained(
                path, local_files_only=is_local, use_safetensors=True, torch_dtype=torch.float32, **options
            )
        except OSError as error:
            raise hub.unreachable_error(what, error, remedy) from error
        except Exception as error:  # safetensors, diffusers and its models share no base exception
            raise CheckpointMismatchError(
                f"the weights of diffusers:{source} cannot be read, or do not fit its config: {first_line(error)}"
            ) from error
        return cls(model, source=source)

    @torch.no_grad()
    def encode(self, pixels_BCTHW: Tensor) -> Tensor:
        check_pixels(pixels_BCTHW, frame_stride=self.frame_stride, spatial_stride=self.spatial_stride, name=self.name)
        mean = self._per_frame(self._mean, pixels_BCTHW) if self.is_image_model else self._mean(pixels_BCTHW)
        return (mean - self._per_channel(self.latent_mean)) * self._per_channel(self.latent_scale)

    @torch.no_grad()
    def decode(self, latents_BCthw: Tensor) -> Tensor:
        check_latents(latents_BCthw, num_channels=self.num_channels, name=self.name)
        latents = latents_BCthw / self._per_channel(self.latent_scale) + self._per_channel(self.latent_mean)
        # Timestep-conditioned decoders (LTX-Video) get timestep 0: no noise left.
        options = {"temb": latents.new_zeros(len(latents))} if self.needs_timestep else {}
        if self.is_image_model:
            return self._per_frame(lambda frames: self.autoencoder.decode(frames).sample, latents).clamp(-1, 1)
        return self.autoencoder.decode(latents, **options).sample.clamp(-1, 1)

    def decoded(self, latents_BCthw: Tensor) -> Tensor:
        """As `decode` of an image model, all frames at once, with gradients and not clamped."""
        latents = latents_BCthw / self._per_channel(self.latent_scale) + self._per_channel(self.latent_mean)
        frames_NCHW = self.autoencoder.decode(latents.transpose(1, 2).flatten(0, 1)).sample
        return frames_NCHW.unflatten(0, (len(latents), -1)).transpose(1, 2)

    def _mean(self, pixels: Tensor) -> Tensor:
        encoded = self.autoencoder.encode(pixels)
        return encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()

    def _per_frame(self, function: Callable[[Tensor], Tensor], x_BCTHW: Tensor) -> Tensor:
        """Apply `function`, from (N, C, H, W) to (N, C, H, W), to the frames in chunks."""
        frames_NCHW = x_BCTHW.transpose(1, 2).flatten(0, 1)
        outputs = torch.cat([function(chunk) for chunk in frames_NCHW.split(MAX_FRAMES_PER_BATCH)])
        return outputs.unflatten(0, (len(x_BCTHW), -1)).transpose(1, 2)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1)


def _strides(autoencoder: Any) -> tuple[int, int]:
    """(frames per latent frame, pixels per latent cell), from the class's config."""
    settings = autoencoder.config
    kind = type(autoencoder).__name__
    if kind == "AutoencoderKLWan":
        return int(settings.scale_factor_temporal), int(settings.scale_factor_spatial)
    if kind in ("AutoencoderKLCogVideoX", "AutoencoderKL"):
        frames = 1 if kind in IMAGE_CLASSES else int(settings.temporal_compression_ratio)
        return frames, 2 ** (len(settings.block_out_channels) - 1)
    frames = 1 if kind in IMAGE_CLASSES else int(autoencoder.temporal_compression_ratio)
    return frames, int(autoencoder.spatial_compression_ratio)
