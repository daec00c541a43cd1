"""Image-space DiffiT over packs: a U-shaped network of convolutions and windowed, time-dependent self-attention.

    model = DiffitPixels(token_width=12, text_width=256, pooled_width=256, width=128, depth=2, num_heads=4)
    prediction_LD = model(inputs)                          # PackedInputs with `token_shapes`

Each stage has half the rows and columns of the one before; `depth` residual cells on its way down and again on its way up,
where the features of the way down are taken in. A cell is a 3 x 3 convolution, then a DiffiT block in windows of one frame.
In the two coarsest stages the tokens of one place also attend along time.

Architecture after the image-space model of "DiffiT: Diffusion Vision Transformers for Image Generation" (arXiv 2312.02139).
The paper names 4 cells per stage in a table and 1 or 2 in its text, and no parameter count: there is nothing to match. Text
by cross-attention, attention along time and rotary positions are ours.

Shape suffixes: L tokens of a stage, S samples, M text tokens, D width of the stage.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packing.grid import Shape3, layer_flops_coefficients
from recaption.errors import UsageError
from train.backbones.diffit import DiffitBlock
from train.backbones.embedders import TextEmbedder, TimestepEmbedder, TokenEmbedder, check_heads
from train.backbones.flops import FORWARD_AND_BACKWARD
from train.backbones.interface import PackedInputs
from train.layers.adaln import NORM_EPS
from train.layers.attention import packed_attention
from train.layers.grid_levels import GridLevel, GridLevelsKey, PackedConv, PackedGroupNorm, coarser
from train.layers.layouts import LayoutKey
from train.layers.packed_attention_layers import Attend, TimeSelfAttention, compile_around_attention
from train.layers.rope import rotary_cos_sin
from train.layers.segments import Segments

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 48, "depth": 1, "num_heads": 2},
    "FFHQ-64": {"width": 128, "depth": 2, "num_heads": 4},
}
"""FFHQ-64: the widths of the paper; tiny trains on a laptop."""
ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH = {"fp32": 136.6, "bf16": 75.9}
"""Of one cell, as of `dit.ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH`."""
TIME_BYTES_PER_TOKEN_AND_WIDTH = {"fp32": 32.1, "bf16": 17.0}
"""What attention along time adds to it."""
NUM_TIME_STAGES = 2
"""Coarsest stages whose tokens attend along time."""


@dataclass(frozen=True, kw_only=True)
class DiffitPixelsSettings:
    """Settings of image-space DiffiT alone. `depth` is the number of cells of each stage, on each way; 2 is usual."""

    stages: int = 4
    """Resolutions, each half of the one before; the first has `width` channels, the others twice as many."""
    window: int = 8
    """Side of the windows of attention, in tokens of a stage: 8 for images of 64 px, 4 for 32 px in the paper."""
    relative_bias: tuple[int, ...] = ()
    """Frames, rows and columns of the table of attention biases, 1 and the window twice in the paper. Empty: RoPE alone."""

    def check(self) -> None:
        """Raises UsageError where a setting is invalid."""
        _check(self.stages, self.window)


def _check(stages: int, window: int) -> None:
    if stages < 1 or window < 1:
        raise UsageError(f"{stages = } and {window = } must be at least 1")


class DiffitPixels(nn.Module):
    """Image-space DiffiT: one prediction per token, of the type `DiffusionSettings.prediction`."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "token dropping": "its convolutions and resampling need whole grids of tokens; leave token_keep_rate out"
    }

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
        stages: int = 4,
        window: int = 8,
        relative_bias: Sequence[int] = (),
    ) -> None:
        """
        Args:
            width, num_heads: of the first stage; the others have twice as many.
            depth, stages, window, relative_bias: as of `DiffitPixelsSettings`.
        """
        super().__init__()
        self.head_width = check_heads(width, num_heads)
        _check(stages, window)
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
            "stages": stages,
            "window": window,
            "relative_bias": list(relative_bias),
        }
        self.levels_key = GridLevelsKey(num_levels=stages, window=window)
        self.layout_keys: tuple[LayoutKey, ...] = (self.levels_key,)
        self.widths = [width] + [2 * width] * (stages - 1)
        condition_width = 4 * width
        self.x_embedder = TokenEmbedder(
            token_width, width, absolute_positions=absolute_positions, hint_width=hint_width
        )
        self.tokenizer = PackedConv(token_width, width)
        self.t_embedder = TimestepEmbedder(condition_width, scalars=scalars)
        self.text_embedder = TextEmbedder(text_width, pooled_width, condition_width)
        self.condition_linears = nn.ModuleList(nn.Linear(condition_width, w) for w in self.widths)
        self.text_linears = nn.ModuleList(nn.Linear(condition_width, w) for w in self.widths)
        self.down_convs = nn.ModuleList(PackedConv(*pair) for pair in zip(self.widths, self.widths[1:]))
        self.up_convs = nn.ModuleList(PackedConv(*pair) for pair in zip(self.widths[1:], self.widths))
        self.skip_linears = nn.ModuleList(nn.Linear(2 * w, w) for w in self.widths[:-1])
        self.blocks = self._make_cells(functools.partial(packed_attention, backend=attention_backend))
        self.final_norm = PackedGroupNorm(width)
        self.final_conv = PackedConv(width, token_width)
        self._initialise()

    def _make_cells(self, attend: Attend) -> nn.ModuleList:
        """In the order of `_stages_of_cells`."""
        config = self.config
        cells = []
        for stage in self._stages_of_cells():
            width = self.widths[stage]
            cells.append(
                ResidualCell(
                    width,
                    width // self.head_width,
                    config["mlp_ratio"],
                    attend,
                    has_time=stage >= config["stages"] - NUM_TIME_STAGES,
                    relative_bias=config["relative_bias"],
                )
            )
        return nn.ModuleList(cells)

    def _stages_of_cells(self) -> list[int]:
        """Stage of each cell: all down, then all but the coarsest up."""
        down = list(range(self.config["stages"]))
        return [stage for stage in down + down[-2::-1] for _ in range(self.config["depth"])]

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.x_embedder.init_weights()
        self.t_embedder.init_weights()
        for cell in self.blocks:
            cell.block.init_weights()
        nn.init.zeros_(self.final_conv.proj.weight)

    def forward(self, inputs: PackedInputs) -> Tensor:
        """(L, token_width) float32: the prediction for every token.

        Raises:
            ValueError: dropped tokens.
        """
        config, levels = self.config, inputs.layouts[self.levels_key].levels
        text_MD, text_segments, pooled_SD = self.text_embedder(inputs)
        condition_SD = self.t_embedder(inputs) + pooled_SD
        x_LD = self.x_embedder(inputs) + self.tokenizer(inputs.tokens_LD, levels[0].around_L9).float()
        conditions = [
            (*_rotary(level, self.head_width), condition(condition_SD), text(text_MD), text_segments)
            for level, condition, text in zip(levels, self.condition_linears, self.text_linears, strict=True)
        ]
        cells = iter(zip(self._stages_of_cells(), self.blocks, strict=True))

        def run_stage(stage: int, x_LD: Tensor) -> Tensor:
            for _ in range(config["depth"]):
                found, cell = next(cells)
                assert found == stage
                x_LD = cell(x_LD, levels[stage], *conditions[stage])
            return x_LD

        skips = []
        for stage in range(config["stages"]):
            x_LD = run_stage(stage, x_LD)
            if stage < config["stages"] - 1:
                skips.append(x_LD)
                x_LD = self.down_convs[stage](x_LD, levels[stage].down_K9).float()
        for stage in reversed(range(config["stages"] - 1)):
            x_LD = self.up_convs[stage](x_LD[levels[stage].parent_L], levels[stage].around_L9).float()
            x_LD = self.skip_linears[stage](torch.cat([x_LD, skips.pop()], dim=-1)).float()
            x_LD = run_stage(stage, x_LD)
        x_LD = F.silu(self.final_norm(x_LD, levels[0].frames))
        return self.final_conv(x_LD, levels[0].around_L9).float()

    def flops(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], token_shapes: Sequence[Shape3] = ()
    ) -> float:
        """Forward and backward of cells, resampling and skips.

        Args:
            token_shapes: where they are not known, a sample is counted as one square frame.
        """
        shapes = list(token_shapes) or [(1, max(1, round(n**0.5)), -(-n // max(1, round(n**0.5)))) for n in num_tokens]
        text, total, stages, cells = sum(num_text_tokens), 0.0, self._stages_of_cells(), self.config["stages"]
        for stage, width in enumerate(self.widths):
            num_cells = stages.count(stage)
            for shape, text in zip(shapes, num_text_tokens, strict=True):
                has_time = stage >= cells - NUM_TIME_STAGES
                total += num_cells * _cell_flops(shape, text, width, self.config["window"], has_time=has_time)
                if stage < cells - 1:
                    tokens, coarse = math.prod(shape), math.prod(coarser(shape))
                    resampling = 18.0 * width * self.widths[stage + 1] * (tokens + coarse)
                    total += resampling + 4.0 * width * width * tokens
            shapes = [coarser(shape) for shape in shapes]
        return FORWARD_AND_BACKWARD * total

    def activation_bytes(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], *, precision: str, checkpointed: bool
    ) -> int:
        per_cell, per_time = ACTIVATION_BYTES_PER_TOKEN_AND_WIDTH[precision], TIME_BYTES_PER_TOKEN_AND_WIDTH[precision]
        stages, saved, largest = self._stages_of_cells(), 0.0, 0.0
        for stage, width in enumerate(self.widths):
            numbers = sum(num_tokens) * width / 4**stage
            has_time = stage >= self.config["stages"] - NUM_TIME_STAGES
            of_cell = (per_cell + per_time * has_time) * numbers
            saved += stages.count(stage) * (4 * numbers if checkpointed else of_cell)
            largest = max(largest, of_cell)
        return int(saved + (largest if checkpointed else 0))


def _rotary(level: GridLevel, head_width: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Angles in the order of the windows and in that of the places."""
    of_windows, of_places = (
        rotary_cos_sin(layout.gather(level.position_L3), head_width) for layout in (level.windows, level.places)
    )
    return of_windows, of_places


def _cell_flops(shape: Shape3, text: int, width: int, window: int, *, has_time: bool) -> float:
    """Forward of one cell for one sample: convolution, attention in windows, cross-attention, MLP, attention along time."""
    frames, rows, columns = shape
    tokens = frames * rows * columns
    linear, square = layer_flops_coefficients(width)
    sides = [[window] * (side // window) + [side % window] for side in (rows, columns)]
    squares = frames * sum((height * across) ** 2 for height in sides[0] for across in sides[1])
    total = 18.0 * width * width * tokens + linear * tokens + square * squares
    total += 4.0 * width * width * (tokens + text) + 4.0 * width * tokens * text
    if has_time:
        total += 8.0 * width * width * tokens + square * rows * columns * frames**2
    return total


class ResidualCell(nn.Module):
    """x + DiffiT block of (3 x 3 convolution of x), and attention along time behind it in the coarse stages."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        attend: Attend,
        *,
        has_time: bool,
        relative_bias: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.norm = PackedGroupNorm(width)
        self.conv = PackedConv(width, width)
        self.block = DiffitBlock(width, num_heads, mlp_ratio, attend, relative_bias=relative_bias)
        self.time_norm = nn.LayerNorm(width, elementwise_affine=False, eps=NORM_EPS) if has_time else None
        self.time_attention = TimeSelfAttention(width, num_heads, attend) if has_time else None

    def forward(
        self,
        x_LD: Tensor,
        level: GridLevel,
        window_rotary: tuple[Tensor, Tensor],
        place_rotary: tuple[Tensor, Tensor],
        condition_SD: Tensor,
        text_MD: Tensor,
        text_segments: Segments,
    ) -> Tensor:
        """Layouts keep the order of the samples, so `level.segments` are those of a layout's order too."""
        windows, places = level.windows, level.places
        y_LD = self.conv(F.silu(self.norm(x_LD, level.frames)), level.around_L9).float()
        positions = level.window_positions if self.block.attention.relative_bias is not None else None
        y_LD = self.block(
            windows.gather(y_LD), window_rotary, level.segments, condition_SD, text_MD, text_segments, positions,
            windows.segments,
        )  # fmt: skip
        y_LD = windows.scatter(y_LD)
        if self.time_norm is not None and self.time_attention is not None:
            h_LD = places.gather(self.time_norm(y_LD))
            h_LD = self.time_attention(h_LD, place_rotary, level.segments, condition_SD, None, places.segments)
            y_LD = y_LD + places.scatter(h_LD)
        return x_LD + y_LD

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the cell so that packs of other lengths do not recompile it."""
        compile_around_attention(self, *args, **kwargs)
