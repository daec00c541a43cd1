"""Stable import: `train.sampler.sample`."""

from train.sampling.sampler import sample

__all__ = ["sample"]
