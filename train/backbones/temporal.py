"""Video LDM: a frozen image transformer with temporal layers between its blocks.

    model = TemporalDit(token_width=96, text_width=256, pooled_width=256, layers=("attention", "conv"), **SIZES["tiny"])
    load_weights(model.base, image_weights, "images"); model.base.requires_grad_(False)
    prediction_LD = model(inputs)                          # at first that of the image model for every frame, to the bit

The image model gets every frame as an image of its own, at frame position 0. After each of its blocks a temporal layer
mixes the tokens of one place over the frames: z + (1 - alpha) r(z), alpha = sigmoid(m) learned per layer. The last layer of
r starts at zero: bit-equal to the image model at first, with a gradient from the first step on, and alpha = 1 removes the
layer. A clip of one frame has nothing to mix: it goes the way of the image model.

Conditioning frames enter through the temporal layers alone, as cat[m z_0, m] with m their mask; the image model sees them
noised like all others. After "Align your Latents" (arXiv 2304.08818), whose layers are alpha z + (1 - alpha) z': the same
family.

Shape suffixes: L tokens of a pack, S samples of a pack, F frames of all samples, M text tokens, D width, C context width.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packing.grid import Shape3, layer_flops_coefficients
from recaption.errors import UsageError
from train.backbones.activation_memory import activation_bytes
from train.backbones.dit import Dit
from train.backbones.embedders import TextEmbedder, TimestepEmbedder, check_heads
from train.backbones.flops import FORWARD_AND_BACKWARD
from train.backbones.interface import PackedInputs
from train.layers.adaln import modulated_layer_norm
from train.layers.attention import packed_attention
from train.layers.layouts import Layout, LayoutKey
from train.layers.packed_attention_layers import Attend, CrossAttention, SelfAttention, compile_around_attention
from train.layers.rope import rotary_cos_sin
from train.layers.segments import Segments
from train.layers.text_condition import TextSelection
from train.text.encoder import EncodedText

LAYERS = ("attention", "conv")
ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH = {"fp32": 73.7, "bf16": 41.1}
"""Of one temporal layer with both kinds, saved for backward."""
SAVED_OVER_FROZEN = {"fp32": 26.0, "bf16": 17.0}
"""The same over a frozen image model, less what its products need not save where their weights have no gradient."""


@dataclass(frozen=True, kw_only=True)
class TemporalSettings:
    """Temporal layers over a frozen image model: the backbones `temporal` and `temporal-unet`."""

    layers: tuple[str, ...] = LAYERS
    """`attention` along time, `conv` (of width 3 along time), or both."""
    freeze_base: bool = True
    """Train and save the temporal layers alone, over the frozen image model of `init_from`. Off: train all weights, and
    save them."""

    def check(self) -> None:
        """Raises UsageError where a setting is invalid."""
        check_layers(self.layers)

    @property
    def of_model(self) -> dict[str, Any]:
        """Those that `build` takes."""
        return {"layers": self.layers}


def check_layers(layers: Sequence[str]) -> None:
    """Raises UsageError unless these are different kinds of temporal layers, at least one."""
    if not layers or set(layers) - set(LAYERS) or len(set(layers)) < len(layers):
        raise UsageError(f"temporal layers {' '.join(layers) or 'none'}: choose {' or '.join(LAYERS)}, or both")


class TemporalDit(nn.Module):
    """A `Dit` that sees single frames, and a `TemporalMix` after each of its blocks."""

    unsupported: ClassVar[Mapping[str, str]] = {}
    base_prefix: ClassVar[str] = "base."
    """Of the names of the image model's weights."""

    def __init__(
        self,
        *,
        token_width: int,
        text_width: int,
        pooled_width: int,
        width: int,
        depth: int,
        num_heads: int,
        layers: Sequence[str] = LAYERS,
        mlp_ratio: float = 4.0,
        attention_backend: str = "auto",
        num_registers: int = 0,
        absolute_positions: bool = False,
        hint_width: int = 0,
        scalars: Sequence[str] = (),
    ) -> None:
        """
        Args:
            layers: of `TemporalSettings`. All else is as of `Dit`, and of the image model.

        Raises:
            UsageError: unknown layers, or as of `Dit`.
        """
        super().__init__()
        check_layers(layers)
        self.base = Dit(
            token_width=token_width,
            text_width=text_width,
            pooled_width=pooled_width,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            attention_backend=attention_backend,
            num_registers=num_registers,
            absolute_positions=absolute_positions,
            hint_width=hint_width,
            scalars=scalars,
        )
        self.config: dict[str, Any] = {**self.base.config, "layers": list(layers)}
        self.layout_keys: tuple[LayoutKey, ...] = (("frames",), ("places",))
        self.temporal_t_embedder = TimestepEmbedder(width, scalars=scalars)
        self.temporal_text_embedder = TextEmbedder(text_width, pooled_width, width)
        attend = functools.partial(packed_attention, backend=attention_backend)
        self.temporal = nn.ModuleList(
            TemporalMix(width, num_heads, attend, layers=layers, context_width=token_width + 1) for _ in range(depth)
        )
        self._initialise()

    def _initialise(self) -> None:
        for part in (self.temporal_t_embedder, self.temporal_text_embedder, self.temporal):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        self.temporal_t_embedder.init_weights()
        for mix in self.temporal:
            mix.init_weights()

    @staticmethod
    def base_config(config: Mapping[str, Any]) -> dict[str, Any]:
        """The config of the image model's checkpoint ("backbone"), of that of this one's."""
        return {name: value for name, value in config.items() if name != "layers"} | {"name": "dit"}

    @property
    def blocks(self) -> nn.ModuleList:
        """Of the image model, then the temporal layers: units of sharding, activation checkpointing and compilation."""
        return nn.ModuleList([*self.base.blocks, *self.temporal])

    def forward(self, inputs: PackedInputs) -> Tensor:
        """(L, token_width) float32: the prediction for every token."""
        frames, places = (inputs.layouts[key] for key in self.layout_keys)
        text_MD, text_segments, pooled_SD = self.temporal_text_embedder(inputs)
        condition_SD = self.temporal_t_embedder(inputs) + pooled_SD
        context_LC, along_time = context_of(inputs), AlongTime.of(inputs, places, self.base.head_width)

        def mixed(number: int, x_LD: Tensor) -> Tensor:
            x_LD = self.temporal[number](
                frames.scatter(x_LD), condition_SD, context_LC, text_MD, *along_time.tensors, inputs.segments,
                text_segments, places,
            )  # fmt: skip
            return frames.gather(x_LD)

        return frames.scatter(self.base(by_frame(inputs, frames), after_block=mixed))

    def flops(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], token_shapes: Sequence[Shape3] = ()
    ) -> float:
        """Forward and backward; attention is within frames and along time at one place."""
        width, layers = self.config["width"], self.config["layers"]
        linear, square = layer_flops_coefficients(width)
        shapes = np.asarray(token_shapes or [(1, 1, length) for length in num_tokens], dtype=np.float64)
        frames, places = shapes[:, 0], shapes[:, 1] * shapes[:, 2]
        tokens, text = (np.asarray(counts, dtype=np.float64) for counts in (num_tokens, num_text_tokens))
        # out, then of attention q, k, v and the projection
        matrices = 3 + 4 * ("attention" in layers) + 3 * ("conv" in layers)
        per_token = linear + (4 + 2 * matrices) * width**2  # 4: cross-attention of the image model
        within = square * (frames * places**2 + ("attention" in layers) * places * frames**2 + 2 * tokens * text)
        forward = per_token * tokens + 4 * width**2 * text * (frames + 1) + within  # the image model: once a frame
        return float(FORWARD_AND_BACKWARD * len(self.temporal) * forward.sum())

    def activation_bytes(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], *, precision: str, checkpointed: bool
    ) -> int:
        is_frozen = not any(parameter.requires_grad for parameter in self.base.parameters())
        per_token = SAVED_OVER_FROZEN if is_frozen else ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH
        of_base = self.base.activation_bytes(
            num_tokens, num_text_tokens, precision=precision, checkpointed=checkpointed
        )
        return of_base + activation_bytes(
            num_tokens=sum(num_tokens),
            width=self.config["width"],
            depth=len(self.temporal),
            bytes_per_token_and_width=per_token[precision],
            checkpointed=checkpointed,
        )


class TemporalMix(nn.Module):
    """z + (1 - alpha) r(z), r mixing tokens of one place over the frames (attention, convolution, or both), and the text."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        attend: Attend,
        *,
        layers: Sequence[str],
        context_width: int,
        condition_width: int = 0,
    ) -> None:
        """
        Args:
            condition_width: of noise level and text, where it is not `width`.
        """
        super().__init__()
        self.head_width = check_heads(width, num_heads)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(condition_width or width, 2 * width))
        self.text_proj = nn.Linear(condition_width, width) if condition_width else None
        self.context_embedder = nn.Linear(context_width, width, bias=False)
        self.conv = TemporalConv(width) if "conv" in layers else None
        self.attention = SelfAttention(width, num_heads, attend) if "attention" in layers else None
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, num_heads, attend)
        self.out = nn.Linear(width, width)
        self.mix_factor = nn.Parameter(torch.zeros(1))
        """m: alpha = sigmoid(m) is the share of the image model."""

    def init_weights(self) -> None:
        """Zeros: the layer changes nothing, and conditioning frames nothing in it."""
        for layer in (self.out, self.context_embedder):
            nn.init.zeros_(layer.weight)

    def forward(
        self,
        x_LD: Tensor,
        condition_SD: Tensor,
        context_LC: Tensor,
        text_MD: Tensor,
        cos_LF: Tensor,
        sin_LF: Tensor,
        has_previous_L1: Tensor,
        is_alone_L1: Tensor,
        segments: Segments,
        text_segments: Segments,
        places: Layout,
    ) -> Tensor:
        """
        Args:
            cos_LF, sin_LF, has_previous_L1, is_alone_L1: of `AlongTime`.
            places: the layout ("places",) of the pack.
        """
        shift_SD, scale_SD = self.adaLN_modulation(condition_SD).chunk(2, dim=-1)
        h_LD = modulated_layer_norm(x_LD, shift_SD, scale_SD, segments) + self.context_embedder(context_LC)
        if self.conv is not None:
            h_LD = h_LD + places.scatter(self.conv(places.gather(h_LD), has_previous_L1))
        if self.attention is not None:
            h_LD = h_LD + places.scatter(self.attention(places.gather(h_LD), (cos_LF, sin_LF), places.segments))
        text_MD = text_MD if self.text_proj is None else self.text_proj(text_MD)
        h_LD = h_LD + self.cross_attention(self.cross_norm(h_LD), segments, text_MD, text_segments)
        residual_LD = (1 - torch.sigmoid(self.mix_factor)) * self.out(F.gelu(h_LD, approximate="tanh")).float()
        return torch.where(is_alone_L1, x_LD, x_LD + residual_LD)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the layer so that packs of other lengths do not recompile it."""
        compile_around_attention(self, *args, **kwargs)


class TemporalConv(nn.Module):
    """Convolution of width 3 over the frames of one place; a frame that is missing counts as zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.taps = nn.Linear(width, 3 * width)

    def forward(self, x_LD: Tensor, has_previous_L1: Tensor) -> Tensor:
        """
        Args:
            x_LD, has_previous_L1: in the order of the layout ("places",).
        """
        from_previous_LD, from_own_LD, from_next_LD = self.taps(F.silu(x_LD)).chunk(3, dim=-1)
        from_previous_LD = F.pad(from_previous_LD[:-1], (0, 0, 1, 0)) * has_previous_L1
        from_next_LD = F.pad((from_next_LD * has_previous_L1)[1:], (0, 0, 0, 1))
        return from_previous_LD + from_own_LD + from_next_LD


@dataclass(frozen=True)
class AlongTime:
    """Where the tokens of a pack are in time, in the order of the layout ("places",)."""

    cos_LF: Tensor
    sin_LF: Tensor
    """Rotary positions of the frames; rows and columns are equal within a place."""
    has_previous_L1: Tensor
    """Whether the token before is that of the frame before, at the same place."""
    is_alone_L1: Tensor
    """In the order of the pack: whether there is no other frame at the token's place, as in an image."""

    @classmethod
    def of(cls, inputs: PackedInputs, places: Layout, head_width: int) -> AlongTime:
        frame_L = places.gather(inputs.position_L3[:, 0])
        position_L3 = F.pad(frame_L[:, None], (0, 2))
        place_L = places.segments.segment_ids_L
        follows_L = (place_L[1:] == place_L[:-1]) & (frame_L[1:] == frame_L[:-1] + 1)
        is_alone_L = (torch.diff(places.segments.cu_seqlens) == 1)[place_L]
        cos_LF, sin_LF = rotary_cos_sin(position_L3, head_width)
        return cls(cos_LF, sin_LF, F.pad(follows_L, (1, 0))[:, None], places.scatter(is_alone_L)[:, None])

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.cos_LF, self.sin_LF, self.has_previous_L1, self.is_alone_L1


def context_of(inputs: PackedInputs) -> Tensor:
    """(L, token_width + 1): cat[m z_0, m], the clean tokens of the conditioning frames and their mask; zeros elsewhere."""
    mask_L, tokens_LD = inputs.condition_mask_L, inputs.tokens_LD
    if mask_L is None:
        return tokens_LD.new_zeros(len(tokens_LD), tokens_LD.shape[1] + 1)
    mask_L1 = mask_L[:, None].to(tokens_LD.dtype)
    return torch.cat([tokens_LD * mask_L1, mask_L1], dim=1)


def by_frame(inputs: PackedInputs, frames: Layout) -> PackedInputs:
    """Every frame as a sample of its own at frame position 0, noised everywhere, with the noise level and text of its clip.

    Nothing is copied to the device or read back.

    Args:
        frames: the layout ("frames",) of the pack; the result is in its order.
    """
    samples = _sample_of_each(frames.segments.lengths, inputs.segments.lengths)
    first_F = frames.segments.cu_seqlens[:-1].long()
    sample_F = frames.gather(inputs.segments.segment_ids_L)[first_F]
    text = TextSelection.of(inputs.drop_text_S, inputs.text.segments)
    text_segments, index_M = text.segments.selected(samples, sample_F)
    return PackedInputs(
        tokens_LD=frames.gather(inputs.all_noised_LD),
        position_L3=F.pad(frames.gather(inputs.position_L3)[:, 1:], (1, 0)),
        segments=frames.segments,
        timestep_S=inputs.timestep_S[sample_F],
        text=EncodedText(inputs.text.text_MC, inputs.text.segments, inputs.text.pooled_SC),
        drop_text_S=TextSelection(text.index_M[index_M], text_segments, text.pooled_index_S[sample_F]),
        hint_LD=None if inputs.hint_LD is None else frames.gather(inputs.hint_LD),
        scalars={name: value_S[sample_F] for name, value_S in inputs.scalars.items()},
    )


def _sample_of_each(frame_lengths: Sequence[int], sample_lengths: Sequence[int]) -> list[int]:
    """The sample that each frame belongs to, from the numbers of their tokens; both in the order of the pack."""
    ends = list(itertools.accumulate(sample_lengths))
    samples, sample = [], 0
    for end in itertools.accumulate(frame_lengths):
        while ends[sample] < end:
            sample += 1
        samples.append(sample)
    return samples
