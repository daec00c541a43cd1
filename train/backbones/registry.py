"""Backbones by name.

model = build("dit", token_width=96, text_width=256, pooled_width=256, width=192, depth=6, num_heads=6)
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import nn

from recaption.errors import UsageError

BACKBONES = {
    "dit": "train.backbones.dit:Dit",
    "mdt": "train.backbones.mdt:Mdt",
    "diffit": "train.backbones.diffit:Diffit",
    "diffit_pixels": "train.backbones.diffit_pixels:DiffitPixels",
    "temporal": "train.backbones.temporal:TemporalDit",
    "temporal-unet": "train.backbones.pretrained.dense:DenseBackbone",
    "uvit": "train.backbones.uvit:Uvit",
    "separable": "train.backbones.separable:Separable",
}
"""Name -> module:class; a module is imported when its backbone is built."""

OF_THE_DATA = ("patch",)
"""Arguments that say what the tokens are; only some backbones look inside of them."""


def backbone_class(name: str) -> type[nn.Module]:
    """Raises UsageError where there is no backbone of that name."""
    if name not in BACKBONES:
        raise UsageError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    module, class_name = BACKBONES[name].split(":")
    found: type[nn.Module] = getattr(importlib.import_module(module), class_name)
    return found


def build(name: str, **config: Any) -> nn.Module:
    """A backbone with newly initialised weights.

    A setting that this backbone does not have is passed over where it is off (None, False, 0 or empty), and so is what
    `OF_THE_DATA` names.

    Raises:
        UsageError: unknown backbone, or a setting it does not have.
    """
    made = backbone_class(name)
    known = inspect.signature(made.__init__).parameters
    unknown = [key for key, value in config.items() if key not in known and value and key not in OF_THE_DATA]
    if unknown:
        raise UsageError(f"backbone {name!r} has no {unknown[0]}: leave it out")
    try:
        return made(**{key: value for key, value in config.items() if key in known})
    except TypeError as error:
        raise UsageError(f"backbone {name!r} cannot be built: {error}") from error
