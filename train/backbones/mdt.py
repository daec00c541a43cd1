"""MDT over packs: a DiT that also learns to predict tokens which its encoder has not seen.

    mdt = Mdt(token_width=96, text_width=256, pooled_width=256, **SIZES["tiny"])
    prediction_LD = mdt(inputs)                                       # as any backbone
    prediction_LD = mdt(inputs.replace(token_mask=mask))              # some tokens hidden from the encoder

Encoder blocks with long skips between their mirrored halves, then decoder blocks, each of which sees the embedded input
again. Where tokens are masked, the encoder gets the others only; a side block (the paper's side-interpolater) predicts the
features of the missing ones. The decoder sees the noised values of all tokens through its skip, so only the encoder has to
infer from context.

Architecture after "MDTv2: Masked Diffusion Transformer is a Strong Image Synthesizer" (arXiv 2303.14389v2), with text by
cross-attention as in our DiT. Its table of relative positions has 3 rows that no pair of tokens reads: they are left out.

Shape suffixes: L tokens of a pack, K visible ones, S samples, M text tokens, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from packing.grid import Shape3
from recaption.errors import UsageError
from train.backbones.dit import DitBlock
from train.backbones.embedders import TextEmbedder, TimestepEmbedder, TokenEmbedder, check_heads
from train.backbones.flops import FORWARD_AND_BACKWARD, transformer_flops
from train.backbones.interface import PackedInputs
from train.layers.adaln import modulated_layer_norm
from train.layers.attention import packed_attention
from train.layers.embeddings import POSITION_FREQUENCIES, sincos_pos_embed, sincos_table
from train.layers.layouts import LayoutKey
from train.layers.packed_attention_layers import Attend
from train.layers.relative_bias import PackedPositions
from train.layers.rope import rotary_cos_sin
from train.layers.segments import Segments
from train.layers.token_mask import TokenMask

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 6, "num_heads": 6, "decoder_depth": 2},
    "S": {"width": 384, "depth": 12, "num_heads": 6, "decoder_depth": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12, "decoder_depth": 4},
    "L": {"width": 1024, "depth": 24, "num_heads": 16, "decoder_depth": 4},
    "XL": {"width": 1152, "depth": 28, "num_heads": 16, "decoder_depth": 4},
}
"""S to XL as published (38 M to 742 M parameters there, more here: cross-attention); tiny trains on a laptop."""
ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH = {"fp32": 100.4, "bf16": 52.4}
"""Of one block without skip, as of `dit.ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH`."""
SKIP_BYTES_PER_TOKEN_AND_WIDTH = {"fp32": 8.0, "bf16": 4.0}
"""What a skip adds to it: the input of its linear layer."""


@dataclass(frozen=True, kw_only=True)
class MdtSettings:
    """Settings of MDT alone."""

    decoder_depth: int = 2
    """Blocks of the decoder, out of `depth`; the other ones are the two halves of the encoder."""
    mask_ratio: tuple[float, ...] = (0.3, 0.5)
    """Smallest and largest share of a clip's tokens that are masked in training, uniform between them. Empty: no masking,
    and no side block."""
    relative_bias: tuple[int, ...] = ()
    """Frames, rows and columns of the largest grid of tokens whose distances have attention biases of their own, (1, 16, 16)
    in the paper; farther ones share those at the rim. Empty: none, RoPE alone."""

    def check(self) -> None:
        """Raises UsageError where a setting is invalid."""
        _check_mask_ratio(self.mask_ratio)


def _check_mask_ratio(mask_ratio: Sequence[float]) -> None:
    if mask_ratio and not (len(mask_ratio) == 2 and 0 < mask_ratio[0] <= mask_ratio[1] < 1):
        raise UsageError(f"mask_ratio = {tuple(mask_ratio)} must be two numbers, 0 < smallest <= largest < 1, or empty")


_Place = tuple[tuple[Tensor, Tensor] | None, Segments, PackedPositions | None]
"""Rotary angles, segments, and positions for the relative bias."""


class Mdt(nn.Module):
    """MDTv2: one prediction per token, of the type `DiffusionSettings.prediction`."""

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
        decoder_depth: int = 2,
        mask_ratio: Sequence[float] = (0.3, 0.5),
        relative_bias: Sequence[int] = (),
        position_table: Sequence[int] = (),
        cross_attention: bool = True,
    ) -> None:
        """
        Args:
            absolute_positions: as of `Dit`, at the input of the encoder and again at that of the decoder.
            decoder_depth, mask_ratio, relative_bias: as of `MdtSettings`.
            position_table: (rows, columns) of a published model, which has learned positions of this one grid in place of
                RoPE, and no QK-norm.
            cross_attention: as of `DitBlock`; the published models have none.

        Raises:
            UsageError: an encoder of an odd number of blocks, or as of `Dit`.
        """
        super().__init__()
        self.head_width = check_heads(width, num_heads)
        if not 0 < decoder_depth < depth or (depth - decoder_depth) % 2:
            raise UsageError(
                f"{depth = } and {decoder_depth = } leave {depth - decoder_depth} blocks for the two halves of MDT's "
                "encoder: it must be an even number, at least 2, and the decoder needs a block"
            )
        _check_mask_ratio(mask_ratio)
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
            "decoder_depth": decoder_depth,
            "mask_ratio": list(mask_ratio),
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
        self.decoder_pos_embedder = nn.Linear(6 * POSITION_FREQUENCIES, width) if absolute_positions else None
        tables = [sincos_table(position_table, width) if position_table else None for _ in range(2)]
        self.pos_embed_LD, self.decoder_pos_embed_LD = (None if t is None else nn.Parameter(t) for t in tables)
        self.blocks = self._make_blocks(functools.partial(packed_attention, backend=attention_backend))
        self.mask_token_D = nn.Parameter(torch.empty(width)) if mask_ratio else None
        self.final_adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.final_linear = nn.Linear(width, token_width)
        self._initialise()

    def _make_blocks(self, attend: Attend) -> nn.ModuleList:
        """First half of the encoder, second half, decoder, side block."""
        config, half = self.config, self.half_depth
        has_skip = [False] * half + [True] * (half + config["decoder_depth"]) + [False] * bool(config["mask_ratio"])
        options = {
            "cross_attention": config["cross_attention"],
            "qk_norm": not config["position_table"],
            "relative_bias": config["relative_bias"],
        }
        sizes = config["width"], config["num_heads"], config["mlp_ratio"], attend
        return nn.ModuleList(MdtBlock(*sizes, has_skip=is_on, **options) for is_on in has_skip)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.x_embedder.init_weights()
        self.t_embedder.init_weights()
        for block in self.blocks:
            nn.init.zeros_(block.adaLN_modulation[1].weight)
            if block.cross_attention is not None:
                nn.init.zeros_(block.cross_attention.out.weight)
        if self.mask_token_D is not None:
            nn.init.normal_(self.mask_token_D, std=0.02)
        for layer in (self.final_adaLN_modulation[1], self.final_linear):
            nn.init.zeros_(layer.weight)

    @property
    def half_depth(self) -> int:
        """Blocks of each half of the encoder."""
        half: int = (self.config["depth"] - self.config["decoder_depth"]) // 2
        return half

    @property
    def side_block(self) -> nn.Module | None:
        """Predicts the features of masked tokens; None where the model was built without masking."""
        return self.blocks[-1] if self.mask_token_D is not None else None

    def forward(self, inputs: PackedInputs) -> Tensor:
        """(L, token_width) float32: the prediction for every token, masked or not.

        Raises:
            ValueError: masked tokens for a model without masking.
        """
        text_MD, text_segments, pooled_SD = self.text_embedder(inputs)
        condition_SD = self.t_embedder(inputs) + pooled_SD
        condition = condition_SD, text_MD, text_segments
        u_LD = self._with_positions(self.x_embedder(inputs), self.pos_embed_LD, inputs.position_L3)
        x_LD = self._encode(u_LD, inputs, condition)
        place = self._place(inputs.position_L3, inputs.segments)
        for block in self.blocks[2 * self.half_depth : self.config["depth"]]:
            x_LD = block(x_LD, *place, *condition, u_LD)
        shift_SD, scale_SD = self.final_adaLN_modulation(condition_SD).chunk(2, dim=-1)
        return self.final_linear(modulated_layer_norm(x_LD, shift_SD, scale_SD, inputs.segments)).float()

    def _encode(self, u_LD: Tensor, inputs: PackedInputs, condition: tuple[Tensor, Tensor, Segments]) -> Tensor:
        """Input of the decoder: features of the visible tokens by the encoder, of the masked ones by the side block."""
        mask, side_block = inputs.token_mask, self.side_block
        if mask is None and side_block is not None and torch.is_grad_enabled():
            # The side block runs even so, for gradients of zero: DDP waits for the gradient of each weight.
            mask = TokenMask.of_nothing(inputs.segments)
        if mask is None:
            x_LD = self._run_encoder(u_LD, self._place(inputs.position_L3, inputs.segments), condition)
            return self._with_decoder_positions(x_LD, inputs.position_L3)
        if side_block is None:
            raise ValueError("tokens are masked, and the model has no masking: build it with a `mask_ratio`")
        visible_K = mask.visible_index_K
        visible = self._place(inputs.position_L3[visible_K], mask.visible_segments)
        x_LD = mask.with_mask_tokens(self._run_encoder(u_LD[visible_K], visible, condition), self.mask_token_D)
        x_LD = self._with_decoder_positions(x_LD, inputs.position_L3)
        index_J = mask.incomplete_index_J
        incomplete = self._place(inputs.position_L3[index_J], mask.incomplete_segments)
        side_JD = side_block(x_LD[index_J], *incomplete, *condition)
        return x_LD.index_copy(0, mask.masked_index_N, side_JD[mask.masked_in_incomplete_N])

    def _run_encoder(self, x_KD: Tensor, place: _Place, condition: tuple[Tensor, Tensor, Segments]) -> Tensor:
        skips = []
        for block in self.blocks[: self.half_depth]:
            x_KD = block(x_KD, *place, *condition)
            skips.append(x_KD)
        for block in self.blocks[self.half_depth : 2 * self.half_depth]:
            x_KD = block(x_KD, *place, *condition, skips.pop())
        return x_KD

    def _place(self, position_L3: Tensor, segments: Segments) -> _Place:
        """Positions and segments of the tokens of a run of blocks."""
        has_table = self.pos_embed_LD is not None
        rotary = None if has_table else rotary_cos_sin(position_L3, self.head_width)
        return rotary, segments, PackedPositions(position_L3, segments) if self.config["relative_bias"] else None

    def _with_decoder_positions(self, x_LD: Tensor, position_L3: Tensor) -> Tensor:
        if self.decoder_pos_embedder is not None:
            x_LD = x_LD + self.decoder_pos_embedder(sincos_pos_embed(position_L3)).float()
        return self._with_positions(x_LD, self.decoder_pos_embed_LD, position_L3)

    def _with_positions(self, x_LD: Tensor, table_LD: Tensor | None, position_L3: Tensor) -> Tensor:
        if table_LD is None:
            return x_LD
        return x_LD + table_LD[position_L3[:, 1] * self.config["position_table"][1] + position_L3[:, 2]]

    def flops(
        self,
        num_tokens: Sequence[int],
        num_text_tokens: Sequence[int],
        token_shapes: Sequence[Shape3] = (),
        *,
        num_visible: Sequence[int] | None = None,
    ) -> float:
        """As of `Dit.flops`.

        Args:
            num_visible: tokens of each sample that are not masked; None: all of them.
        """
        width, has_text = self.config["width"], self.config["cross_attention"]
        skip = FORWARD_AND_BACKWARD * 4.0 * width * width
        return sum(
            number * transformer_flops(lengths, num_text_tokens if has_text else None, width=width)
            + num_skips * skip * sum(lengths)
            for lengths, number, num_skips in self._runs(num_tokens, num_visible)
        )

    def activation_bytes(
        self,
        num_tokens: Sequence[int],
        num_text_tokens: Sequence[int],
        *,
        precision: str,
        checkpointed: bool,
        num_visible: Sequence[int] | None = None,
    ) -> int:
        """As of `Backbone`, with the `num_visible` of `flops`."""
        width, saved = self.config["width"], 0.0
        per_block, per_skip = ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH[precision], SKIP_BYTES_PER_TOKEN_AND_WIDTH[precision]
        runs = self._runs(num_tokens, num_visible)
        for lengths, number, num_skips in runs:
            inputs = 4 * number * width * sum(lengths)
            saved += inputs if checkpointed else (number * per_block + num_skips * per_skip) * width * sum(lengths)
        if checkpointed:  # one block at a time
            saved += (per_block + per_skip) * width * sum(num_tokens)
        return int(saved)

    def _runs(
        self, num_tokens: Sequence[int], num_visible: Sequence[int] | None
    ) -> list[tuple[Sequence[int], int, int]]:
        """(tokens of each sample, blocks, those of them with a skip) of encoder, decoder and side block."""
        visible = num_tokens if num_visible is None else num_visible
        incomplete = [n if num_visible is None or v < n else 0 for n, v in zip(num_tokens, visible)]
        decoder_depth, side_depth = self.config["decoder_depth"], len(self.blocks) - self.config["depth"]
        return [
            (visible, 2 * self.half_depth, self.half_depth),
            (num_tokens, decoder_depth, decoder_depth),
            (incomplete, side_depth, 0),
        ]


class MdtBlock(DitBlock):
    """A DiT block that first takes the features of an earlier layer in, where it has a skip."""

    def __init__(self, *sizes: Any, has_skip: bool, **options: Any) -> None:
        super().__init__(*sizes, **options)
        width = self.mlp[0].in_features
        self.skip_linear = nn.Linear(2 * width, width) if has_skip else None

    def forward(  # type: ignore[override]
        self,
        x_LD: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        segments: Segments,
        positions: PackedPositions | None,
        condition_SD: Tensor,
        text_MD: Tensor,
        text_segments: Segments,
        skip_LD: Tensor | None = None,
    ) -> Tensor:
        if self.skip_linear is not None:
            x_LD = self.skip_linear(torch.cat([x_LD, skip_LD], dim=-1)).float()
        return super().forward(x_LD, rotary, segments, condition_SD, text_MD, text_segments, positions)
