"""Cost of a network that has no formula: FLOPs and saved bytes of one call on tensors without values, per token.

measured = measure(lambda: DenseBackbone(**config), (2, 32, 32))       # no memory, no arithmetic
measured.flops_per_token, measured.activation_bytes(4096, precision="bf16", checkpointed=True)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from packing.grid import Shape3
from train.backbones.flops import FORWARD_AND_BACKWARD
from train.backbones.interface import PackedInputs
from train.layers.segments import Segments
from train.text.encoder import EncodedText

NUM_TEXT_TOKENS = 77
BF16_SHARE = 0.6
"""Bytes that autocast to bfloat16 saves, of those of float32: norms and the residual stream stay float32."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Per token of the call."""

    flops_per_token: float
    """Forward and backward."""
    saved_bytes: float
    """For the backward, in float32."""
    largest_block_bytes: float
    """Of them by the block that saves the most."""
    block_inputs_bytes: float
    """Inputs of all blocks: what activation checkpointing keeps."""

    def activation_bytes(self, num_tokens: int, *, precision: str, checkpointed: bool) -> int:
        saved = self.block_inputs_bytes + self.largest_block_bytes if checkpointed else self.saved_bytes
        return int(saved * num_tokens * (BF16_SHARE if precision == "bf16" else 1))


def measure(build: Callable[[], Any], shape: Shape3) -> Measured:
    """Call a backbone on one sample of this token shape.

    Args:
        build: makes the backbone; called where tensors have no values.
    """
    num_tokens = math.prod(shape)
    saved, inputs, of_block = {"bytes": 0}, {"bytes": 0}, []

    def count(tensor: Tensor) -> Tensor:
        saved["bytes"] += tensor.nbytes * (tensor.untyped_storage()._cdata not in weights)
        return tensor

    def enter(block: nn.Module, args: Any, kwargs: Any) -> None:
        block.saved_before = saved["bytes"]  # type: ignore[assignment]
        leaves = torch.utils._pytree.tree_leaves((args, {**kwargs, "call": None}))
        inputs["bytes"] += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))

    def leave(block: nn.Module, args: Any, output: Any) -> None:
        of_block.append(saved["bytes"] - block.saved_before)  # type: ignore[operator]

    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        model = build()
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        for block in model.blocks:
            block.register_forward_pre_hook(enter, with_kwargs=True)
            block.register_forward_hook(leave)
        with counter, torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(_inputs(model.config, shape))
    return Measured(
        flops_per_token=FORWARD_AND_BACKWARD * counter.get_total_flops() / num_tokens,
        saved_bytes=saved["bytes"] / num_tokens,
        largest_block_bytes=max(of_block) / num_tokens,
        block_inputs_bytes=inputs["bytes"] / num_tokens,
    )


def _inputs(config: dict[str, Any], shape: Shape3) -> PackedInputs:
    """One sample without values, with a text and all else that the model takes."""
    num_tokens = math.prod(shape)
    text = EncodedText(
        torch.zeros(NUM_TEXT_TOKENS, config["text_width"]),
        Segments.from_lengths([NUM_TEXT_TOKENS]),
        torch.zeros(1, config["pooled_width"]),
    )
    return PackedInputs(
        tokens_LD=torch.zeros(num_tokens, config["token_width"]),
        position_L3=torch.zeros(num_tokens, 3, dtype=torch.int64),
        segments=Segments.from_lengths([num_tokens]),
        timestep_S=torch.zeros(1),
        text=text,
        hint_LD=torch.zeros(num_tokens, config["hint_width"]) if config["hint_width"] else None,
        scalars={name: torch.zeros(1) for name in config["scalars"]},
        token_shapes=(shape,),
    )
