"""QK-RMSNorm: queries and keys normalised per head, in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from train.layers.rope import _is_plain_cpu


class HeadNorm(nn.RMSNorm):
    """RMSNorm; where torch has a kernel for it, in the dtype of its input: that wants the weight in the same dtype, also
    under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        if _is_plain_cpu(x):
            return _Normed.apply(x, self.weight, self.eps)
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class _Normed(torch.autograd.Function):
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
        by_place = grad * normed
        grad_weight = by_place.flatten(0, -2).sum(0).to(weight.dtype)
        along = (by_place @ weight.to(by_place.dtype)).div_(x.shape[-1])
        grad_x = (grad * weight).sub_(normed.mul_(along[..., None])).mul_(scale)
        return grad_x.to(x.dtype), grad_weight, None
