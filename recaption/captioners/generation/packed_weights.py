"""The matrices of CoCa's two text towers, laid out for decoding: a few rows at a time, again and again.

A step reads every weight once for a handful of rows, so its time is that of reading them. On a CPU the matrices are put
into oneDNN's blocked layout once, same arithmetic; that copy is as large as the towers. In bfloat16 it is half of it, and
with `int8` a quarter. Elsewhere they stay as they are. What all of it gains: tests/benchmarks/recaption/bench_generate.py.

    weights = StepWeights(coca)            once per captioner; the model's weights must not change afterwards
    generate(coca, image_tokens_BND, weights=weights, special=special)

int8 is of the weights alone, one scale per output: activations keep their type, so that a caption does not depend on
which others are decoded with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.errors import UsageError

PACKED_MIN_WEIGHTS = 2**16
"""Smaller matrices stay in the cache anyway; the packed product costs more to call than it saves."""


Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """One residual attention block."""

    block: Any
    inward: Linear
    """Query, key and value of a self-attention block; the query of a cross-attention block."""
    keys_values: Linear
    """Of a cross-attention block, for the image tokens."""
    outward: Linear
    widen: Linear
    narrow: Linear

    def after_attention(self, x_RPD: Tensor, attended_RPD: Tensor) -> Tensor:
        """Projection, residual, MLP."""
        block = self.block
        x_RPD = x_RPD + block.ls_1(self.outward(attended_RPD))
        return x_RPD + block.ls_2(self.narrow(block.mlp.gelu(self.widen(block.ln_2(x_RPD)))))


class StepWeights:
    """What `DecodingSteps` multiplies by."""

    def __init__(self, coca: nn.Module, *, packed: bool = True, int8: bool = False) -> None:
        """
        Args:
            packed: False: the model's own matrices, for a single use.
            int8: matrices rounded to 8 bits; the model must be in bfloat16.

        Raises:
            UsageError: towers of another kind, or int8 of a model in another type.
        """
        text: Any = coca.text
        decoder: Any = coca.text_decoder
        if int8 and text.positional_embedding.dtype != torch.bfloat16:
            raise UsageError(f"int8 decoding is of models in bfloat16, not {text.positional_embedding.dtype}")
        layout = _int8 if int8 else _packed if packed else _plain
        self.text_blocks = [_block(block, layout) for block in text.transformer.resblocks]
        self.decoder_blocks = [_block(block, layout) for block in decoder.resblocks]
        self.cross_blocks = [_block(block, layout, is_cross=True) for block in decoder.cross_attn]
        projection = decoder.text_projection
        self.vocabulary: Linear = nn.Identity() if projection is None else layout(projection.T, None)


def _block(block: Any, layout: Callable[[Tensor, Tensor | None], Linear], *, is_cross: bool = False) -> BlockWeights:
    attn = block.attn
    if not isinstance(attn, nn.MultiheadAttention):
        raise UsageError(f"cached decoding knows nn.MultiheadAttention, not {type(attn).__name__}")
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    width = attn.embed_dim
    query_bias, other_bias = (None, None) if bias is None else (bias[:width], bias[width:])
    return BlockWeights(
        block=block,
        inward=layout(weight[:width], query_bias) if is_cross else layout(weight, bias),
        keys_values=_plain(weight[width:], other_bias),  # once per clip, hundreds of rows: nothing to gain
        outward=layout(attn.out_proj.weight, attn.out_proj.bias),
        widen=layout(block.mlp.c_fc.weight, block.mlp.c_fc.bias),
        narrow=layout(block.mlp.c_proj.weight, block.mlp.c_proj.bias),
    )


def _plain(weight_OI: Tensor, bias_O: Tensor | None) -> Linear:
    return lambda x: F.linear(x, weight_OI, bias_O)


def _packed(weight_OI: Tensor, bias_O: Tensor | None) -> Linear:
    is_known = weight_OI.device.type == "cpu" and weight_OI.dtype in (torch.float32, torch.bfloat16)
    if not is_known or not torch.backends.mkldnn.is_available() or weight_OI.numel() < PACKED_MIN_WEIGHTS:
        return _plain(weight_OI, bias_O)
    with torch.inference_mode():
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous(), None)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, blocked, bias_O, "none", [], "")


def _int8(weight_OI: Tensor, bias_O: Tensor | None) -> Linear:
    with torch.inference_mode():
        scale_O = weight_OI.float().abs().amax(dim=1).clamp(min=1e-12) / 127
        rounded_OI = (weight_OI.float() / scale_O[:, None]).round().to(torch.int8).contiguous()
        scale_O = scale_O.to(weight_OI.dtype)

    def multiply(x: Tensor) -> Tensor:
        out = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), rounded_OI, scale_O)
        return out.view(*x.shape[:-1], -1) if bias_O is None else out.view(*x.shape[:-1], -1) + bias_O

    return multiply
