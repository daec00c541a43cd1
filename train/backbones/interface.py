"""What every backbone of the generator offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from train.layers.segments import Segments


class Backbone(Protocol):
    """What the task and the sampler ask of every denoiser."""

    config: dict[str, Any]
    """Keyword arguments of `build` that make this backbone again; plain JSON values."""

    def __call__(
        self,
        tokens_LD: Tensor,
        position_L3: Tensor,
        cu_seqlens: Segments | Tensor,
        timestep_S: Tensor,
        text_MC: Tensor,
        cu_text: Segments | Tensor,
        pooled_SC: Tensor,
        *,
        drop_text_S: Sequence[bool] | None = None,
        given_L: Tensor | None = None,
    ) -> Tensor:
        """The answer for every token. `drop_text_S[s]` puts the learned null caption in place of sample s's text.

        `given_L`, bool: tokens that come clean, whatever their sample's timestep; what is put out there means nothing.
        """
