"""The interface of the generator's backbones: one prediction per token of a pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from train.layers.segments import Segments
from train.layers.text_condition import TextSelection


class Backbone(Protocol):
    """A denoiser that the training task and the sampler can use."""

    config: dict[str, Any]
    """Keyword arguments of `build` that make the same model; plain JSON values. Without `attention_backend`, which changes
    with the machine."""

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
        drop_text_S: Sequence[bool] | TextSelection | None = None,
        condition_mask_L: Tensor | None = None,
    ) -> Tensor:
        """The prediction for every token, in the type of `DiffusionSettings.prediction`.

        Args:
            drop_text_S: samples that get the learned null caption in place of their text.
            condition_mask_L: bool, conditioning tokens: passed in clean (t = 0), their output is undefined.
        """
