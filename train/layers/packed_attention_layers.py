"""Self- and cross-attention modules over packs, with QK-norm and RoPE."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from train.layers.attention import packed_attention
from train.layers.qk_norm import QKNorm
from train.layers.rope import apply_rotary_emb
from train.layers.segments import Segments


@functools.cache
def attention_outside_compile() -> Callable[..., Tensor]:
    """`packed_attention` that torch.compile does not trace; one object for all blocks, so that they share a graph."""
    return torch.compiler.disable(packed_attention)


class PackedAttention(nn.Module):
    """Base class: `attend` can be replaced on an instance, for torch.compile."""

    def attend(
        self, q_LHD: Tensor, k_MHD: Tensor, v_MHD: Tensor, segments_q: Segments, segments_k: Segments, *, backend: str
    ) -> Tensor:
        return packed_attention(q_LHD, k_MHD, v_MHD, segments_q, segments_k, backend=backend)


class SelfAttention(PackedAttention):
    """Self-attention within each sample: QK-norm, then RoPE."""

    def __init__(self, width: int, num_heads: int, backend: str) -> None:
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = QKNorm(width // num_heads, eps=1e-6)
        self.k_norm = QKNorm(width // num_heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(self, x_LD: Tensor, rotary: tuple[Tensor, Tensor], segments: Segments) -> Tensor:
        q_LHD, k_LHD, v_LHD = self.qkv(x_LD).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        q_LHD = apply_rotary_emb(self.q_norm(q_LHD), rotary).to(v_LHD.dtype)
        k_LHD = apply_rotary_emb(self.k_norm(k_LHD), rotary).to(v_LHD.dtype)
        return self.out(self.attend(q_LHD, k_LHD, v_LHD, segments, segments, backend=self.backend).flatten(1))


class CrossAttention(PackedAttention):
    """Attention of each sample's tokens to the text tokens of the same sample."""

    def __init__(self, width: int, num_heads: int, backend: str) -> None:
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
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
        return self.out(self.attend(q_LHD, k_MHD, v_MHD, segments, text_segments, backend=self.backend).flatten(1))
