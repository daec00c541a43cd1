"""The frozen image model under temporal layers: its config, its weights, and another one in its place.

weights = weights_over_base(config, weights, "RUN/train/video")                                 # the one it was trained over
weights = weights_over_base(config, weights, "RUN/train/video", other_base="RUN/train/other")   # another one
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from recaption.errors import CheckpointMismatchError, UsageError
from train.backbones.pretrained.unet import PREFIX, read_config, read_weights
from train.backbones.registry import backbone_class
from train.checkpoint.same_model import differences, weights_meaning
from train.checkpoint.step_folder import find
from train.checkpoint.trained_part import read_checkpoint_base, with_base


def read_base(spec: str) -> dict[str, Tensor]:
    """Weights of a base: the (EMA) ones of a checkpoint, or those at `diffusers:ID[#SUBFOLDER]`."""
    return read_weights(spec) if spec.startswith(PREFIX) else read_checkpoint_base(spec)


def unet_config(spec: str) -> dict[str, Any]:
    """The config of the U-Net at `diffusers:ID[#SUBFOLDER]`, or under the temporal layers of a checkpoint.

    Raises:
        UsageError: there is none.
    """
    if spec.startswith(PREFIX):
        return read_config(spec)
    backbone = find(spec).config["backbone"] if spec else {}
    if "unet" not in backbone:
        raise UsageError(
            "backbone temporal-unet adds temporal layers to a U-Net: name it with --init-from diffusers:ID#unet, or a "
            "checkpoint of temporal-unet"
        )
    config: dict[str, Any] = backbone["unet"]
    return config


def config_of_base(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config that the image model's own checkpoint has, of the checkpoint's config of a model over it; None: no such
    model."""
    made: Any = backbone_class(config["backbone"]["name"])
    if not hasattr(made, "base_config"):
        return None
    backbone = {name: value for name, value in config["backbone"].items() if name != "name"}
    return {**config, "backbone": made.base_config(backbone)}


def weights_over_base(
    config: dict[str, Any], weights: Mapping[str, Tensor], source: str, *, other_base: str = ""
) -> dict[str, Tensor]:
    """The weights of a whole model, as `with_base`.

    Args:
        other_base: another image model of the same architecture, to put the temporal layers over; the hash of its weights
            is not compared.

    Raises:
        UsageError: another base for a model that is not over one.
        CheckpointMismatchError: the base has other weights by now, or is of another architecture.
    """
    if other_base:
        ours = config_of_base(config)
        if config.get("base") is None or ours is None:
            raise UsageError(f"{source} was not trained over a frozen base: leave --base out")
        if other_base.startswith(PREFIX):
            theirs, ours = read_config(other_base), ours["backbone"].get("unet", {})
        else:
            theirs, ours = weights_meaning(find(other_base).config), weights_meaning(ours)
        differing = differences(theirs, ours)
        if differing:
            raise CheckpointMismatchError(
                f"{source} cannot be put over {other_base}, which is another model: {'; '.join(differing[:3])}"
            )
    return with_base(config, weights, source, read_base, other_base=other_base)
