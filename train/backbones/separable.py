"""Space-time separable transformer over packs: attention within frames, then along time at one place. Images skip time.

    model = Separable(token_width=96, text_width=256, pooled_width=256, **SIZES["tiny"])
    prediction_LD = model(inputs)                          # PackedInputs, with the layouts of `layout_keys`

A DiT whose attention is split: tokens attend to those of their own frame, and a second branch, with a modulation of its own,
mixes the tokens of one place over the frames, by attention or by a depth-wise convolution of width 3. The cost of attention
grows with frames x places^2 + places x frames^2 in place of (frames x places)^2. A sample of one frame never enters the
second branch: what is computed of an image depends on no temporal weight, and trains none.

Shape suffixes: L tokens of a pack, V those of its videos, S samples of a pack, M text tokens of a pack, D width.

The place of the base model of "Imagen Video" (arXiv 2210.02303), whose U-Net is space-time separable, as a transformer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from packing.grid import Shape3
from recaption.errors import UsageError
from train.backbones.activation_memory import activation_bytes
from train.backbones.dit import SIZES as DIT_SIZES
from train.backbones.dit import DitBlock
from train.backbones.embedders import TextEmbedder, TimestepEmbedder, TokenEmbedder, check_heads
from train.backbones.flops import FORWARD_AND_BACKWARD, tokens_in_frames_and_places
from train.backbones.interface import PackedInputs
from train.layers.adaln import gated_residual, modulated_layer_norm
from train.layers.attention import packed_attention
from train.layers.layouts import Layout, LayoutKey
from train.layers.packed_attention_layers import Attend, SelfAttention
from train.layers.packed_convolution import TimeConv, neighbour_index
from train.layers.rope import rotary_cos_sin
from train.layers.segments import Segments

SIZES = DIT_SIZES
"""Those of DiT; a block has 29 width^2 weights in place of 22 with attention along time, 25 with the convolution."""
TIME = ("attention", "conv")
ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH = {
    "attention": {"fp32": 136.6, "bf16": 70.8},
    "conv": {"fp32": 120.0, "bf16": 62.6},
}
"""Of one block over videos, as of `dit.ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH`."""


@dataclass(frozen=True, kw_only=True)
class SeparableSettings:
    """Settings of the space-time separable transformer alone."""

    time: str = "attention"
    """How the frames of one place are mixed: `attention`, or `conv`, a depth-wise convolution of width 3."""

    def check(self) -> None:
        """Raises UsageError where a setting is invalid."""
        if self.time not in TIME:
            raise UsageError(f"unknown time = {self.time!r} of backbone separable: choose {' or '.join(TIME)}")


class Separable(nn.Module):
    """Space-time separable DiT: one prediction per token, of the type `DiffusionSettings.prediction`."""

    unsupported: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        *,
        token_width: int,
        text_width: int,
        pooled_width: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        attention_backend: str = "auto",
        absolute_positions: bool = False,
        hint_width: int = 0,
        scalars: Sequence[str] = (),
        time: str = "attention",
    ) -> None:
        """
        Args:
            time: as of `SeparableSettings`. All else is as of `Dit`.

        Raises:
            UsageError: an unknown `time`, or as of `Dit`.
        """
        super().__init__()
        self.head_width = check_heads(width, num_heads)
        SeparableSettings(time=time).check()
        self.config: dict[str, Any] = {
            "token_width": token_width,
            "text_width": text_width,
            "pooled_width": pooled_width,
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "absolute_positions": absolute_positions,
            "hint_width": hint_width,
            "scalars": list(scalars),
            "time": time,
        }
        self.layout_keys: tuple[LayoutKey, ...] = (("frames",), ("places", "videos"))
        self.x_embedder = TokenEmbedder(
            token_width, width, absolute_positions=absolute_positions, hint_width=hint_width
        )
        self.t_embedder = TimestepEmbedder(width, scalars=scalars)
        self.text_embedder = TextEmbedder(text_width, pooled_width, width)
        attend = functools.partial(packed_attention, backend=attention_backend)
        self.blocks = nn.ModuleList(SeparableBlock(width, num_heads, mlp_ratio, attend, time) for _ in range(depth))
        self.final_adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.final_linear = nn.Linear(width, token_width)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.x_embedder.init_weights()
        self.t_embedder.init_weights()
        zero = [self.final_adaLN_modulation[1], self.final_linear]
        for block in self.blocks:
            zero += [block.adaLN_modulation[1], block.cross_attention.out, block.temporal.adaLN_modulation[1]]
        for layer in zero:
            nn.init.zeros_(layer.weight)

    def forward(self, inputs: PackedInputs) -> Tensor:
        """(L, token_width) float32: the prediction for every token."""
        frames, places = (inputs.layouts[key] for key in self.layout_keys)
        text_MD, text_segments, pooled_SD = self.text_embedder(inputs)
        condition_SD = self.t_embedder(inputs) + pooled_SD
        x_LD, segments = self.x_embedder(inputs), inputs.segments
        rotary = rotary_cos_sin(frames.gather(inputs.position_L3), self.head_width)
        time_V3 = places.gather(inputs.position_L3)
        along_time = (
            rotary_cos_sin(time_V3, self.head_width)
            if self.config["time"] == "attention"
            else tuple(neighbour_index(places.samples, time_V3, (step, 0, 0)) for step in (-1, 1))
        )
        for block in self.blocks:
            x_LD = block(x_LD, rotary, segments, condition_SD, text_MD, text_segments, frames, places, along_time)
        shift_SD, scale_SD = self.final_adaLN_modulation(condition_SD).chunk(2, dim=-1)
        return self.final_linear(modulated_layer_norm(x_LD, shift_SD, scale_SD, segments)).float()

    def flops(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], token_shapes: Sequence[Shape3] = ()
    ) -> float:
        """Forward and backward of the blocks; embeddings, modulation and the convolution are not counted."""
        width, has_attention = self.config["width"], self.config["time"] == "attention"
        tokens, text = (np.asarray(counts, dtype=np.float64) for counts in (num_tokens, num_text_tokens))
        per_frame, per_place = tokens_in_frames_and_places(num_tokens, token_shapes)
        is_video = np.asarray([shape[0] > 1 for shape in token_shapes] or [False] * len(tokens)) & has_attention
        keys = per_frame + text + np.where(is_video, per_place, 0)
        # 24: within frames and MLP; 4 of q and out, 4 of k and v in cross-attention; 8 of attention along time
        linear = (28.0 + 8.0 * is_video) * tokens + 4.0 * text
        forward = width * width * linear + 4.0 * width * tokens * keys
        return FORWARD_AND_BACKWARD * len(self.blocks) * float(forward.sum())

    def activation_bytes(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], *, precision: str, checkpointed: bool
    ) -> int:
        """Of videos; an image takes less, for its tokens skip the temporal branch."""
        return activation_bytes(
            num_tokens=sum(num_tokens),
            width=self.config["width"],
            depth=len(self.blocks),
            bytes_per_token_and_width=ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH[self.config["time"]][precision],
            checkpointed=checkpointed,
        )


class SeparableBlock(DitBlock):
    """Attention within frames, the temporal branch, cross-attention to the sample's text, and MLP."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, attend: Attend, time: str) -> None:
        super().__init__(width, num_heads, mlp_ratio, attend)
        self.temporal = TemporalBranch(width, num_heads, attend, time)

    def forward(  # type: ignore[override]
        self,
        x_LD: Tensor,
        rotary: tuple[Tensor, Tensor],
        segments: Segments,
        condition_SD: Tensor,
        text_MD: Tensor,
        text_segments: Segments,
        frames: Layout,
        places: Layout,
        along_time: tuple[Tensor, Tensor],
    ) -> Tensor:
        """
        Args:
            rotary: of the tokens in the order of `frames`.
            frames, places: the layouts ("frames",) and ("places", "videos") of the pack.
            along_time: what the temporal branch needs of the tokens in the order of `places`: `rotary_cos_sin`, or the
                neighbours before and after each.
        """
        assert self.cross_norm is not None
        assert self.cross_attention is not None
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition_SD).chunk(6, dim=-1)
        h_LD = frames.gather(modulated_layer_norm(x_LD, shift1, scale1, segments))
        h_LD = frames.scatter(self.attention(h_LD, rotary, frames.segments))
        x_LD = gated_residual(x_LD, h_LD, gate1, segments)
        x_LD = places.scatter(self.temporal(places.gather(x_LD), condition_SD, places, along_time), x_LD)
        x_LD = x_LD + self.cross_attention(self.cross_norm(x_LD), segments, text_MD, text_segments)
        h_LD = self.mlp(modulated_layer_norm(x_LD, shift2, scale2, segments))
        return gated_residual(x_LD, h_LD, gate2, segments)


class TemporalBranch(nn.Module):
    """x + gate * mix(modulated norm of x), over the frames at one place; the identity at first."""

    def __init__(self, width: int, num_heads: int, attend: Attend, time: str) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.mix = SelfAttention(width, num_heads, attend) if time == "attention" else TimeConv(width)

    def forward(self, x_VD: Tensor, condition_SD: Tensor, places: Layout, along_time: tuple[Tensor, Tensor]) -> Tensor:
        shift_SD, scale_SD, gate_SD = self.adaLN_modulation(condition_SD).chunk(3, dim=-1)
        h_VD = modulated_layer_norm(x_VD, shift_SD, scale_SD, places.samples)
        if isinstance(self.mix, TimeConv):
            h_VD = self.mix(h_VD, *along_time)
        else:
            h_VD = self.mix(h_VD, along_time, places.segments)
        return gated_residual(x_VD, h_VD, gate_SD, places.samples)
