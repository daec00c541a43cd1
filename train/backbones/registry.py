"""Backbones by name.

model = build("dit", token_width=96, text_width=256, pooled_width=256, width=192, depth=6, num_heads=6)
"""

from __future__ import annotations

from typing import Any

from torch import nn

from recaption.errors import UsageError

BACKBONES = ("dit",)


def build(name: str, **config: Any) -> nn.Module:
    """A backbone with newly initialised weights.

    Raises:
        UsageError: unknown backbone, or a setting it does not have.
    """
    if name not in BACKBONES:
        raise UsageError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    from train.backbones.dit import Dit

    try:
        return Dit(**config)
    except TypeError as error:
        raise UsageError(f"backbone {name!r} cannot be built: {error}") from error
