"""QK-norm: RMSNorm of queries and keys per head.

On a CPU an autograd function in float32 that saves only its input: written out, forward and backward take 2.6x as long.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from train.layers.rope import is_eager_cpu


class QKNorm(nn.RMSNorm):
    """RMSNorm over the width of a head.

    Off the CPU by torch's kernel in the dtype of its input, which needs the weight in the same dtype. Outside of autocast,
    whose list for CUDA has rms_norm in float32: queries and keys would be kept for the backward twice, in both types.
    """

    def forward(self, x: Tensor) -> Tensor:
        if is_eager_cpu(x):
            return _RMSNormFunction.apply(x, self.weight, self.eps)
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class _RMSNormFunction(torch.autograd.Function):
    """x / rms(x) * weight over the last axis, at least in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        grad_normed = grad * normed
        grad_weight = grad_normed.flatten(0, -2).sum(0).to(weight.dtype)
        along = (grad_normed @ weight.to(grad_normed.dtype)).div_(x.shape[-1])
        grad_x = (grad * weight).sub_(normed.mul_(along[..., None])).mul_(scale)
        return grad_x.to(x.dtype), grad_weight, None
