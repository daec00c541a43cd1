"""UNet2DConditionModel of diffusers (Stable Diffusion's class): built from a config, and read from `diffusers:ID`.

    config = read_config("diffusers:stable-diffusion-v1-5/stable-diffusion-v1-5#unet")
    unet = build_unet(config)                                   # random weights
    weights = read_weights("diffusers:/models/sd15#unet")       # names as published

Needs the extra: pip install 'recaption[vae]'.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recaption import hub
from recaption.errors import CheckpointMismatchError, UsageError
from recaption.hub import first_line

PREFIX = "diffusers:"
CLASS = "UNet2DConditionModel"
WITHOUT_EFFECT = ("_class_name", "_diffusers_version", "_name_or_path", "sample_size")
"""Keys of a config that change no weight and no result."""


def build_unet(config: Mapping[str, Any]) -> nn.Module:
    """The network of a config, with random weights.

    Raises:
        UsageError: diffusers is not installed, or the config makes no network.
    """
    try:
        unet: nn.Module = _class().from_config(dict(config))
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise UsageError(f"the config of a {CLASS} makes no network: {first_line(error)}") from error
    return unet


def read_config(spec: str) -> dict[str, Any]:
    """The config at `diffusers:ID[#SUBFOLDER]`, without what changes nothing.

    Raises:
        UsageError: diffusers is not installed, or no such network there.
        WeightsUnreachableError: neither on disk nor downloadable.
    """
    path, options = _located(spec)
    try:
        config = _class().load_config(path, **options)
    except (OSError, ValueError, TypeError) as error:
        hint = "" if "#" in spec else "; in pipelines the network is in a subfolder: append #unet"
        raise UsageError(f"{spec} has no config of a model{hint}") from error
    if config.get("_class_name") != CLASS:
        raise UsageError(f"{spec} is a {config.get('_class_name')}; temporal layers are added to a {CLASS}")
    return {name: value for name, value in config.items() if name not in WITHOUT_EFFECT}


def read_weights(spec: str) -> dict[str, Tensor]:
    """The weights at `diffusers:ID[#SUBFOLDER]`, float32, on the CPU.

    Raises:
        UsageError, WeightsUnreachableError: as `read_config`.
        CheckpointMismatchError: weights that do not fit their config.
    """
    path, options = _located(spec)
    read_config(spec)
    try:
        unet = _class().from_pretrained(path, use_safetensors=True, torch_dtype=torch.float32, **options)
    except OSError as error:
        raise hub.unreachable_error(spec, error, _remedy()) from error
    except Exception as error:  # safetensors and diffusers share no base exception
        raise CheckpointMismatchError(
            f"the weights of {spec} cannot be read, or do not fit its config: {first_line(error)}"
        ) from error
    return dict(unet.state_dict())


def _class() -> Any:
    try:
        from diffusers import UNet2DConditionModel
    except ImportError as error:
        raise UsageError(f"a {CLASS} needs the diffusers package: pip install 'recaption[vae]'") from error
    return UNet2DConditionModel


def _located(spec: str) -> tuple[str, dict[str, Any]]:
    """(folder or id, further arguments of `from_pretrained`)."""
    path, _, subfolder = spec.removeprefix(PREFIX).partition("#")
    if not spec.startswith(PREFIX) or not path:
        raise UsageError(f"{spec!r}: write diffusers:ID, diffusers:ID#SUBFOLDER or diffusers:/path/of/a/folder")
    _class()
    if os.path.isdir(path):
        # diffusers would prefer a config.json of the parent folder over the one in the subfolder.
        return os.path.join(path, subfolder), {"local_files_only": True}
    file = f"{subfolder}/config.json" if subfolder else "config.json"
    is_local = hub.is_on_disk(path, what=spec, hint=_remedy(), file=file)
    return path, {"local_files_only": is_local} | ({"subfolder": subfolder} if subfolder else {})


def _remedy() -> str:
    return (
        "download the folder with config.json and diffusion_pytorch_model.safetensors and pass "
        "diffusers:/path/of/that/folder"
    )
