"""U-ViT over packs: noise level, text and latents are all tokens, with long skips between mirrored blocks.

    uvit = Uvit(token_width=96, text_width=256, pooled_width=256, **SIZES["tiny"])
    prediction_LD = uvit(inputs)                           # PackedInputs

The tokens of a sample are its noise level, registers, text and latents, in this order; the number of text tokens differs
from sample to sample. There is no modulation and no cross-attention.

Shape suffixes: L tokens of a pack, N the same with the extra ones, S samples, M text tokens, R registers, C width of the
text encoder, D width.

Architecture after "All are Worth Words: A ViT Backbone for Diffusion Models" (arXiv 2209.12152); positions are rotary in
place of its table, which knows one grid only, and queries and keys are normed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from packing.grid import Shape3, sample_flops
from recaption.errors import UsageError
from train.backbones.activation_memory import activation_bytes
from train.backbones.embedders import TimestepEmbedder, TokenEmbedder, check_heads
from train.backbones.flops import FORWARD_AND_BACKWARD
from train.backbones.interface import PackedInputs
from train.layers.attention import packed_attention
from train.layers.embeddings import POSITION_FREQUENCIES, sincos_pos_embed
from train.layers.layouts import LayoutKey
from train.layers.packed_attention_layers import Attend, SelfAttention, compile_around_attention
from train.layers.packed_convolution import FrameConv
from train.layers.rope import rotary_cos_sin
from train.layers.segments import Segments
from train.layers.text_condition import NULL_TOKENS, TextSelection

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 6, "num_heads": 6},
    "S": {"width": 512, "depth": 12, "num_heads": 8},
    "S-deep": {"width": 512, "depth": 16, "num_heads": 8},
    "M": {"width": 768, "depth": 16, "num_heads": 12},
    "L": {"width": 1024, "depth": 20, "num_heads": 16},
    "H": {"width": 1152, "depth": 28, "num_heads": 16},
}
"""S to H as published: 44, 58, 131, 287 and 501 M parameters; tiny trains on a laptop. One block more than `depth`."""
ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH = {"fp32": 72.3, "bf16": 40.3}
SKIP_BYTES_PER_TOKEN_AND_WIDTH = {"fp32": 8.0, "bf16": 4.0}
"""Of one block, and what a skip into it adds, as of `dit.ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH`."""


@dataclass(frozen=True, kw_only=True)
class UvitSettings:
    """Settings of U-ViT alone."""

    skips: bool = True
    """Long skips from each block of the first half to its mirror image in the second."""
    conv: bool = False
    """A last 3 x 3 convolution over the latents of each frame, as in all published sizes but H."""

    def check(self) -> None:
        """Any values are valid."""


class Uvit(nn.Module):
    """U-ViT: one prediction per token, of the type `DiffusionSettings.prediction`."""

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
        num_registers: int = 0,
        absolute_positions: bool = False,
        hint_width: int = 0,
        scalars: Sequence[str] = (),
        skips: bool = True,
        conv: bool = False,
        patch: Sequence[int] = (1, 1, 1),
        position_table: Sequence[int] = (),
    ) -> None:
        """
        Args:
            token_width, text_width, attention_backend, num_registers, absolute_positions, hint_width, scalars: as of `Dit`.
            pooled_width: not used: all of the text comes as tokens.
            depth: of both halves together; a block in the middle is added.
            skips, conv: as of `UvitSettings`.
            patch: latent (frames, rows, columns) of a token, for `conv`.
            position_table: (text tokens, rows, columns) of a published model, which has a learned position for each of them
                and takes images of this size only; without RoPE and QK-norm, and with 0 text tokens without text.

        Raises:
            UsageError: an odd `depth`, or as of `Dit`.
        """
        super().__init__()
        self.head_width = check_heads(width, num_heads)
        _check_depth(depth, num_registers)
        self.config: dict[str, Any] = {
            "token_width": token_width,
            "text_width": text_width,
            "pooled_width": pooled_width,
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "num_registers": num_registers,
            "absolute_positions": absolute_positions,
            "hint_width": hint_width,
            "scalars": list(scalars),
            "skips": skips,
            "conv": conv,
            "patch": list(patch),
            "position_table": list(position_table),
        }
        self.layout_keys: tuple[LayoutKey, ...] = ()
        self.x_embedder = TokenEmbedder(
            token_width, width, absolute_positions=absolute_positions, hint_width=hint_width
        )
        self.t_embedder = TimestepEmbedder(width, scalars=scalars, embedding_width=width, has_mlp=False)
        has_text = not position_table or position_table[0] > 0
        self.text_embedder = TextTokens(text_width, width, has_norm=not position_table) if has_text else None
        self.register_embedding_RD = nn.Parameter(torch.randn(num_registers, width)) if num_registers else None
        self.pos_embedder = PositionTable(position_table, width) if position_table else KindEmbedding(width)
        attend = functools.partial(packed_attention, backend=attention_backend)
        make_block = functools.partial(UvitBlock, width, num_heads, mlp_ratio, attend, qk_norm=not position_table)
        self.blocks = nn.ModuleList(make_block(has_skip=skips and n > depth // 2) for n in range(depth + 1))
        self.final_norm = nn.LayerNorm(width)
        self.final_linear = nn.Linear(width, token_width)
        self.final_conv = FrameConv(token_width // math.prod(patch), (patch[0], patch[1], patch[2])) if conv else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)  # the paper cuts it off at 2, 100 deviations away
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.x_embedder.init_weights()
        self.t_embedder.init_weights()

    def forward(self, inputs: PackedInputs) -> Tensor:
        """(L, token_width) float32: the prediction for every token.

        Raises:
            UsageError: with a table of positions, samples of another size.
        """
        x_ND, position_N3, segments, token_index = self._with_extra_tokens(inputs)
        rotary = None if self.config["position_table"] else rotary_cos_sin(position_N3, self.head_width)
        middle = len(self.blocks) // 2
        skips: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            has_skip = self.config["skips"] and number > middle
            x_ND = block(x_ND, rotary, segments, skips.pop()) if has_skip else block(x_ND, rotary, segments)
            if number < middle:
                skips.append(x_ND)
        out_LD = self.final_linear(self.final_norm(x_ND[token_index]))
        if self.final_conv is not None:
            out_LD = self.final_conv(out_LD, inputs.segments, inputs.position_L3)
        return out_LD.float()

    def _with_extra_tokens(self, inputs: PackedInputs) -> tuple[Tensor, Tensor, Segments, Tensor]:
        """x_ND, position_N3, segments, and the index of the tokens of the pack in them; extra tokens are at (0, 0, 0)."""
        self.pos_embedder.check(inputs)
        segments, token_index = (
            inputs.segments,
            torch.arange(inputs.segments.num_tokens, device=inputs.tokens_LD.device),
        )
        x_LD = self.x_embedder(inputs)
        parts = []
        if self.text_embedder is not None:
            text_MD, text_segments = self.text_embedder(inputs)
            segments, text_index, token_index = text_segments.joined(segments)
            parts.append((text_index, text_MD + self.pos_embedder.of_text(index_in_sample(text_segments))))
        parts.append((token_index, x_LD + self.pos_embedder.of_tokens(inputs.position_L3)))

        first_SD = (self.t_embedder(inputs) + self.pos_embedder.of_time())[:, None]
        if self.register_embedding_RD is not None:
            registers = self.register_embedding_RD.expand(len(segments), -1, -1)
            first_SD = torch.cat([first_SD, registers], dim=1)
        segments, old_index, first_index = segments.with_prefix_tokens(first_SD.shape[1])
        x_ND = x_LD.new_empty(segments.num_tokens, x_LD.shape[1])
        x_ND = x_ND.index_copy(0, first_index, first_SD.flatten(0, 1).float())
        for index, part in parts:
            x_ND = x_ND.index_copy(0, old_index[index], part.float())
        token_index = old_index[token_index]
        position_N3 = inputs.position_L3.new_zeros(segments.num_tokens, 3)
        return x_ND, position_N3.index_copy(0, token_index, inputs.position_L3), segments, token_index

    def flops(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], token_shapes: Sequence[Shape3] = ()
    ) -> float:
        """Forward and backward of the blocks, the extra tokens included; embeddings are not counted."""
        lengths, width = self._lengths(num_tokens, num_text_tokens), self.config["width"]
        blocks = len(self.blocks) * sample_flops(np.asarray(lengths), width=width).sum()
        skips = self._num_skips() * 4.0 * width * width * sum(lengths)
        return float(FORWARD_AND_BACKWARD * (blocks + skips))

    def activation_bytes(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], *, precision: str, checkpointed: bool
    ) -> int:
        sizes = sum(self._lengths(num_tokens, num_text_tokens)), self.config["width"]
        blocks = activation_bytes(
            num_tokens=sizes[0],
            width=sizes[1],
            depth=len(self.blocks),
            bytes_per_token_and_width=ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH[precision],
            checkpointed=checkpointed,
        )
        num_skips = min(1, self._num_skips()) if checkpointed else self._num_skips()
        return blocks + int(num_skips * SKIP_BYTES_PER_TOKEN_AND_WIDTH[precision] * sizes[0] * sizes[1])

    def _lengths(self, num_tokens: Sequence[int], num_text_tokens: Sequence[int]) -> list[int]:
        """Tokens of each sample in the blocks. A sample without text has the null caption."""
        text = [max(length, NULL_TOKENS) if self.text_embedder is not None else 0 for length in num_text_tokens]
        return [1 + self.config["num_registers"] + of_text + tokens for of_text, tokens in zip(text, num_tokens)]

    def _num_skips(self) -> int:
        return len(self.blocks) // 2 if self.config["skips"] else 0


def _check_depth(depth: int, num_registers: int) -> None:
    if depth < 2 or depth % 2:
        raise UsageError(f"U-ViT has two halves of equal depth: {depth = } must be even and at least 2")
    if num_registers < 0:
        raise UsageError(f"{num_registers = } is negative")


class UvitBlock(nn.Module):
    """Self-attention and MLP; in the second half, first a linear map of the stream and the skip, joined."""

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float, attend: Attend, *, qk_norm: bool, has_skip: bool
    ) -> None:
        super().__init__()
        self.skip_linear = nn.Linear(2 * width, width) if has_skip else None
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads, attend, qkv_bias=False, qk_norm=qk_norm)
        self.mlp_norm = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(
        self,
        x_LD: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        segments: Segments,
        skip_LD: Tensor | None = None,
    ) -> Tensor:
        if self.skip_linear is not None:
            assert skip_LD is not None
            x_LD = self.skip_linear(torch.cat([x_LD, skip_LD], dim=-1)).to(x_LD.dtype)
        x_LD = x_LD + self.attention(self.attention_norm(x_LD), rotary, segments)
        return x_LD + self.mlp(self.mlp_norm(x_LD))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the block so that packs of other lengths do not recompile it."""
        compile_around_attention(self, *args, **kwargs)


class TextTokens(nn.Module):
    """Text tokens to the width of the model, with a learned null caption; pooled text is not used."""

    def __init__(self, text_width: int, width: int, *, has_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_width) if has_norm else nn.Identity()
        self.proj = nn.Linear(text_width, width)
        self.null_text_embedding_MC = nn.Parameter(torch.randn(NULL_TOKENS, text_width))

    def forward(self, inputs: PackedInputs) -> tuple[Tensor, Segments]:
        """text_MD and its segments, with the null caption for samples whose text is dropped or empty."""
        selection = TextSelection.of(inputs.drop_text_S, inputs.text.segments)
        null_MC = self.null_text_embedding_MC
        text_MC = torch.cat([inputs.text.text_MC.to(null_MC.dtype), null_MC])[selection.index_M]
        return self.proj(self.norm(text_MC)), selection.segments


def index_in_sample(segments: Segments) -> Tensor:
    """(M) int64: number of each token within its sample, from 0."""
    start_M = segments.cu_seqlens[:-1][segments.segment_ids_L]
    return torch.arange(segments.num_tokens, device=start_M.device) - start_M


class KindEmbedding(nn.Module):
    """Learned vectors for the kinds of extra tokens, and a sine-cosine embedding of the order of the text; any size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kind_embedding_2D = nn.Parameter(0.02 * torch.randn(2, width))
        self.text_index_embedder = nn.Linear(2 * POSITION_FREQUENCIES, width, bias=False)

    def check(self, inputs: PackedInputs) -> None:
        """Takes any sizes."""

    def of_time(self) -> Tensor:
        return self.kind_embedding_2D[0]

    def of_text(self, index_M: Tensor) -> Tensor:
        return self.kind_embedding_2D[1] + self.text_index_embedder(sincos_pos_embed(index_M[:, None]))

    def of_tokens(self, position_L3: Tensor) -> Tensor:
        """Nothing: their positions are rotary."""
        return self.kind_embedding_2D.new_zeros(1, 1)


class PositionTable(nn.Module):
    """A learned vector for every token of one size of images, as published."""

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        """
        Args:
            sizes: (text tokens, rows, columns).
        """
        super().__init__()
        self.num_text_tokens, self.rows, self.columns = sizes
        self.table = nn.Parameter(torch.empty(1 + self.num_text_tokens + self.rows * self.columns, width))
        nn.init.normal_(self.table, std=0.02)

    def check(self, inputs: PackedInputs) -> None:
        """Raises UsageError where a sample has another size, or more text."""
        size = (1, self.rows, self.columns)
        others = [shape for shape in inputs.token_shapes if shape != size]
        if others or (self.num_text_tokens and inputs.text.segments.max_length > self.num_text_tokens):
            raise UsageError(
                f"this U-ViT has a table of positions for {size} tokens and {self.num_text_tokens} text tokens, not for "
                f"{others[0] if others else 'longer texts'}: leave position_table empty, for rotary positions of any size"
            )

    def of_time(self) -> Tensor:
        return self.table[0]

    def of_text(self, index_M: Tensor) -> Tensor:
        return self.table[1 + index_M]

    def of_tokens(self, position_L3: Tensor) -> Tensor:
        place_L = position_L3[:, 1] * self.columns + position_L3[:, 2]
        return self.table[1 + self.num_text_tokens + place_L]
