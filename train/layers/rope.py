"""3-D rotary position embedding (RoPE) for packs: each axis (frame, row, column) rotates its part of a head.

    rotary = rotary_cos_sin(position_L3, head_width)                     # (cos_LF, sin_LF), once for all blocks
    q_LHD = apply_rotary_emb(q_LHD, rotary)

On a CPU the rotation is an autograd function that saves nothing but the angles: written out, forward and backward take
2.2x as long.

Shape suffixes: L tokens, H heads, D width of a head, F = D / 2 rotation frequencies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROPE_THETA = 10_000.0


def rotary_axis_dims(head_width: int) -> tuple[int, int, int]:
    """Dimensions of a head for (frame, row, column): 64 gives (24, 20, 20), as in Wan."""
    spatial = 2 * (head_width // 6)
    return head_width - 2 * spatial, spatial, spatial


def rotary_cos_sin(position_L3: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """(cos_LF, sin_LF) of each token's rotation, F = head_width / 2.

    Attention then depends on the distance along each axis only, so any grid size is valid.
    """
    angles = []
    for axis, axis_width in enumerate(rotary_axis_dims(head_width)):
        exponents = torch.arange(0, axis_width, 2, dtype=torch.float32, device=position_L3.device) / axis_width
        angles.append(position_L3[:, axis, None].float() * ROPE_THETA**-exponents)
    angle_LF = torch.cat(angles, dim=-1)
    return angle_LF.cos(), angle_LF.sin()


def apply_rotary_emb(x_LHD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (i, i + D/2) of every head by its token's angle, at least in float32."""
    cos, sin = rotary[0][:, None], rotary[1][:, None]
    if is_eager_cpu(x_LHD):
        return _RotaryFunction.apply(x_LHD, cos, sin)
    a, b = x_LHD.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def is_eager_cpu(x: Tensor) -> bool:
    """Where the autograd functions are worth it: torch.compile fuses the written-out formulas itself."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class _RotaryFunction(torch.autograd.Function):
    """Rotation whose backward is the inverse rotation: saves nothing but the angles, which all blocks share."""

    @staticmethod
    def forward(ctx: Any, x_LHD: Tensor, cos_L1F: Tensor, sin_L1F: Tensor) -> Tensor:
        ctx.save_for_backward(cos_L1F, sin_L1F)
        ctx.dtype = x_LHD.dtype
        return _rotated(x_LHD, cos_L1F, sin_L1F, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_LHD: Tensor) -> tuple[Tensor | None, ...]:
        cos_L1F, sin_L1F = ctx.saved_tensors
        return _rotated(grad_LHD, cos_L1F, sin_L1F, -1.0).to(ctx.dtype), None, None


def _rotated(x_LHD: Tensor, cos_L1F: Tensor, sin_L1F: Tensor, sign: float) -> Tensor:
    exact = torch.promote_types(x_LHD.dtype, cos_L1F.dtype)
    out_LHD = torch.empty_like(x_LHD, dtype=exact)
    (a, b), cos_L1F, sin_L1F = x_LHD.to(exact).chunk(2, dim=-1), cos_L1F.to(exact), sin_L1F.to(exact)
    out_a, out_b = out_LHD.chunk(2, dim=-1)
    torch.mul(a, cos_L1F, out=out_a).addcmul_(b, sin_L1F, value=-sign)
    torch.mul(b, cos_L1F, out=out_b).addcmul_(a, sin_L1F, value=sign)
    return out_LHD
