"""Time-dependent self-attention of DiffiT (TMSA): the noise level changes what attends to what.

    [q, k, v] = W x + b + W_t c + b_t                # c: condition of the token's sample

One linear layer over the concatenation [x; c] would be the same; here the second part is computed once per sample, and
neither it nor the sum is kept per token for the backward. Formula after arXiv 2312.02139, equations 3 to 8.

Shape suffixes: L tokens of a pack, S samples, H heads, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from recaption.errors import UsageError
from train.layers.adaln import added_per_sample
from train.layers.packed_attention_layers import Attend, SelfAttention
from train.layers.relative_bias import PackedPositions
from train.layers.segments import Segments

TIME_IN = ("qkv", "bias")


class TimeSelfAttention(SelfAttention):
    """Self-attention whose queries, keys and values, or whose relative bias alone, depend on the sample's condition."""

    def __init__(
        self, width: int, num_heads: int, attend: Attend, *, time_in: str = "qkv", **self_attention: Any
    ) -> None:
        """
        Args:
            time_in: `qkv`; or `bias`, a factor 1 + gain on the relative bias of each head, which needs one.
            self_attention: options of `SelfAttention`.

        Raises:
            UsageError: another `time_in`, or no relative bias for it.
        """
        super().__init__(width, num_heads, attend, **self_attention)
        if time_in not in TIME_IN:
            raise UsageError(f"unknown time_in {time_in!r}: choose one of {', '.join(TIME_IN)}")
        if time_in == "bias" and self.relative_bias is None:
            raise UsageError("time_in 'bias' changes the relative bias: give the model a `relative_bias`")
        self.time_qkv = nn.Linear(width, 3 * width) if time_in == "qkv" else None
        self.time_gain = nn.Linear(width, num_heads) if time_in == "bias" else None

    def forward(  # type: ignore[override]
        self,
        x_LD: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        segments: Segments,
        condition_SD: Tensor,
        positions: PackedPositions | None = None,
    ) -> Tensor:
        qkv_LD, gain_SH = self.qkv(x_LD), None
        if self.time_qkv is not None:
            qkv_LD = added_per_sample(qkv_LD, self.time_qkv(condition_SD), segments)
        if self.time_gain is not None:
            gain_SH = self.time_gain(condition_SD)
        return self.attended(qkv_LD, rotary, segments, positions, gain_SH)
