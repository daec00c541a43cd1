"""Captioners: clips in, captions out."""

from recaption.captioners.interface import Captioner
from recaption.captioners.registry import load_captioner

__all__ = ["Captioner", "load_captioner"]
