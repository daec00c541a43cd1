"""Weights of CoCa's two text towers, packed for fast decoding of a few rows at a time on a CPU.

A decoding step reads every weight once for a handful of rows, so it is bound by memory bandwidth. On a CPU the matrices
are converted once to oneDNN's blocked layout (same arithmetic); that copy is as large as the towers, half of it in
bfloat16, a quarter with `int8`. On other devices they stay as they are. Speed: tests/benchmarks/recaption/bench_generate.py.

    weights = PackedWeights(coca)            once per captioner; the model's weights must not change afterwards
    generate(coca, image_tokens_BND, weights=weights, special=special)

int8 is weight-only, with one scale per output channel: activations keep their type, so that a caption does not depend
on the other rows of its batch.
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
"""Smaller matrices fit the CPU cache anyway; there the packed product costs more to call than it saves."""
Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """Linear layers of one residual attention block."""

    block: Any
    qkv_proj: Linear
    """Query, key and value of a self-attention block; only the query of a cross-attention block."""
    kv_proj: Linear
    """Keys and values of a cross-attention block, applied to the image tokens."""
    out_proj: Linear
    fc1: Linear
    fc2: Linear

    def out_proj_and_mlp(self, x_RPD: Tensor, attended_RPD: Tensor) -> Tensor:
        """Output projection, residual, MLP, residual."""
        block = self.block
        x_RPD = x_RPD + block.ls_1(self.out_proj(attended_RPD))
        return x_RPD + block.ls_2(self.fc2(block.mlp.gelu(self.fc1(block.ln_2(x_RPD)))))


class PackedWeights:
    """Linear layers of both text towers and the LM head, as `CachedDecoder` calls them."""

    def __init__(self, coca: nn.Module, *, packed: bool = True, int8: bool = False) -> None:
        """
        Args:
            packed: False uses the model's own matrices, without a copy: for a single call.
            int8: weight-only 8-bit quantization; the model must be in bfloat16.

        Raises:
            UsageError: an unsupported attention layer, or int8 with a model that is not in bfloat16.
        """
        text: Any = coca.text
        decoder: Any = coca.text_decoder
        if int8 and text.positional_embedding.dtype != torch.bfloat16:
            raise UsageError(f"int8 decoding needs a model in bfloat16, not {text.positional_embedding.dtype}")
        layout = _int8 if int8 else _packed if packed else _plain
        self.text_blocks = [_block(block, layout) for block in text.transformer.resblocks]
        self.decoder_blocks = [_block(block, layout) for block in decoder.resblocks]
        self.cross_blocks = [_block(block, layout, is_cross=True) for block in decoder.cross_attn]
        projection = decoder.text_projection
        self.lm_head: Linear = nn.Identity() if projection is None else layout(projection.T, None)


def _block(block: Any, layout: Callable[[Tensor, Tensor | None], Linear], *, is_cross: bool = False) -> BlockWeights:
    attn = block.attn
    if not isinstance(attn, nn.MultiheadAttention):
        raise UsageError(f"cached decoding supports nn.MultiheadAttention, not {type(attn).__name__}")
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    width = attn.embed_dim
    query_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
    return BlockWeights(
        block=block,
        qkv_proj=layout(weight[:width], query_bias) if is_cross else layout(weight, bias),
        kv_proj=_plain(weight[width:], kv_bias),  # once per clip, hundreds of rows: packing gains nothing
        out_proj=layout(attn.out_proj.weight, attn.out_proj.bias),
        fc1=layout(block.mlp.c_fc.weight, block.mlp.c_fc.bias),
        fc2=layout(block.mlp.c_proj.weight, block.mlp.c_proj.bias),
    )


def _plain(weight_OI: Tensor, bias_O: Tensor | None) -> Linear:
    return lambda x: F.linear(x, weight_OI, bias_O)


def _packed(weight_OI: Tensor, bias_O: Tensor | None) -> Linear:
    is_supported = weight_OI.device.type == "cpu" and weight_OI.dtype in (torch.float32, torch.bfloat16)
    if not is_supported or not torch.backends.mkldnn.is_available() or weight_OI.numel() < PACKED_MIN_WEIGHTS:
        return _plain(weight_OI, bias_O)
    with torch.inference_mode():
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous(), None)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, blocked, bias_O, "none", [], "")


def _int8(weight_OI: Tensor, bias_O: Tensor | None) -> Linear:
    with torch.inference_mode():
        scale_O = weight_OI.float().abs().amax(dim=1).clamp(min=1e-12) / 127
        quantized_OI = (weight_OI.float() / scale_O[:, None]).round().to(torch.int8).contiguous()
        scale_O = scale_O.to(weight_OI.dtype)

    def multiply(x: Tensor) -> Tensor:
        out = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), quantized_OI, scale_O)
        return out.view(*x.shape[:-1], -1) if bias_O is None else out.view(*x.shape[:-1], -1) + bias_O

    return multiply
