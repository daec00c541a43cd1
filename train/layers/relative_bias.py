"""Relative position bias: a learned number per head and distance, added to the attention scores.

    bias = RelativePositionBias(num_heads=6, reach=(1, 16, 16))         # of 16 x 16 tokens of one frame, or of any more
    out_LHD = packed_attention(q_LHD, k_LHD, v_LHD, segments, segments, bias=bias(PackedPositions(position_L3, segments)))

With one frame it is the table of Swin and BEiT (arXiv 2103.14030, 2106.08254), indexed by (query - key) along rows and
columns; here along frames too. Distances beyond the reach take the number at the table's rim, so that any size is valid.

Shape suffixes: L tokens of a pack, S samples, H heads, 3 = (frame, row, column), N = distances of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recaption.errors import UsageError
from train.layers.segments import Segments

Reach = tuple[int, int, int]
"""(frames, rows, columns) of the largest grid whose distances all have numbers of their own."""


class PackedPositions:
    """The positions of a pack's tokens, and which samples have equal ones. Made once per pack, used by all blocks."""

    def __init__(self, position_L3: Tensor, segments: Segments) -> None:
        self.position_L3, self.segments = position_L3, segments
        self._index_LL: dict[tuple[int, Reach], Tensor] = {}

    @cached_property
    def axes_L(self) -> tuple[Tensor, Tensor, Tensor]:
        """Frame, row and column of each token, contiguous."""
        frame_L, row_L, column_L = (axis_L.contiguous() for axis_L in self.position_L3.unbind(1))
        return frame_L, row_L, column_L

    @cached_property
    def same_as_S(self) -> tuple[int, ...]:
        """A number for each sample: equal where all distances between tokens are, as in windows of one size.

        Read from the tensor: a host sync on a GPU, where only the backend `loop` asks.
        """
        numbers: dict[bytes, int] = {}
        parts = self.position_L3.cpu().split(list(self.segments.lengths))
        return tuple(
            numbers.setdefault((part - part[:1]).numpy().tobytes(), len(numbers)) if len(part) else -1 for part in parts
        )

    def index_LL(self, sample: int, reach: Reach) -> Tensor:
        """Row of the table for each pair (query, key) of one sample; one tensor for all blocks."""
        if (sample, reach) not in self._index_LL:
            start = sum(self.segments.lengths[:sample])
            axes = self.position_L3[start : start + self.segments.lengths[sample]].unbind(1)
            queries, keys = [axis_L[:, None] for axis_L in axes], [axis_L[None] for axis_L in axes]
            self._index_LL[sample, reach] = _index(queries, keys, reach)
        return self._index_LL[sample, reach]


class PositionBias(NamedTuple):
    """What `packed_attention` adds to the scores of a pack."""

    table_NH: Tensor
    reach: Reach
    positions: PackedPositions
    gain_SH: Tensor | None = None
    """Factor 1 + gain on each sample's bias; None: 1."""

    def of_sample(self, sample: int) -> Tensor:
        """(H, L, L): the bias between the tokens of one sample, without the gain."""
        return self.table_NH[self.positions.index_LL(sample, self.reach)].permute(2, 0, 1)

    def score_mod(self) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
        """flex_attention's `score_mod`: no L x L tensor is made."""
        axes, table_NH, reach, gain_SH = self.positions.axes_L, self.table_NH, self.reach, self.gain_SH
        segment_ids_L = self.positions.segments.segment_ids_L

        def biased(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            bias = table_NH[_index([axis[query] for axis in axes], [axis[key] for axis in axes], reach), head]
            return score + (bias if gain_SH is None else bias * (1 + gain_SH[segment_ids_L[query], head]))

        return biased


def _index(queries: Sequence[Tensor], keys: Sequence[Tensor], reach: Reach) -> Tensor:
    """Row of the table for each distance query - key, clipped at the reach."""
    index = torch.zeros_like(queries[0])
    for query, key, width in zip(queries, keys, reach):
        index = index * (2 * width - 1) + (query - key).clamp(1 - width, width - 1) + (width - 1)
    return index


class RelativePositionBias(nn.Module):
    """The table of one attention layer, from a normal distribution of standard deviation 0.02."""

    def __init__(self, num_heads: int, reach: Sequence[int]) -> None:
        """
        Args:
            reach: a `Reach`.

        Raises:
            UsageError: not three positive numbers.
        """
        super().__init__()
        if len(reach) != 3 or min(reach) < 1:
            raise UsageError(
                f"relative_bias = {tuple(reach)} must be three numbers, (frames, rows, columns), at least 1"
            )
        self.reach = (int(reach[0]), int(reach[1]), int(reach[2]))
        frames, rows, columns = (2 * width - 1 for width in self.reach)
        self.table_NH = nn.Parameter(torch.empty(frames * rows * columns, num_heads))
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.normal_(self.table_NH, std=0.02)

    def forward(self, positions: PackedPositions, gain_SH: Tensor | None = None) -> PositionBias:
        """What `packed_attention` takes as `bias`."""
        return PositionBias(self.table_NH, self.reach, positions, gain_SH)
