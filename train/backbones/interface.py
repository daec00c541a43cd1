"""The interface of the generator's backbones: one prediction per token of a pack.

    inputs = PackedInputs(tokens_LD=..., position_L3=..., segments=..., timestep_S=..., text=encoder.encode(captions))
    prediction_LD = backbone(inputs)

Shape suffixes: L tokens of a pack, S samples of a pack, M text tokens of a pack, D numbers per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from packing.grid import Shape3
from train.layers.layouts import LayoutKey, Layouts
from train.layers.segments import Segments
from train.layers.text_condition import TextSelection
from train.layers.token_mask import TokenMask
from train.parallel.transfer import copied
from train.text.encoder import EncodedText


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedInputs:
    """Everything that a backbone may look at, for the samples of one pack."""

    tokens_LD: Tensor
    """Noised tokens; those of the conditioning frames clean."""
    position_L3: Tensor
    """int, (frame, row, column) of each token on its own sample's grid; any size."""
    segments: Segments
    timestep_S: Tensor
    """0 (clean) to 1 (noise) of each sample; its conditioning tokens are at 0 (`timestep_L`)."""
    text: EncodedText
    """Of all samples, also of those that get the null caption."""
    drop_text_S: TextSelection | Sequence[bool] | None = None
    """Samples that get the null caption; so does every sample without text. Or the `TextSelection` made of them, which a
    training step has on the device already."""
    condition_mask_L: Tensor | None = None
    """bool: conditioning tokens."""
    noised_LD: Tensor | None = None
    """`tokens_LD` with the conditioning tokens noised like the others, for models that see the clean ones elsewhere and for
    context guidance. None: the same as `tokens_LD`."""
    hint_LD: Tensor | None = None
    """Tokens of the low-resolution video of a super-resolution stage, on the grid of `tokens_LD`."""
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    """Further numbers per sample (S,), by name: noise level of the hint, frames per second, guidance scale of a student."""
    token_mask: TokenMask | None = None
    """Tokens that the encoder of a masked model does not see; None: it sees all of them."""
    token_shapes: tuple[Shape3, ...] = ()
    """Tokens of each sample along (frames, rows, columns) before any were dropped."""
    layouts: Layouts = None  # type: ignore[assignment]
    """Of this pack; built here where it is left out."""

    def __post_init__(self) -> None:
        if self.layouts is None:
            object.__setattr__(self, "layouts", Layouts(self.segments, self.position_L3))

    @property
    def timestep_L(self) -> Tensor:
        """float (L): the noise level of each token; 0 for conditioning tokens."""
        timestep_L = self.timestep_S[self.segments.segment_ids_L]
        return timestep_L if self.condition_mask_L is None else timestep_L.masked_fill(self.condition_mask_L, 0)

    @property
    def all_noised_LD(self) -> Tensor:
        """`noised_LD`, or `tokens_LD` where there is none."""
        return self.tokens_LD if self.noised_LD is None else self.noised_LD

    def replace(self, **changes: Any) -> PackedInputs:
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device | str) -> PackedInputs:
        """On another device, with the layouts that have been built."""
        segments, position_L3 = self.segments.to(device), copied(self.position_L3, device)
        text = self.drop_text_S
        return self.replace(
            tokens_LD=copied(self.tokens_LD, device),
            position_L3=position_L3,
            segments=segments,
            timestep_S=copied(self.timestep_S, device),
            text=self.text.to(device),
            drop_text_S=text.to(device) if isinstance(text, TextSelection) else text,
            condition_mask_L=None if self.condition_mask_L is None else copied(self.condition_mask_L, device),
            noised_LD=None if self.noised_LD is None else copied(self.noised_LD, device),
            hint_LD=None if self.hint_LD is None else copied(self.hint_LD, device),
            scalars={name: copied(value_S, device) for name, value_S in self.scalars.items()},
            token_mask=None if self.token_mask is None else self.token_mask.to(device),
            layouts=self.layouts.to(device, segments, position_L3),
        )

    def repeated(self, times: int, drop_text_S: TextSelection | Sequence[bool]) -> PackedInputs:
        """The same samples `times` times in one pack, for classifier-free guidance; no token is masked.

        Args:
            drop_text_S: of all copies.
        """
        repeated_text = EncodedText(
            self.text.text_MC.repeat(times, 1), self.text.segments.repeated(times), self.text.pooled_SC.repeat(times, 1)
        )
        mask_L, noised_LD, hint_LD = self.condition_mask_L, self.noised_LD, self.hint_LD
        return self.replace(
            tokens_LD=self.tokens_LD.repeat(times, 1),
            position_L3=self.position_L3.repeat(times, 1),
            segments=self.segments.repeated(times),
            timestep_S=self.timestep_S.repeat(times),
            text=repeated_text,
            drop_text_S=drop_text_S,
            condition_mask_L=None if mask_L is None else mask_L.repeat(times),
            noised_LD=None if noised_LD is None else noised_LD.repeat(times, 1),
            hint_LD=None if hint_LD is None else hint_LD.repeat(times, 1),
            scalars={name: value_S.repeat(times) for name, value_S in self.scalars.items()},
            token_mask=None,
            token_shapes=self.token_shapes * times,
            layouts=self.layouts.repeated(times),
        )


class Backbone(Protocol):
    """A denoiser that the training task and the sampler can use: an `nn.Module` of this form."""

    config: dict[str, Any]
    """Keyword arguments of `build` that make the same model; plain JSON values. Without `attention_backend`, which changes
    with the machine."""
    blocks: nn.ModuleList
    """Its layers: the units of sharding, activation checkpointing and compilation."""
    layout_keys: tuple[LayoutKey, ...]
    """Layouts that its forward uses; built before a batch is moved."""
    unsupported: ClassVar[Mapping[str, str]]
    """What the design cannot do, and why: "token dropping", "conditioning frames", "sizes". One sentence each."""

    def __call__(self, inputs: PackedInputs) -> Tensor:
        """(L, token_width) float32: the prediction for every token, in the type of `DiffusionSettings.prediction`. That of
        conditioning tokens is undefined."""

    def flops(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], token_shapes: Sequence[Shape3] = ()
    ) -> float:
        """Forward and backward FLOPs of one call for samples of these lengths; recomputation is not counted.

        Args:
            token_shapes: as of `PackedInputs`, for those whose attention is within parts of a sample; empty: unknown, every
                sample is counted as one frame.
        """

    def activation_bytes(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], *, precision: str, checkpointed: bool
    ) -> int:
        """Bytes saved for the backward of one call for samples of these lengths.

        Args:
            precision: `fp32` or `bf16`.
            checkpointed: with activation checkpointing of its `blocks`.
        """
