"""FSDP2 sharding and activation checkpointing of a model's `blocks`.

    shard(model, device=device, precision="bf16", group=control.group)      # before the optimizer is built
    set_gradient_sync(model, is_last)       # per micro-batch: only the last one reduces over the ranks

Each of `model.blocks` is one FSDP unit, the rest of the model another. Gradients are summed over ranks, not averaged: the
divisor of a step (its summed loss weights) is known only after its last batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from recaption.errors import UsageError
from train.parallel import process_group
from train.parallel.collectives import broadcast_module

PARALLEL = ("auto", "ddp", "fsdp")
MAX_STATE_FRACTION = 0.5
"""`auto` shards once weights, gradients, moments and EMA take more than this fraction of a device's memory."""


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The model's `blocks` (nn.ModuleList): its units of FSDP, compile and checkpointing; [] if it has none."""
    blocks = getattr(model, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList) else []


def should_shard(parallel: str, model: nn.Module, *, name: str, state_bytes: int, device_bytes: int | None) -> bool:
    """Resolve `parallel` (auto, ddp, fsdp) to whether the model is sharded.

    Args:
        name: name of the task, for messages.
        state_bytes: weights, gradients, moments and EMA of the unsharded model.
        device_bytes: memory of a rank's device; None if unknown.

    Raises:
        UsageError: `fsdp` with one rank, or for a model without `blocks`.
    """
    num_ranks = process_group.num_ranks()
    if parallel == "fsdp" and num_ranks == 1:
        raise UsageError("parallel fsdp shards a model over ranks, and there is only one: use auto, or start several")
    if parallel == "fsdp" and not blocks_of(model):
        raise UsageError(f"the {name} model has no `blocks` to shard: train it with parallel ddp")
    is_too_large = device_bytes is not None and state_bytes > MAX_STATE_FRACTION * device_bytes
    return parallel == "fsdp" or (parallel == "auto" and num_ranks > 1 and is_too_large and bool(blocks_of(model)))


def apply_activation_checkpointing(model: nn.Module, *, name: str) -> None:
    """Checkpoint every block: it keeps only its input and is recomputed, with the same dropout, in the backward pass.

    Raises:
        UsageError: a model without `blocks`; `name` is the name of the task.
    """
    if not blocks_of(model):
        raise UsageError(f"the {name} model has no `blocks` to checkpoint: leave activation-checkpointing off")
    for block in blocks_of(model):
        # Patched, not wrapped: a wrapper module would change the names of the weights.
        if not isinstance(block.forward, functools.partial):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def shard(model: nn.Module, *, device: torch.device, precision: str, group: dist.ProcessGroup | None) -> None:
    """Apply FSDP2 with rank 0's values. The model may be on the CPU and larger than `device`.

    Args:
        precision: bf16 all-gathers bfloat16 weights and reduces float32 gradients. Inputs of blocks are not cast: autocast
            decides the compute dtypes.
        group: a group for CPU tensors; a model on GPUs is broadcast in the device group.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    broadcast_module(model, group if on_cpu else None)  # None: the ranks' own group, NCCL for a model on GPUs
    if precision == "bf16":
        for module in model.modules():
            if type(module) is nn.LayerNorm:
                module.forward = functools.partial(_layer_norm, module)  # type: ignore[method-assign]
    mesh = init_device_mesh(device.type, (process_group.num_ranks(),))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for unit in _units(model):  # these settings do not propagate to nested units
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
        unit.set_reduce_scatter_unused_params(True, recurse=False)


def place_frozen(
    networks: Iterable[nn.Module],
    device: torch.device,
    *,
    is_sharded: bool,
    precision: str,
    group: dist.ProcessGroup | None,
) -> None:
    """Networks that are not trained on the device, in eval mode, without gradients; with `blocks`, sharded on demand."""
    for network in networks:
        network.requires_grad_(False).eval()
        if is_sharded and blocks_of(network):
            shard(network, device=device, precision=precision, group=group)
        else:
            network.to(device)


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm in float32 with all-gathered bfloat16 weights, which autocast does on GPUs only."""
    weight, bias = (None if tensor is None else tensor.float() for tensor in (module.weight, module.bias))
    return F.layer_norm(x.float(), module.normalized_shape, weight, bias, module.eps)


def set_gradient_sync(model: nn.Module, is_on: bool) -> None:
    """Whether the next backward reduces gradients over ranks or accumulates them locally."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(is_on)


def reshard(model: nn.Module) -> None:
    """Free all-gathered weights, for example because the sharded ones have changed."""
    for unit in _units(model):
        unit.reshard()


def _units(model: nn.Module) -> Iterator[FSDPModule]:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            yield module
