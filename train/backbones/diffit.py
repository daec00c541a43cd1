"""DiffiT over packs: a transformer whose attention, not its features, is modulated by the noise level.

    diffit = Diffit(token_width=96, text_width=256, pooled_width=256, **SIZES["tiny"])
    prediction_LD = diffit(inputs)                         # PackedInputs

The condition (noise level and pooled text) is added to queries, keys and values (`TimeSelfAttention`); there are
no shifts, scales or gates.

Architecture after the latent model of "DiffiT: Diffusion Vision Transformers for Image Generation" (arXiv 2312.02139), with
text by cross-attention as in our DiT. Its text says depth 30; the published 561 M parameters are those of depth 28.

Shape suffixes: L tokens of a pack, S samples, M text tokens, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from packing.grid import Shape3
from recaption.errors import UsageError
from train.backbones.activation_memory import activation_bytes
from train.backbones.embedders import TextEmbedder, TimestepEmbedder, TokenEmbedder, check_heads
from train.backbones.flops import transformer_flops
from train.backbones.interface import PackedInputs
from train.layers.adaln import NORM_EPS
from train.layers.attention import packed_attention
from train.layers.embeddings import sincos_table
from train.layers.layouts import LayoutKey
from train.layers.packed_attention_layers import (
    TIME_IN,
    Attend,
    CrossAttention,
    TimeSelfAttention,
    compile_around_attention,
)
from train.layers.relative_bias import PackedPositions
from train.layers.rope import rotary_cos_sin
from train.layers.segments import Segments

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 6, "num_heads": 6},
    "XL": {"width": 1152, "depth": 28, "num_heads": 16},
}
"""XL as published (561 M parameters there, more here: cross-attention); tiny trains on a laptop."""
ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH = {"fp32": 92.4, "bf16": 52.4}
"""Of one block, as of `dit.ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH`."""


@dataclass(frozen=True, kw_only=True)
class DiffitSettings:
    """Settings of DiffiT alone."""

    time_in: str = "qkv"
    """Where the noise level acts: `qkv`, on queries, keys and values; `bias`, on the relative bias of positions alone, for
    comparison."""
    relative_bias: tuple[int, ...] = ()
    """Frames, rows and columns of the largest grid of tokens whose distances have attention biases of their own, (1, 16, 16)
    in the paper; farther ones share those at the rim. Empty: none, RoPE alone."""

    def check(self) -> None:
        """Raises UsageError where a setting is invalid."""
        if self.time_in not in TIME_IN:
            raise UsageError(f"unknown time_in {self.time_in!r}: choose one of {', '.join(TIME_IN)}")
        if self.time_in == "bias" and not self.relative_bias:
            raise UsageError("time_in 'bias' changes the relative bias: set relative_bias too, for example 1 16 16")


class Diffit(nn.Module):
    """Latent DiffiT: one prediction per token, of the type `DiffusionSettings.prediction`."""

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
        time_in: str = "qkv",
        relative_bias: Sequence[int] = (),
        position_table: Sequence[int] = (),
        cross_attention: bool = True,
    ) -> None:
        """
        Args:
            time_in, relative_bias: as of `DiffitSettings`.
            position_table: (rows, columns) of the published model, which has sine-cosine positions of this one grid in
                place of RoPE, and no QK-norm.
            cross_attention: False: text acts through the condition alone, as labels do in the published model.

        Raises:
            UsageError: as of `Dit` and `TimeSelfAttention`.
        """
        super().__init__()
        self.head_width = check_heads(width, num_heads)
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
            "time_in": time_in,
            "relative_bias": list(relative_bias),
            "position_table": list(position_table),
            "cross_attention": cross_attention,
        }
        self.layout_keys: tuple[LayoutKey, ...] = ()
        self.x_embedder = TokenEmbedder(
            token_width, width, absolute_positions=absolute_positions, hint_width=hint_width
        )
        self.t_embedder = TimestepEmbedder(width, scalars=scalars)
        self.text_embedder = TextEmbedder(text_width, pooled_width, width)
        table_LD = sincos_table(position_table, width) if position_table else None
        self.register_buffer("pos_embed_LD", table_LD)
        attend = functools.partial(packed_attention, backend=attention_backend)
        options = {"time_in": time_in, "relative_bias": relative_bias, "qk_norm": not position_table}
        self.blocks = nn.ModuleList(
            DiffitBlock(width, num_heads, mlp_ratio, attend, cross_attention=cross_attention, **options)
            for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False, eps=NORM_EPS)
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
        for block in self.blocks:
            block.init_weights()
        nn.init.zeros_(self.final_linear.weight)

    def forward(self, inputs: PackedInputs) -> Tensor:
        """(L, token_width) float32: the prediction for every token."""
        segments, position_L3 = inputs.segments, inputs.position_L3
        text_MD, text_segments, pooled_SD = self.text_embedder(inputs)
        condition_SD = self.t_embedder(inputs) + pooled_SD
        x_LD = self.x_embedder(inputs)
        if self.pos_embed_LD is not None:
            x_LD = x_LD + self.pos_embed_LD[position_L3[:, 1] * self.config["position_table"][1] + position_L3[:, 2]]
        rotary = None if self.pos_embed_LD is not None else rotary_cos_sin(position_L3, self.head_width)
        positions = PackedPositions(position_L3, segments) if self.config["relative_bias"] else None
        for block in self.blocks:
            x_LD = block(x_LD, rotary, segments, condition_SD, text_MD, text_segments, positions)
        return self.final_linear(F.silu(self.final_norm(x_LD))).float()

    def flops(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], token_shapes: Sequence[Shape3] = ()
    ) -> float:
        """As of `Dit.flops`."""
        text = num_text_tokens if self.config["cross_attention"] else None
        return len(self.blocks) * transformer_flops(num_tokens, text, width=self.config["width"])

    def activation_bytes(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], *, precision: str, checkpointed: bool
    ) -> int:
        return activation_bytes(
            num_tokens=sum(num_tokens),
            width=self.config["width"],
            depth=len(self.blocks),
            bytes_per_token_and_width=ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH[precision],
            checkpointed=checkpointed,
        )


class DiffitBlock(nn.Module):
    """Time-dependent self-attention and MLP, and cross-attention to the sample's text between them."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        attend: Attend,
        *,
        cross_attention: bool = True,
        **self_attention: Any,
    ) -> None:
        """
        Args:
            self_attention: options of `TimeSelfAttention`.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=NORM_EPS)
        self.attention = TimeSelfAttention(width, num_heads, attend, **self_attention)
        self.cross_norm = nn.LayerNorm(width) if cross_attention else None
        self.cross_attention = CrossAttention(width, num_heads, attend) if cross_attention else None
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=NORM_EPS)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def init_weights(self) -> None:
        """Zeros: text changes nothing at first, nor does the noise level where it acts on the bias."""
        for layer in (self.cross_attention and self.cross_attention.out, self.attention.time_gain):
            if layer is not None:
                nn.init.zeros_(layer.weight)

    def forward(
        self,
        x_LD: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        segments: Segments,
        condition_SD: Tensor,
        text_MD: Tensor,
        text_segments: Segments,
        positions: PackedPositions | None = None,
        attention_segments: Segments | None = None,
    ) -> Tensor:
        """Arguments as of `TimeSelfAttention`."""
        h_LD = self.norm1(x_LD)
        x_LD = x_LD + self.attention(h_LD, rotary, segments, condition_SD, positions, attention_segments)
        if self.cross_norm is not None and self.cross_attention is not None:
            x_LD = x_LD + self.cross_attention(self.cross_norm(x_LD), segments, text_MD, text_segments)
        return x_LD + self.mlp(self.norm2(x_LD))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the block so that packs of other lengths do not recompile it."""
        compile_around_attention(self, *args, **kwargs)
