"""Video compressors: `load(SPEC)`."""

from train.compressors.registry import load

__all__ = ["load"]
