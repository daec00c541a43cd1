"""DiT over packs: adaLN-Zero with a timestep per sample, 3-D RoPE, text by cross-attention.

    dit = Dit(token_width=96, text_width=256, pooled_width=256, **SIZES["tiny"])
    prediction_LD = dit(tokens_LD, position_L3, segments, timestep_S, text_MC, text_segments, pooled_SC)

Shape suffixes: L tokens of a pack, S samples of a pack, M text tokens of a pack, R register tokens, D width, C width of
the text encoder.

Architecture after "Scalable Diffusion Models with Transformers" (arXiv 2212.09748), with the rotary positions per axis
and the QK-RMSNorm of current video transformers. At initialisation every block is the identity and the output is exactly
0 (adaLN-Zero), cross-attention included.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recaption.errors import UsageError
from train.layers.adaln import gated_residual, modulated_layer_norm
from train.layers.attention import packed_attention
from train.layers.embeddings import POSITION_FREQUENCIES, TIMESTEP_EMBEDDING_WIDTH, sincos_pos_embed, timestep_embedding
from train.layers.packed_attention_layers import Attend, CrossAttention, SelfAttention, outside_compile
from train.layers.rope import rotary_cos_sin
from train.layers.segments import Segments
from train.layers.text_condition import NULL_TOKENS, TextSelection, with_null_captions

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 6, "num_heads": 6},
    "S": {"width": 384, "depth": 12, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
    "XL": {"width": 1152, "depth": 28, "num_heads": 16},
}
"""S to XL as in the paper (33 M to 675 M parameters there, more here: cross-attention); tiny trains on a laptop."""


class Dit(nn.Module):
    """Diffusion transformer: one prediction per token, of the type `DiffusionSettings.prediction`."""

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

        Raises:
            UsageError: `width` is not divisible by `num_heads`, a head is too narrow for three axes of positions, or a
                negative number of registers.
        """
        super().__init__()
        if width % num_heads:
            raise UsageError(f"{width = } is not divisible by {num_heads = }")
        head_width = width // num_heads
        if head_width % 2 or head_width < 6:
            raise UsageError(
                f"{head_width = } (width / num_heads) must be even and at least 6, for rotary positions of three axes"
            )
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
        }
        self.head_width = head_width
        self.x_embedder = nn.Linear(token_width, width)
        self.pos_embedder = nn.Linear(6 * POSITION_FREQUENCIES, width) if absolute_positions else None
        self.t_embedder = nn.Sequential(nn.Linear(TIMESTEP_EMBEDDING_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        self.text_embedder = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.pooled_embedder = nn.Sequential(nn.LayerNorm(pooled_width), nn.Linear(pooled_width, width))
        self.null_text_embedding_MC = nn.Parameter(torch.randn(NULL_TOKENS, text_width))
        self.null_pooled_embedding_C = nn.Parameter(torch.randn(pooled_width))
        self.condition_mask_embedding_D = nn.Parameter(torch.zeros(width))
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
                nn.init.zeros_(module.bias)
        for index in (0, 2):
            nn.init.normal_(self.t_embedder[index].weight, std=0.02)
        for block in self.blocks:
            for layer in (block.adaLN_modulation[1], block.cross_attention.out):
                nn.init.zeros_(layer.weight)
        for layer in (self.final_adaLN_modulation[1], self.final_linear):
            nn.init.zeros_(layer.weight)

    def forward(
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
        """(L, token_width) float32: the prediction for every token.

        Args:
            position_L3: int, (frame, row, column) of each token in its own sample's grid; any size.
            cu_seqlens, cu_text: `Segments`, or cu_seqlens tensors.
            timestep_S: 0 (clean) to 1 (noise), one per sample.
            drop_text_S: samples that get the learned null caption; so does every sample without text tokens. Or the
                `TextSelection` made of them, which a training step has on the device already.
            condition_mask_L: bool, conditioning tokens: passed in clean (t = 0), whatever the timestep of their sample.
        """
        segments, text_segments = Segments.of(cu_seqlens), Segments.of(cu_text)
        text_MC, text_segments, pooled_SC = with_null_captions(
            text_MC,
            text_segments,
            pooled_SC,
            drop_text_S,
            null_text_MC=self.null_text_embedding_MC,
            null_pooled_C=self.null_pooled_embedding_C,
        )
        condition_SD = self.t_embedder(timestep_embedding(timestep_S)) + self.pooled_embedder(pooled_SC)
        text_MD = self.text_embedder(text_MC)
        # The residual stream stays float32, also under autocast: rounding errors would accumulate over the depth.
        x_LD = self.x_embedder(tokens_LD).float()
        if self.pos_embedder is not None:
            x_LD = x_LD + self.pos_embedder(sincos_pos_embed(position_L3)).float()
        # Part of every graph, as the null caption is: DDP waits for the gradient of every parameter.
        condition_mask_L1 = (
            x_LD.new_zeros(1, 1) if condition_mask_L is None else condition_mask_L[:, None].to(x_LD.dtype)
        )
        x_LD = x_LD + condition_mask_L1 * self.condition_mask_embedding_D
        x_LD = self._run_blocks(x_LD, position_L3, segments, condition_SD, text_MD, text_segments)
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
        for block in self.blocks:
            x_LD = block(x_LD, rotary, longer_segments, condition_SD, text_MD, text_segments)
        return x_LD if token_index is None else x_LD[token_index]


class DitBlock(nn.Module):
    """Self-attention and MLP with adaLN-Zero, and cross-attention to the sample's text between them."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, attend: Attend) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.attention = SelfAttention(width, num_heads, attend)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, num_heads, attend)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def forward(
        self,
        x_LD: Tensor,
        rotary: tuple[Tensor, Tensor],
        segments: Segments,
        condition_SD: Tensor,
        text_MD: Tensor,
        text_segments: Segments,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition_SD).chunk(6, dim=-1)
        h_LD = self.attention(modulated_layer_norm(x_LD, shift1, scale1, segments), rotary, segments)
        x_LD = gated_residual(x_LD, h_LD, gate1, segments)
        x_LD = x_LD + self.cross_attention(self.cross_norm(x_LD), segments, text_MD, text_segments)
        h_LD = self.mlp(modulated_layer_norm(x_LD, shift2, scale2, segments))
        return gated_residual(x_LD, h_LD, gate2, segments)

    def compile(self, *args: Any, dynamic: bool | None = True, **kwargs: Any) -> None:
        """Compile the block so that packs of other lengths do not recompile it.

        All sizes are dynamic, and attention stays outside of the graph: it loops over samples or is a kernel of its own.
        Wrappers of activation checkpointing or FSDP around `forward` stay outside too: torch.compile cannot trace them.
        """
        for attention in (self.attention, self.cross_attention):
            attention.attend = outside_compile(attention.attend)
        forward: Any = self.forward
        if isinstance(forward, functools.partial):  # torch.utils.checkpoint around the block's forward
            inner = torch.compile(forward.args[0], *args, dynamic=dynamic, **kwargs)
            self.forward = functools.partial(forward.func, inner, **forward.keywords)  # type: ignore[method-assign]
        else:
            self.forward = torch.compile(forward, *args, dynamic=dynamic, **kwargs)  # type: ignore[method-assign]
