"""Collectives over ranks: sums, gathers with gradients, broadcast of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.parallel.process_group import BUCKET_BYTES, num_ranks, rank


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum in place; returns the same tensor."""
    if num_ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(tensor: Tensor) -> Tensor:
    """The tensors of all ranks (of the same shape) one after another along the first dimension; no gradient."""
    if num_ranks() == 1:
        return tensor
    pieces = [torch.empty_like(tensor) for _ in range(num_ranks())]
    dist.all_gather(pieces, tensor.contiguous())
    return torch.cat(pieces)


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """As `gather`; what any rank's loss says about a row goes back to the rank that it came from.

    Both directions are collective: every rank must call this, and go backward, as often and in the same order.
    """
    return _Gather.apply(tensor) if num_ranks() > 1 else tensor  # type: ignore[no-any-return,no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.num_rows = len(tensor)
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        summed = sum_over_ranks(gradient.clone())
        return summed.narrow(0, rank() * ctx.num_rows, ctx.num_rows)


def broadcast_module(module: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Every rank gets rank 0's parameters and buffers. `group`: default is the one of the devices."""
    if num_ranks() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0, group=group)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum every parameter's gradient over ranks, in flat buckets; all ranks must pass the same parameters in order."""
    if num_ranks() == 1:
        return
    bucket: list[Tensor] = []
    num_bytes = 0
    sent: list[tuple[Tensor, list[Tensor], dist.Work]] = []
    for index, parameter in enumerate(parameters):
        assert parameter.grad is not None
        bucket.append(parameter.grad)
        num_bytes += parameter.grad.nbytes
        is_last = index + 1 == len(parameters)
        if is_last or num_bytes >= BUCKET_BYTES or parameters[index + 1].dtype != parameter.dtype:
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            sent.append((flat, bucket, dist.all_reduce(flat, async_op=True)))
            bucket, num_bytes = [], 0
    for flat, gradients, work in sent:
        work.wait()
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(summed.view_as(gradient))
