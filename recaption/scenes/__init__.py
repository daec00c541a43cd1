"""Synthetic videos with known captions and cuts: ground truth for every stage."""

from recaption.scenes.dataset import write_scenes
from recaption.scenes.renderer import render

__all__ = ["render", "write_scenes"]
