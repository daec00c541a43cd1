"""The TextTower protocol, and the hash that identifies a tower's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class TextTower(Protocol):
    """A frozen text network: token states and a pooled vector per text."""

    width: int
    pooled_width: int
    weights_hash: str

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """(token states text_MC of all texts, concatenated; lengths_S; pooled_SC)."""
        ...


def weights_fingerprint(model: torch.nn.Module) -> str:
    """First 12 hex digits of a sha256 over names, shapes and each tensor's first 64 values; avoids hashing gigabytes."""
    digest = hashlib.sha256()
    for name, parameter in model.state_dict().items():
        values = parameter.flatten()[:64].float().cpu().numpy().tobytes()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + values)
    return digest.hexdigest()[:12]
