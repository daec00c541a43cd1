"""The frozen image model under temporal layers: its config, its weights, and another one in its place.

weights = weights_over_base(config, weights, "RUN/train/video")                                 # the one it was trained over
weights = weights_over_base(config, weights, "RUN/train/video", other_base="RUN/train/other")   # another one
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from recaption.errors import CheckpointMismatchError, UsageError
from train.backbones.registry import backbone_class
from train.checkpoint.same_model import differences, weights_meaning
from train.checkpoint.step_folder import find
from train.checkpoint.trained_part import read_checkpoint_base, with_base


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
        other_base: checkpoint of another image model of the same architecture, to put the temporal layers over; the hash of
            its weights is not compared.

    Raises:
        UsageError: another base for a model that is not over one.
        CheckpointMismatchError: the base has other weights by now, or is of another architecture.
    """
    if other_base:
        ours = config_of_base(config)
        if config.get("base") is None or ours is None:
            raise UsageError(f"{source} was not trained over a frozen base: leave --base out")
        found = find(other_base)
        differing = differences(weights_meaning(found.config), weights_meaning(ours))
        if differing:
            raise CheckpointMismatchError(
                f"{source} cannot be put over {found.path}, which is another model: {'; '.join(differing[:3])}"
            )
    return with_base(config, weights, source, read_checkpoint_base, other_base=other_base)
