"""The diffusion transformer over packed rows: adaLN-Zero with a timestep per sample, 3-D RoPE, text by cross-attention.

    dit = Dit(token_width=96, text_width=256, pooled_width=256, **SIZES["tiny"])
    answer_LD = dit(tokens_LD, position_L3, segments, timestep_S, text_MC, text_segments, pooled_SC)

Shape suffixes: L tokens of a row, S samples of a row, M text tokens of a row, D width, C width of the text encoder,
H heads, F rotation frequencies of a head.

Architecture after "Scalable Diffusion Models with Transformers" (arXiv 2212.09748), with rotary positions per axis and
RMS-normed queries and keys as current video transformers have them. Every block starts as the identity and the output
as exactly 0 (adaLN-Zero), the text path included.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recaption.errors import UsageError
from train.layers.adaln import gated_residual, modulated_layer_norm
from train.layers.embeddings import POSITION_FREQUENCIES, TIME_FREQUENCIES, position_waves, timestep_frequencies
from train.layers.packed_attention_layers import CrossAttention, SelfAttention, _attention_outside_compile
from train.layers.rope import rope_angles
from train.layers.segments import Segments
from train.layers.text_condition import NULL_TOKENS

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 6, "num_heads": 6},
    "S": {"width": 384, "depth": 12, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
    "XL": {"width": 1152, "depth": 28, "num_heads": 16},
}
"""S to XL as in the paper (33 M to 675 M parameters there, more here: cross-attention); tiny trains on a laptop."""


class Dit(nn.Module):
    """Answers for every token of a packed row: its velocity, or what else `PathSettings.prediction` says."""

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
            token_width: numbers per token: latent channels x patch volume; in and out.
            text_width, pooled_width: what the text encoder gives per token and per caption.
            num_registers: learned tokens that go with every sample through the blocks and are then left out (arXiv
                2309.16588): room for what belongs to the whole sample. The blocks' rows are longer by as many a sample.
            absolute_positions: tell each token where it is on the grid, besides the distances that attention sees. A
                small model otherwise spends most of a short training on finding out.

        Raises:
            UsageError: `width` does not divide into heads, a head is too narrow for three axes of positions, or a
                negative number of registers.
        """
        super().__init__()
        if width % num_heads:
            raise UsageError(f"{width = } does not divide into {num_heads = }")
        head_width = width // num_heads
        if head_width % 2 or head_width < 6:
            raise UsageError(f"{head_width = } (width / num_heads) must be even and at least 6 to hold three positions")
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
            "attention_backend": attention_backend,
        }
        # left out otherwise: checkpoints from before there was a choice go on
        self.config |= {"num_registers": num_registers} if num_registers else {}
        self.config |= {"absolute_positions": True} if absolute_positions else {}
        self.head_width = head_width
        self.token_embedding = nn.Linear(token_width, width)
        self.position_embedding = nn.Linear(6 * POSITION_FREQUENCIES, width) if absolute_positions else None
        self.timestep_embedding = nn.Sequential(nn.Linear(TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.text_embedding = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.pooled_embedding = nn.Sequential(nn.LayerNorm(pooled_width), nn.Linear(pooled_width, width))
        self.null_text_embedding_MC = nn.Parameter(torch.randn(NULL_TOKENS, text_width))
        self.null_pooled_embedding_C = nn.Parameter(torch.randn(pooled_width))
        self.given_embedding_D = nn.Parameter(torch.zeros(width))
        self.register_load_state_dict_pre_hook(_without_given_embedding)
        self.register_embedding_RD = nn.Parameter(torch.randn(num_registers, width)) if num_registers else None
        self.blocks = nn.ModuleList(DitBlock(width, num_heads, mlp_ratio, attention_backend) for _ in range(depth))
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.final_projection = nn.Linear(width, token_width)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for index in (0, 2):
            nn.init.normal_(self.timestep_embedding[index].weight, std=0.02)
        for block in self.blocks:
            for layer in (block.modulation[1], block.cross_attention.out):
                nn.init.zeros_(layer.weight)
        for layer in (self.final_modulation[1], self.final_projection):
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
        drop_text_S: Sequence[bool] | None = None,
        given_L: Tensor | None = None,
    ) -> Tensor:
        """The answer for every token, float32.

        Args:
            position_L3: int, (frame, row, column) of each token in its own sample's grid; any size.
            cu_seqlens, cu_text: `Segments`, or bare cu_seqlens tensors.
            timestep_S: 0 (clean) to 1 (noise), one per sample.
            drop_text_S: samples that get the learned null caption; so does every sample with no text token at all.
            given_L: bool, tokens that are clean although their sample's timestep says otherwise.
        """
        segments, text_segments = Segments.of(cu_seqlens), Segments.of(cu_text)
        text_MC, text_segments, pooled_SC = self._with_null_captions(text_MC, text_segments, pooled_SC, drop_text_S)
        condition_SD = self.timestep_embedding(timestep_frequencies(timestep_S)) + self.pooled_embedding(pooled_SC)
        text_MD = self.text_embedding(text_MC)
        # The residual stream stays float32, also under autocast: depth adds up rounding errors there.
        x_LD = self.token_embedding(tokens_LD).float()
        if self.position_embedding is not None:
            x_LD = x_LD + self.position_embedding(position_waves(position_L3)).float()
        # In every graph, given tokens or not, as the null caption is: DDP waits for every gradient.
        given_L1 = x_LD.new_zeros(1, 1) if given_L is None else given_L[:, None].to(x_LD.dtype)
        x_LD = x_LD + given_L1 * self.given_embedding_D
        x_LD = self._through_blocks(x_LD, position_L3, segments, condition_SD, text_MD, text_segments)
        shift_SD, scale_SD = self.final_modulation(condition_SD).chunk(2, dim=-1)
        return self.final_projection(modulated_layer_norm(x_LD, shift_SD, scale_SD, segments)).float()

    def _through_blocks(
        self,
        x_LD: Tensor,
        position_L3: Tensor,
        segments: Segments,
        condition_SD: Tensor,
        text_MD: Tensor,
        text_segments: Segments,
    ) -> Tensor:
        """All blocks; the registers are there only in between, in front of each sample, at position (0, 0, 0)."""
        with_registers, token_rows = segments, None
        if self.register_embedding_RD is not None:
            with_registers, token_rows, register_rows = segments.with_extra(len(self.register_embedding_RD))
            longer_LD = x_LD.new_zeros(with_registers.num_tokens, x_LD.shape[1]).index_copy(0, token_rows, x_LD)
            registers_LD = self.register_embedding_RD.float().repeat(len(segments), 1)
            x_LD = longer_LD.index_copy(0, register_rows, registers_LD)
            position_L3 = position_L3.new_zeros(with_registers.num_tokens, 3).index_copy(0, token_rows, position_L3)
        rope = rope_angles(position_L3, self.head_width)
        for block in self.blocks:
            x_LD = block(x_LD, rope, with_registers, condition_SD, text_MD, text_segments)
        return x_LD if token_rows is None else x_LD[token_rows]

    def _with_null_captions(
        self, text_MC: Tensor, text_segments: Segments, pooled_SC: Tensor, drop_text_S: Sequence[bool] | None
    ) -> tuple[Tensor, Segments, Tensor]:
        """Text with the null caption where asked. The null caption takes part in every graph, dropped or not: DDP
        waits for the gradient of every parameter."""
        drop = list(drop_text_S) if drop_text_S is not None else [False] * len(text_segments)
        if len(drop) != len(text_segments):
            raise ValueError(f"{len(drop)} entries of drop_text_S for {len(text_segments)} samples")
        drop = [dropped or not length for dropped, length in zip(drop, text_segments.lengths)]
        num_text = text_segments.num_tokens
        rows: list[int] = []
        start = 0
        for dropped, length in zip(drop, text_segments.lengths):
            rows += range(num_text, num_text + NULL_TOKENS) if dropped else range(start, start + length)
            start += length
        device = text_MC.device
        lengths = [NULL_TOKENS if dropped else length for dropped, length in zip(drop, text_segments.lengths)]
        text_MC = torch.cat([text_MC.to(self.null_text_embedding_MC.dtype), self.null_text_embedding_MC])
        pooled_SC = torch.cat([pooled_SC.to(self.null_pooled_embedding_C.dtype), self.null_pooled_embedding_C[None]])
        pooled_rows = [len(drop) if dropped else sample for sample, dropped in enumerate(drop)]
        return (
            text_MC[torch.tensor(rows, device=device)],
            Segments.from_lengths(lengths, device),
            pooled_SC[torch.tensor(pooled_rows, device=device)],
        )


def _without_given_embedding(dit: nn.Module, weights: dict[str, Any], prefix: str, *_: Any) -> None:
    """Checkpoints from before there were given tokens: zeros, as at the start of every training."""
    assert isinstance(dit, Dit)
    weights.setdefault(f"{prefix}given_embedding_D", torch.zeros_like(dit.given_embedding_D))


class DitBlock(nn.Module):
    """Self-attention and MLP under adaLN-Zero; between them, attention to the sample's own text."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, attention_backend: str) -> None:
        super().__init__()
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.attention = SelfAttention(width, num_heads, attention_backend)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, num_heads, attention_backend)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def forward(
        self,
        x_LD: Tensor,
        rope: tuple[Tensor, Tensor],
        segments: Segments,
        condition_SD: Tensor,
        text_MD: Tensor,
        text_segments: Segments,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition_SD).chunk(6, dim=-1)
        h_LD = self.attention(modulated_layer_norm(x_LD, shift1, scale1, segments), rope, segments)
        x_LD = gated_residual(x_LD, h_LD, gate1, segments)
        x_LD = x_LD + self.cross_attention(self.cross_norm(x_LD), segments, text_MD, text_segments)
        h_LD = self.mlp(modulated_layer_norm(x_LD, shift2, scale2, segments))
        return gated_residual(x_LD, h_LD, gate2, segments)

    def compile(self, *args: Any, dynamic: bool | None = True, **kwargs: Any) -> None:
        """As of every module, except that rows of other lengths are not compiled anew: attention, which runs sample by
        sample or in a kernel of its own, stays outside, and every size is left open from the start. What recomputation
        or sharding put around `forward` stays outside too: torch.compile gives up on a block that it is to see through."""
        for attention in (self.attention, self.cross_attention):
            # one object for all: a function of its own would be a graph of its own for every block
            attention.attend = _attention_outside_compile()  # type: ignore[method-assign]
        forward: Any = self.forward
        if isinstance(forward, functools.partial):  # torch.utils.checkpoint around the block's own
            inner = torch.compile(forward.args[0], *args, dynamic=dynamic, **kwargs)
            self.forward = functools.partial(forward.func, inner, **forward.keywords)  # type: ignore[method-assign]
        else:
            self.forward = torch.compile(forward, *args, dynamic=dynamic, **kwargs)  # type: ignore[method-assign]
