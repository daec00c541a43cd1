"""Self- and cross-attention modules over packs, with QK-norm, RoPE and relative position bias."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recaption.errors import UsageError
from train.layers.adaln import added_per_sample
from train.layers.qk_norm import QKNorm
from train.layers.relative_bias import PackedPositions, RelativePositionBias
from train.layers.rope import apply_rotary_emb
from train.layers.segments import Segments

Attend = Callable[..., Tensor]
"""(q_LHD, k_MHD, v_MHD, segments_q, segments_k[, bias=]) -> out_LHD: `packed_attention` with a backend, or a stand-in."""

TIME_IN = ("qkv", "bias")
"""Where a condition can act on attention: on queries, keys and values, or as a factor on the relative bias."""


@functools.cache
def outside_compile(attend: Attend) -> Attend:
    """`attend`, not traced by torch.compile; one object for all blocks that have it, so that they share a graph."""
    return torch.compiler.disable(attend)


class SelfAttention(nn.Module):
    """Self-attention within each sample: QK-norm, then RoPE, then a relative position bias, where a model has them."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        attend: Attend,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = True,
        relative_bias: Sequence[int] = (),
    ) -> None:
        """
        Args:
            relative_bias: reach of the table of `RelativePositionBias`; empty: none.
        """
        super().__init__()
        self.num_heads, self.attend = num_heads, attend
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.q_norm = QKNorm(width // num_heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = QKNorm(width // num_heads, eps=1e-6) if qk_norm else nn.Identity()
        self.relative_bias = RelativePositionBias(num_heads, relative_bias) if relative_bias else None
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x_LD: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        segments: Segments,
        positions: PackedPositions | None = None,
    ) -> Tensor:
        """
        Args:
            rotary: of `rotary_cos_sin`; None: no rotation.
            positions: for the relative bias.
        """
        return self.attended(self.qkv(x_LD), rotary, segments, positions)

    def attended(
        self,
        qkv_LD: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        segments: Segments,
        positions: PackedPositions | None,
        gain_SH: Tensor | None = None,
    ) -> Tensor:
        """The layer behind its first projection.

        Args:
            gain_SH: on the relative bias, for each sample.
        """
        q_LHD, k_LHD, v_LHD = qkv_LD.unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        q_LHD, k_LHD = self.q_norm(q_LHD), self.k_norm(k_LHD)
        if rotary is not None:
            q_LHD, k_LHD = apply_rotary_emb(q_LHD, rotary), apply_rotary_emb(k_LHD, rotary)
        q_LHD, k_LHD = q_LHD.to(v_LHD.dtype), k_LHD.to(v_LHD.dtype)
        if self.relative_bias is None:
            return self.out(self.attend(q_LHD, k_LHD, v_LHD, segments, segments).flatten(1))
        assert positions is not None
        bias = self.relative_bias(positions, gain_SH)
        return self.out(self.attend(q_LHD, k_LHD, v_LHD, segments, segments, bias=bias).flatten(1))


class TimeSelfAttention(SelfAttention):
    """Time-dependent self-attention (TMSA) of DiffiT: the sample's condition c, with its noise level, acts on attention.

    [q, k, v] = W x + b + W_t c + b_t, equations 3 to 8 of arXiv 2312.02139. One linear layer over the concatenation [x; c]
    would be the same; here the second part is computed once per sample, and nothing of it is kept for each token.
    """

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
        attention_segments: Segments | None = None,
    ) -> Tensor:
        """
        Args:
            segments: of the samples, whose condition acts.
            attention_segments: tokens that attend to each other, parts of the samples; None: whole samples. `positions` are
                of these. Not with time in the bias.
        """
        qkv_LD, gain_SH = self.qkv(x_LD), None
        if self.time_qkv is not None:
            qkv_LD = added_per_sample(qkv_LD, self.time_qkv(condition_SD), segments)
        if self.time_gain is not None:
            gain_SH = self.time_gain(condition_SD)
        return self.attended(qkv_LD, rotary, attention_segments or segments, positions, gain_SH)


class CrossAttention(nn.Module):
    """Attention of each sample's tokens to the text tokens of the same sample."""

    def __init__(self, width: int, num_heads: int, attend: Attend) -> None:
        super().__init__()
        self.num_heads, self.attend = num_heads, attend
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.q_norm = QKNorm(width // num_heads, eps=1e-6)
        self.k_norm = QKNorm(width // num_heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(self, x_LD: Tensor, segments: Segments, text_MD: Tensor, text_segments: Segments) -> Tensor:
        q_LHD = self.q(x_LD).unflatten(-1, (self.num_heads, -1))
        k_MHD, v_MHD = self.kv(text_MD).unflatten(-1, (2, self.num_heads, -1)).unbind(1)
        q_LHD = self.q_norm(q_LHD).to(v_MHD.dtype)
        k_MHD = self.k_norm(k_MHD).to(v_MHD.dtype)
        return self.out(self.attend(q_LHD, k_MHD, v_MHD, segments, text_segments).flatten(1))


def compile_around_attention(block: nn.Module, *args: Any, dynamic: bool | None = True, **kwargs: Any) -> None:
    """Compile a block of a backbone so that packs of other lengths do not recompile it.

    All sizes are dynamic, and attention stays outside of the graph: it loops over samples or is a kernel of its own.
    Wrappers of activation checkpointing or FSDP around `forward` stay outside too: torch.compile cannot trace them.
    """
    for module in block.modules():
        if hasattr(module, "attend"):
            module.attend = outside_compile(module.attend)
    forward: Any = block.forward
    if isinstance(forward, functools.partial):  # torch.utils.checkpoint around the block's forward
        inner = torch.compile(forward.args[0], *args, dynamic=dynamic, **kwargs)
        block.forward = functools.partial(forward.func, inner, **forward.keywords)  # type: ignore[method-assign]
    else:
        block.forward = torch.compile(forward, *args, dynamic=dynamic, **kwargs)  # type: ignore[method-assign]
