"""Backbones of the generator, by name."""

from train.backbones.registry import build

__all__ = ["build"]
