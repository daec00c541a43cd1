"""The stable door to sampling: `train.sampler.sample`."""

from train.sampling.sampler import sample

__all__ = ["sample"]
