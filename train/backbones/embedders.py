"""What backbones share at their input: embeddings of tokens, noise level and text.

    x_LD = x_embedder(inputs)                              # positions, condition mask and low-resolution hint included
    condition_SD = t_embedder(inputs) + pooled_SD
    text_MD, text_segments, pooled_SD = text_embedder(inputs)

Every parameter is part of every graph, used or not: DDP waits for the gradient of each of them.

Shape suffixes: L tokens of a pack, S samples of a pack, M text tokens of a pack, C width of the text encoder, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recaption.errors import UsageError
from train.backbones.interface import PackedInputs
from train.layers.embeddings import POSITION_FREQUENCIES, TIMESTEP_EMBEDDING_WIDTH, sincos_pos_embed, timestep_embedding
from train.layers.segments import Segments
from train.layers.text_condition import NULL_TOKENS, with_null_captions


class TokenEmbedder(nn.Module):
    """Tokens to the residual stream, with absolute positions, condition mask and hint added where a model has them."""

    def __init__(
        self, token_width: int, width: int, *, absolute_positions: bool = False, hint_width: int = 0, bias: bool = True
    ) -> None:
        """
        Args:
            absolute_positions: add a sine-cosine position embedding, of any grid size.
            hint_width: numbers per token of `PackedInputs.hint_LD`; its weights start at zero, so that a model initialised
                from one without a hint computes the same. 0: no hint.
        """
        super().__init__()
        self.proj = nn.Linear(token_width, width, bias=bias)
        self.pos_embedder = nn.Linear(6 * POSITION_FREQUENCIES, width) if absolute_positions else None
        self.condition_mask_embedding_D = nn.Parameter(torch.zeros(width))
        self.hint_embedder = nn.Linear(hint_width, width, bias=False) if hint_width else None
        self.init_weights()

    def init_weights(self) -> None:
        """Zeros that make a hint change nothing."""
        if self.hint_embedder is not None:
            nn.init.zeros_(self.hint_embedder.weight)

    def forward(self, inputs: PackedInputs) -> Tensor:
        """(L, D) float32, also under autocast: rounding errors of the residual stream would accumulate over the depth.

        Raises:
            ValueError: a hint where the model takes none, or none where it takes one.
        """
        x_LD = self.proj(inputs.tokens_LD).float()
        if self.pos_embedder is not None:
            x_LD = x_LD + self.pos_embedder(sincos_pos_embed(inputs.position_L3)).float()
        mask_L = inputs.condition_mask_L
        mask_L1 = x_LD.new_zeros(1, 1) if mask_L is None else mask_L[:, None].to(x_LD.dtype)
        x_LD = x_LD + mask_L1 * self.condition_mask_embedding_D
        if (self.hint_embedder is None) != (inputs.hint_LD is None):
            raise ValueError("a hint goes with a model that has `hint_width`, and only with such a model")
        return x_LD if self.hint_embedder is None else x_LD + self.hint_embedder(inputs.hint_LD).float()


class TimestepEmbedder(nn.Module):
    """Noise level, and further numbers per sample, to a vector per sample."""

    def __init__(
        self,
        width: int,
        *,
        scalars: Sequence[str] = (),
        embedding_width: int = TIMESTEP_EMBEDDING_WIDTH,
        has_mlp: bool = True,
    ) -> None:
        """
        Args:
            scalars: names of the further numbers that the model takes (`PackedInputs.scalars`); their embeddings start at
                zero.
            embedding_width: of the sine-cosine embedding in front of the MLP.
            has_mlp: False: the sine-cosine embedding of the noise level as it is, `embedding_width` = `width`.
        """
        super().__init__()
        self.embedding_width = embedding_width
        self.mlp = (
            nn.Sequential(nn.Linear(embedding_width, width), nn.SiLU(), nn.Linear(width, width)) if has_mlp else None
        )
        self.scalar_embedders = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(embedding_width, width), nn.SiLU(), nn.Linear(width, width))
                for name in scalars
            }
        )

    def forward(self, inputs: PackedInputs) -> Tensor:
        """(S, D).

        Raises:
            ValueError: scalars that the model does not have, or lacks.
        """
        if inputs.scalars.keys() != set(self.scalar_embedders):
            raise ValueError(f"scalars {sorted(inputs.scalars)} for a model that takes {sorted(self.scalar_embedders)}")
        condition_SD = timestep_embedding(inputs.timestep_S, self.embedding_width)
        if self.mlp is not None:
            condition_SD = self.mlp(condition_SD)
        for name, embedder in self.scalar_embedders.items():
            condition_SD = condition_SD + embedder(timestep_embedding(inputs.scalars[name], self.embedding_width))
        return condition_SD

    def init_weights(self) -> None:
        """Normal weights of standard deviation 0.02, as in DiT, and zeros that make a new scalar change nothing."""
        if self.mlp is not None:
            for index in (0, 2):
                nn.init.normal_(self.mlp[index].weight, std=0.02)
        for embedder in self.scalar_embedders.values():
            nn.init.normal_(embedder[0].weight, std=0.02)
            nn.init.zeros_(embedder[2].weight)


class TextEmbedder(nn.Module):
    """Text tokens and pooled text to the width of a model, with a learned null caption."""

    def __init__(self, text_width: int, pooled_width: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.pooled = nn.Sequential(nn.LayerNorm(pooled_width), nn.Linear(pooled_width, width))
        self.null_text_embedding_MC = nn.Parameter(torch.randn(NULL_TOKENS, text_width))
        self.null_pooled_embedding_C = nn.Parameter(torch.randn(pooled_width))

    def forward(self, inputs: PackedInputs) -> tuple[Tensor, Segments, Tensor]:
        """text_MD, its segments, and pooled_SD, with the null caption for samples whose text is dropped or empty."""
        text_MC, text_segments, pooled_SC = with_null_captions(
            inputs.text.text_MC,
            inputs.text.segments,
            inputs.text.pooled_SC,
            inputs.drop_text_S,
            null_text_MC=self.null_text_embedding_MC,
            null_pooled_C=self.null_pooled_embedding_C,
        )
        return self.tokens(text_MC), text_segments, self.pooled(pooled_SC)


def check_heads(width: int, num_heads: int) -> int:
    """Width of a head.

    Raises:
        UsageError: `width` is not divisible by `num_heads`, or a head is too narrow for three axes of rotary positions.
    """
    if width % num_heads:
        raise UsageError(f"{width = } is not divisible by {num_heads = }")
    head_width = width // num_heads
    if head_width % 2 or head_width < 6:
        raise UsageError(
            f"{head_width = } (width / num_heads) must be even and at least 6, for rotary positions of three axes"
        )
    return head_width
