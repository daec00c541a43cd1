"""adaLN-Zero on packs: per-sample (S, D) shift, scale and gate, without a copy per token kept for backward.

    y_LD = modulated_layer_norm(x_LD, shift_SD, scale_SD, segments)     # LN(x) * (1 + scale) + shift
    x_LD = gated_residual(x_LD, y_LD, gate_SD, segments)                # x + gate * y
    x_LD = added_per_sample(x_LD, y_SD, segments)                       # x + y

Written out (`scale_SD[segment_ids_L]`), autograd would keep every modulation once per token: a block then saves 1.45x the
memory of a plain batch. These functions save the normalised tokens and the (S, D) vectors, and expand again in backward.

Shape suffixes: L tokens of a pack, S samples of a pack, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.layers.segments import Segments

NORM_EPS = 1e-6


def modulated_layer_norm(x_LD: Tensor, shift_SD: Tensor, scale_SD: Tensor, segments: Segments) -> Tensor:
    """LayerNorm without affine weights, then `* (1 + scale) + shift` of the token's sample.

    Under autocast the result has autocast's dtype: the next layer would cast and save it anyway.
    """
    device_type = x_LD.device.type
    autocast = torch.is_autocast_enabled(device_type)
    out_dtype = torch.get_autocast_dtype(device_type) if autocast else x_LD.dtype
    return _ModulatedLayerNorm.apply(x_LD, shift_SD, scale_SD, segments, out_dtype)


def gated_residual(x_LD: Tensor, y_LD: Tensor, gate_SD: Tensor, segments: Segments) -> Tensor:
    """x + gate * y with the gate of each token's sample, in the dtype of x."""
    return _GatedResidual.apply(x_LD, y_LD, gate_SD, segments)


def added_per_sample(x_LD: Tensor, y_SD: Tensor, segments: Segments) -> Tensor:
    """x + y with the y of each token's sample, in the dtype of x. Nothing is kept for the backward."""
    return _AddedPerSample.apply(x_LD, y_SD, segments)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _ModulatedLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_LD: Tensor, shift_SD: Tensor, scale_SD: Tensor, segments: Segments, out_dtype: torch.dtype
    ) -> Tensor:
        exact = _at_least_float32(x_LD.dtype)
        normed_LD, _, rstd_L1 = torch.native_layer_norm(x_LD.to(exact), x_LD.shape[-1:], None, None, NORM_EPS)
        out_LD = (
            normed_LD * (1 + scale_SD.to(exact))[segments.segment_ids_L] + shift_SD.to(exact)[segments.segment_ids_L]
        )
        ctx.save_for_backward(normed_LD.to(out_dtype), rstd_L1, scale_SD)
        ctx.segments = segments
        ctx.dtypes = x_LD.dtype, shift_SD.dtype, scale_SD.dtype
        return out_LD.to(out_dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out_LD: Tensor) -> tuple[Tensor | None, ...]:
        normed_LD, rstd_L1, scale_SD = ctx.saved_tensors
        segments: Segments = ctx.segments
        exact = _at_least_float32(grad_out_LD.dtype)
        grad_out_LD, normed_LD = grad_out_LD.to(exact), normed_LD.to(exact)
        grad_shift_SD = segments.sum(grad_out_LD)
        grad_scale_SD = segments.sum(grad_out_LD * normed_LD)
        grad_normed_LD = grad_out_LD * (1 + scale_SD.to(exact))[segments.segment_ids_L]
        # d LN / d x: remove the components of the gradient along the mean and along the normalised token.
        along_L1 = (grad_normed_LD * normed_LD).mean(-1, keepdim=True)
        grad_x_LD = rstd_L1 * (grad_normed_LD - grad_normed_LD.mean(-1, keepdim=True) - normed_LD * along_L1)
        x_dtype, shift_dtype, scale_dtype = ctx.dtypes
        return grad_x_LD.to(x_dtype), grad_shift_SD.to(shift_dtype), grad_scale_SD.to(scale_dtype), None, None


class _GatedResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_LD: Tensor, y_LD: Tensor, gate_SD: Tensor, segments: Segments) -> Tensor:
        ctx.save_for_backward(y_LD, gate_SD)
        ctx.segments = segments
        return torch.addcmul(x_LD, y_LD.to(x_LD.dtype), gate_SD.to(x_LD.dtype)[segments.segment_ids_L])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out_LD: Tensor) -> tuple[Tensor | None, ...]:
        y_LD, gate_SD = ctx.saved_tensors
        segments: Segments = ctx.segments
        grad_y_LD = (grad_out_LD * gate_SD.to(grad_out_LD.dtype)[segments.segment_ids_L]).to(y_LD.dtype)
        exact = _at_least_float32(grad_out_LD.dtype)
        grad_gate_SD = segments.sum(grad_out_LD.to(exact) * y_LD.to(exact)).to(gate_SD.dtype)
        return grad_out_LD, grad_y_LD, grad_gate_SD, None


class _AddedPerSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_LD: Tensor, y_SD: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        ctx.dtype = y_SD.dtype
        return x_LD + y_SD.to(x_LD.dtype)[segments.segment_ids_L]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out_LD: Tensor) -> tuple[Tensor | None, ...]:
        segments: Segments = ctx.segments
        grad_y_SD = segments.sum(grad_out_LD.to(_at_least_float32(grad_out_LD.dtype)))
        return grad_out_LD, grad_y_SD.to(ctx.dtype), None
