"""Queries and keys of a head before they meet: normed, then turned by their token's position.

    norm = HeadNorm(head_width, eps=1e-6)
    rope = rope_angles(position_L3, head_width)                       # once for all blocks
    q_LHD = rotate(norm(q_LHD), rope)

3-D rotary positions: each axis (frame, row, column) has its share of a head's numbers. On a CPU both are functions of their
own that keep nothing but their input: written out, forward and backward take 2.6x (the norm) and 2.2x (the turn).

Shape suffixes: L tokens, H heads, D width of a head, F = D / 2 rotation frequencies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROPE_THETA = 10_000.0


def rope_axis_widths(head_width: int) -> tuple[int, int, int]:
    """How many of a head's numbers turn with (frame, row, column): 64 gives (24, 20, 20), as in Wan."""
    spatial = 2 * (head_width // 6)
    return head_width - 2 * spatial, spatial, spatial


def rope_angles(position_L3: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine (L, F), F = head_width / 2, of each token's rotation: absolute turns whose product in attention
    depends on the distance along each axis only, so that any grid size is as valid as another."""
    angles = []
    for axis, axis_width in enumerate(rope_axis_widths(head_width)):
        exponents = torch.arange(0, axis_width, 2, dtype=torch.float32, device=position_L3.device) / axis_width
        angles.append(position_L3[:, axis, None].float() * ROPE_THETA**-exponents)
    angle_LF = torch.cat(angles, dim=-1)
    return angle_LF.cos(), angle_LF.sin()


def rotate(x_LHD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + D/2) of every head by its token's angle; at least float32."""
    cos, sin = rope[0][:, None], rope[1][:, None]
    if _is_plain_cpu(x_LHD):
        return _Turned.apply(x_LHD, cos, sin)
    a, b = x_LHD.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _is_plain_cpu(x: Tensor) -> bool:
    """torch.compile makes one loop of the written-out formulas by itself."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class _Turned(torch.autograd.Function):
    """Backward turns the gradient back: nothing is kept but the angles, which all blocks share."""

    @staticmethod
    def forward(ctx: Any, x_LHD: Tensor, cos_L1F: Tensor, sin_L1F: Tensor) -> Tensor:
        ctx.save_for_backward(cos_L1F, sin_L1F)
        ctx.dtype = x_LHD.dtype
        return _turned(x_LHD, cos_L1F, sin_L1F, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_LHD: Tensor) -> tuple[Tensor | None, ...]:
        cos_L1F, sin_L1F = ctx.saved_tensors
        return _turned(grad_LHD, cos_L1F, sin_L1F, -1.0).to(ctx.dtype), None, None


def _turned(x_LHD: Tensor, cos_L1F: Tensor, sin_L1F: Tensor, sign: float) -> Tensor:
    exact = torch.promote_types(x_LHD.dtype, cos_L1F.dtype)
    out_LHD = torch.empty_like(x_LHD, dtype=exact)
    (a, b), cos_L1F, sin_L1F = x_LHD.to(exact).chunk(2, dim=-1), cos_L1F.to(exact), sin_L1F.to(exact)
    out_a, out_b = out_LHD.chunk(2, dim=-1)
    torch.mul(a, cos_L1F, out=out_a).addcmul_(b, sin_L1F, value=-sign)
    torch.mul(b, cos_L1F, out=out_b).addcmul_(a, sin_L1F, value=sign)
    return out_LHD
