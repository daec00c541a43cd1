"""Backbones by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from recaption.errors import UsageError

BACKBONES = ("dit",)


def build(name: str, **config: Any) -> nn.Module:
    """A freshly initialised backbone.

    Raises:
        UsageError: no backbone of that name, or a setting it does not take.
    """
    if name not in BACKBONES:
        raise UsageError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    from train.backbones.dit import Dit

    try:
        return Dit(**config)
    except TypeError as error:
        raise UsageError(f"backbone {name!r} cannot be built: {error}") from error
