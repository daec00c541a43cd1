"""Self- and cross-attention modules over packs, with QK-norm, RoPE and relative position bias."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from train.layers.qk_norm import QKNorm
from train.layers.relative_bias import PackedPositions, RelativePositionBias
from train.layers.rope import apply_rotary_emb
from train.layers.segments import Segments

Attend = Callable[..., Tensor]
"""(q_LHD, k_MHD, v_MHD, segments_q, segments_k[, bias=]) -> out_LHD: `packed_attention` with a backend, or a stand-in."""


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
