"""The TextTower protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class TextTower(Protocol):
    """A frozen text network: token states and a pooled vector per text."""

    width: int
    pooled_width: int
    weights_hash: str

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """(token states text_MC of all texts, concatenated; lengths_S; pooled_SC)."""
        ...
