"""Random numbers of the diffusion process, keyed by seed, epoch and sample."""

from __future__ import annotations

import hashlib

import torch


def seeded_generator(*key: str | int) -> torch.Generator:
    """A CPU generator seeded by `key` alone: the same numbers on every machine, rank and process.

    On the CPU because CUDA's random stream differs between devices; the noise of a pack is a few MB.
    """
    digest = hashlib.sha256(b"\x00".join(f"{type(part).__name__}:{part}".encode() for part in key)).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def seeded_bernoulli(probability: float, *key: str | int) -> bool:
    """A Bernoulli sample that is a function of `key`."""
    return bool(torch.rand((), generator=seeded_generator(*key)) < probability)
