"""Load a compressor by SPEC: `patch`, a checkpoint folder, or `diffusers:ID`."""

from __future__ import annotations

import os
from typing import Any

import torch

from recaption.errors import UsageError
from train.compressors.interface import Compressor


def load(spec: str, *, device: str | torch.device = "cpu") -> Compressor:
    """Load a compressor on `device`, in eval mode and without gradients.

    Args:
        spec: `patch` or `patch:NUM_CHANNELS` (a fixed transform, nothing to train or download); `pixels` or
            `pixels:stride=2,frame-stride=4` (no compression, or smaller and slower clips); the path of a
            checkpoint made by `recaption train compressor`; `diffusers:ID[#subfolder]` (a pretrained video VAE).

    Raises:
        UsageError: no such compressor, or a missing extra.
        WeightsUnreachableError: neither on disk nor downloadable.
        CheckpointMismatchError: the folder holds another kind of checkpoint.
    """
    kind, _, rest = spec.partition(":")
    compressor: Any
    if kind == "patch":
        from train.compressors.patch_transform import PatchTransform, parse_options

        compressor = PatchTransform(**parse_options(rest))
    elif kind == "pixels":
        from train.compressors import pixels

        compressor = pixels.PixelSpace(**pixels.parse_options(rest))
    elif kind == "diffusers":
        from train.compressors.pretrained import PretrainedCompressor

        compressor = PretrainedCompressor.from_pretrained(rest)
    elif os.path.isdir(spec):
        compressor = _load_checkpoint(spec)
    else:
        raise UsageError(
            f"compressor {spec!r} is neither a folder with a checkpoint nor one of: "
            "patch, patch:NUM_CHANNELS, pixels, diffusers:ID"
        )
    return compressor.to(device).eval().requires_grad_(False)


def _load_checkpoint(path: str) -> Any:
    """A trained autoencoder, or temporal layers in the decoder of another compressor."""
    from train.checkpoint.step_folder import find
    from train.compressors.autoencoder import load_trained
    from train.compressors.temporal_decoder import KIND, load_temporal_decoder

    checkpoint = find(path)
    model = checkpoint.config.get("model")
    if checkpoint.config.get("task") == "compressor" and isinstance(model, dict) and model.get("kind") == KIND:
        return load_temporal_decoder(checkpoint, load(checkpoint.config["base"]["spec"]))
    return load_trained(path)
