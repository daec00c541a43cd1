"""What every text tower offers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class TextTower(Protocol):
    """Token states and a pooled vector for each text."""

    width: int
    pooled_width: int
    weights_hash: str

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """(text_MC concatenated, lengths_S, pooled_SC)."""
        ...


def _hash_of_weights(model: torch.nn.Module) -> str:
    """First 12 hex digits over names, shapes and a part of the numbers: enough to tell two sets of weights apart
    without reading gigabytes twice."""
    digest = hashlib.sha256()
    for name, parameter in model.state_dict().items():
        sample = parameter.flatten()[:64].float().cpu().numpy().tobytes()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + sample)
    return digest.hexdigest()[:12]
