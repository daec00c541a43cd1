"""FSDP2: every rank keeps a part of each weight, of its moments and of its average, and gathers a block when it is used.

    shard(model, device=device, precision="bf16", group=agreement.group)      # before the optimizer is made
    set_gradient_sync(model, is_last)       # per batch of a step: only the last one sums over the ranks

`model.blocks` are gathered one at a time, what is left of the model as one more unit. Gradients are summed over the ranks,
never averaged: what a step is divided by is known only after its last batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from recaption.errors import UsageError
from train.parallel import process_group as distributed
from train.parallel.collectives import broadcast_module

PARALLEL = ("auto", "ddp", "fsdp")


ROOM_FOR_STATE = 0.5
"""Share of a device's memory that weights, moments and average may take on every rank before `auto` shards them."""


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers that a model names in `blocks`: what is gathered, and compiled, one at a time; else none."""
    blocks = getattr(model, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList) else []


def is_to_be_sharded(parallel: str, model: nn.Module, *, name: str, state_bytes: int, device_bytes: int | None) -> bool:
    """What `parallel` means here.

    Args:
        name: of the task.
        state_bytes: weights, gradients, moments and average of the whole model.
        device_bytes: memory of a rank's device; None: not known.

    Raises:
        UsageError: `fsdp` for one rank, or for a model that names no blocks.
    """
    num_ranks = distributed.num_ranks()
    if parallel == "fsdp" and num_ranks == 1:
        raise UsageError("parallel fsdp spreads a model over ranks, and there is one: use auto, or start several")
    if parallel == "fsdp" and not blocks_of(model):
        raise UsageError(f"the {name} names no blocks to be gathered one at a time: train it with parallel ddp")
    is_too_full = device_bytes is not None and state_bytes > ROOM_FOR_STATE * device_bytes
    return parallel == "fsdp" or (parallel == "auto" and num_ranks > 1 and is_too_full and bool(blocks_of(model)))


def recompute_blocks(model: nn.Module, *, name: str) -> None:
    """Let every block keep its input only and compute the rest again in the backward pass, with the same dropout.

    Raises:
        UsageError: a model that names no blocks; `name` is the task's.
    """
    if not blocks_of(model):
        raise UsageError(f"the {name} names no blocks that could be recomputed: leave recompute off")
    for block in blocks_of(model):
        # Not a wrapper around the block, which would change the names of its weights.
        if not isinstance(block.forward, functools.partial):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def shard(model: nn.Module, *, device: torch.device, precision: str, group: dist.ProcessGroup | None) -> None:
    """Replace the parameters by DTensors on `device`; rank 0's values win. The model may lie on the CPU and not fit.

    Args:
        precision: bf16 gathers bfloat16 weights and sums float32 gradients. Inputs of blocks keep their types: autocast
            decides what is computed in which.
        group: for tensors on the CPU.
    """
    if next(model.parameters()).device.type == "cpu":
        broadcast_module(model, group)
    if precision == "bf16":
        for module in model.modules():
            if type(module) is nn.LayerNorm:
                module.forward = functools.partial(_layer_norm, module)  # type: ignore[method-assign]
    mesh = init_device_mesh(device.type, (distributed.num_ranks(),))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for unit in _units(model):  # none of these is handed on to the units inside
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
        unit.set_reduce_scatter_unused_params(True, recurse=False)


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    """In float32 with gathered bfloat16 weights: what autocast does on a GPU only."""
    weight, bias = (None if tensor is None else tensor.float() for tensor in (module.weight, module.bias))
    return F.layer_norm(x.float(), module.normalized_shape, weight, bias, module.eps)


def set_gradient_sync(model: nn.Module, is_on: bool) -> None:
    """Whether the next backward sums its gradients over the ranks, or keeps them for one that does."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(is_on)


def drop_gathered(model: nn.Module) -> None:
    """Forget gathered weights: those under the parameters have changed, or memory is needed."""
    for unit in _units(model):
        unit.reshard()


def _units(model: nn.Module) -> Iterator[FSDPModule]:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            yield module
