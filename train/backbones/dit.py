"""DiT over packs: adaLN-Zero with a timestep per sample, 3-D RoPE, text by cross-attention.

    dit = Dit(token_width=96, text_width=256, pooled_width=256, **SIZES["tiny"])
    prediction_LD = dit(inputs)                            # PackedInputs

Shape suffixes: L tokens of a pack, S samples of a pack, M text tokens of a pack, R register tokens, D width, C width of
the text encoder.

Architecture after "Scalable Diffusion Models with Transformers" (arXiv 2212.09748), with the rotary positions per axis
and the QK-RMSNorm of current video transformers. At initialisation every block is the identity and the output is exactly
0 (adaLN-Zero), cross-attention included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from packing.grid import Shape3
from recaption.errors import UsageError
from train.backbones.activation_memory import activation_bytes
from train.backbones.embedders import TextEmbedder, TimestepEmbedder, TokenEmbedder, check_heads
from train.backbones.flops import transformer_flops
from train.backbones.interface import PackedInputs
from train.layers.adaln import gated_residual, modulated_layer_norm
from train.layers.attention import packed_attention
from train.layers.layouts import LayoutKey
from train.layers.packed_attention_layers import Attend, CrossAttention, SelfAttention, compile_around_attention
from train.layers.relative_bias import PackedPositions
from train.layers.rope import rotary_cos_sin
from train.layers.segments import Segments

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 6, "num_heads": 6},
    "S": {"width": 384, "depth": 12, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
    "XL": {"width": 1152, "depth": 28, "num_heads": 16},
}
"""S to XL as in the paper (33 M to 675 M parameters there, more here: cross-attention); tiny trains on a laptop."""
ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH = {"fp32": 100.4, "bf16": 52.4}
"""Of one block, saved for backward by what runs on a GPU: flash or flex attention, torch's RMSNorm, CUDA's autocast.
test_activation_memory.py counts it again on fake CUDA tensors. The residual stream stays float32, also under autocast."""

AfterBlock = Callable[[int, Tensor], Tensor]
"""(number of the block, x_LD) -> x_LD."""


class Dit(nn.Module):
    """Diffusion transformer: one prediction per token, of the type `DiffusionSettings.prediction`."""

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
    ) -> None:
        """
        Args:
            token_width: latent channels x patch volume; of the input and the output.
            text_width, pooled_width: of the text encoder, per token and per caption.
            attention_backend: of this process; no part of the model, so `config` does not hold it.
            num_registers: learned register tokens per sample, dropped after the blocks (arXiv 2309.16588). They lengthen
                the sequences of the blocks.
            absolute_positions: add a sine-cosine position embedding to RoPE's relative one. A small model otherwise
                spends most of a short training on learning positions.
            hint_width, scalars: of `TokenEmbedder` and `TimestepEmbedder`.

        Raises:
            UsageError: `width` is not divisible by `num_heads`, a head is too narrow for three axes of positions, or a
                negative number of registers.
        """
        super().__init__()
        self.head_width = check_heads(width, num_heads)
        if num_registers < 0:
            raise UsageError(f"{num_registers = } is negative")
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
        }
        self.layout_keys: tuple[LayoutKey, ...] = ()
        self.x_embedder = TokenEmbedder(
            token_width, width, absolute_positions=absolute_positions, hint_width=hint_width
        )
        self.t_embedder = TimestepEmbedder(width, scalars=scalars)
        self.text_embedder = TextEmbedder(text_width, pooled_width, width)
        self.register_embedding_RD = nn.Parameter(torch.randn(num_registers, width)) if num_registers else None
        attend = functools.partial(packed_attention, backend=attention_backend)
        self.blocks = nn.ModuleList(DitBlock(width, num_heads, mlp_ratio, attend) for _ in range(depth))
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
        for block in self.blocks:
            for layer in (block.adaLN_modulation[1], block.cross_attention.out):
                nn.init.zeros_(layer.weight)
        for layer in (self.final_adaLN_modulation[1], self.final_linear):
            nn.init.zeros_(layer.weight)

    def forward(self, inputs: PackedInputs, after_block: AfterBlock | None = None) -> Tensor:
        """(L, token_width) float32: the prediction for every token.

        Args:
            after_block: takes the tokens after each block, without registers, and gives those for the next one.
        """
        segments = inputs.segments
        text_MD, text_segments, pooled_SD = self.text_embedder(inputs)
        condition_SD = self.t_embedder(inputs) + pooled_SD
        x_LD = self.x_embedder(inputs)
        x_LD = self._run_blocks(x_LD, inputs.position_L3, segments, condition_SD, text_MD, text_segments, after_block)
        shift_SD, scale_SD = self.final_adaLN_modulation(condition_SD).chunk(2, dim=-1)
        return self.final_linear(modulated_layer_norm(x_LD, shift_SD, scale_SD, segments)).float()

    def _run_blocks(
        self,
        x_LD: Tensor,
        position_L3: Tensor,
        segments: Segments,
        condition_SD: Tensor,
        text_MD: Tensor,
        text_segments: Segments,
        after_block: AfterBlock | None,
    ) -> Tensor:
        """All blocks, with the register tokens in front of each sample, at position (0, 0, 0)."""
        longer_segments, token_index = segments, None
        if self.register_embedding_RD is not None:
            longer_segments, token_index, register_index = segments.with_prefix_tokens(len(self.register_embedding_RD))
            longer_LD = x_LD.new_zeros(longer_segments.num_tokens, x_LD.shape[1]).index_copy(0, token_index, x_LD)
            registers_LD = self.register_embedding_RD.float().repeat(len(segments), 1)
            x_LD = longer_LD.index_copy(0, register_index, registers_LD)
            position_L3 = position_L3.new_zeros(longer_segments.num_tokens, 3).index_copy(0, token_index, position_L3)
        rotary = rotary_cos_sin(position_L3, self.head_width)
        for number, block in enumerate(self.blocks):
            x_LD = block(x_LD, rotary, longer_segments, condition_SD, text_MD, text_segments)
            if after_block is not None and token_index is None:
                x_LD = after_block(number, x_LD)
            elif after_block is not None:
                x_LD = x_LD.index_copy(0, token_index, after_block(number, x_LD[token_index]))
        return x_LD if token_index is None else x_LD[token_index]

    def flops(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], token_shapes: Sequence[Shape3] = ()
    ) -> float:
        """Forward and backward of the blocks; embeddings and adaLN are not counted: under 2 % at usual lengths."""
        lengths = [length + self.config["num_registers"] for length in num_tokens]
        per_block = transformer_flops(lengths, num_text_tokens, width=self.config["width"])
        return len(self.blocks) * per_block

    def activation_bytes(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], *, precision: str, checkpointed: bool
    ) -> int:
        return activation_bytes(
            num_tokens=sum(length + self.config["num_registers"] for length in num_tokens),
            width=self.config["width"],
            depth=len(self.blocks),
            bytes_per_token_and_width=ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH[precision],
            checkpointed=checkpointed,
        )


class DitBlock(nn.Module):
    """Self-attention and MLP with adaLN-Zero, and cross-attention to the sample's text between them."""

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
            cross_attention: False: text acts through the condition alone.
            self_attention: options of `SelfAttention`.
        """
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.attention = SelfAttention(width, num_heads, attend, **self_attention)
        self.cross_norm = nn.LayerNorm(width) if cross_attention else None
        self.cross_attention = CrossAttention(width, num_heads, attend) if cross_attention else None
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def forward(
        self,
        x_LD: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        segments: Segments,
        condition_SD: Tensor,
        text_MD: Tensor,
        text_segments: Segments,
        positions: PackedPositions | None = None,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition_SD).chunk(6, dim=-1)
        h_LD = self.attention(modulated_layer_norm(x_LD, shift1, scale1, segments), rotary, segments, positions)
        x_LD = gated_residual(x_LD, h_LD, gate1, segments)
        if self.cross_norm is not None and self.cross_attention is not None:
            x_LD = x_LD + self.cross_attention(self.cross_norm(x_LD), segments, text_MD, text_segments)
        h_LD = self.mlp(modulated_layer_norm(x_LD, shift2, scale2, segments))
        return gated_residual(x_LD, h_LD, gate2, segments)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the block so that packs of other lengths do not recompile it."""
        compile_around_attention(self, *args, **kwargs)
