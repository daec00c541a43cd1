"""Random numbers of the diffusion process, keyed by seed, epoch and sample."""

from __future__ import annotations

import hashlib

import torch


def generator_for(*key: str | int) -> torch.Generator:
    """A CPU generator that depends on nothing but `key`: equal on every machine, rank and process.

    CPU on purpose: CUDA's stream of numbers changes between devices, and a row's noise is a few MB.
    """
    digest = hashlib.sha256(b"\x00".join(f"{type(part).__name__}:{part}".encode() for part in key)).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def chance(share: float, *key: str | int) -> bool:
    """True for about `share` of all keys, always the same ones."""
    return bool(torch.rand((), generator=generator_for(*key)) < share)
