"""Packs in plan order, resumable on any number of ranks."""

from packing.loader.loader import PackDataset, PackLoader

__all__ = ["PackDataset", "PackLoader"]
