"""Denoisers by name: `build("dit", width=192, ...)`. All take a packed row and answer token for token: with the velocity,
or with whatever else `PathSettings.prediction` has them learn.

One interface, so that the task and the sampler do not care which one it is:

    backbone = build("dit", token_width=96, text_width=256, pooled_width=256, width=192, depth=6, num_heads=6)
    answer_LD = backbone(tokens_LD, position_L3, segments, timestep_S, text_MC, text_segments, pooled_SC)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from recaption.errors import UsageError
from train.attention import Segments

BACKBONES = ("dit",)


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


def build(name: str, **config: Any) -> nn.Module:
    """A freshly initialised backbone.

    Raises:
        UsageError: no backbone of that name, or a setting it does not take.
    """
    if name not in BACKBONES:
        raise UsageError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    from train.backbones.dit import Dit

    try:
        return Dit(**config)
    except TypeError as error:
        raise UsageError(f"backbone {name!r} cannot be built: {error}") from error
