"""Collectives over ranks: all-reduce, differentiable all-gather, broadcast of weights, gradient all-reduce."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.parallel.process_group import num_ranks, rank

BUCKET_BYTES = 32 << 20
"""Gradients are all-reduced in flat buckets of about this size: few messages, little extra memory."""
MAX_PENDING_BUCKETS = 4
"""Flat copies that exist at a time: enough to keep the network busy, and not all gradients a second time."""
MAX_FLAT_BYTES = BUCKET_BYTES * MAX_PENDING_BUCKETS


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """All-reduce (sum) in place; returns the same tensor."""
    if num_ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(tensor: Tensor) -> Tensor:
    """All-gather tensors of equal shape, concatenated along dimension 0 in rank order; no gradient."""
    if num_ranks() == 1:
        return tensor
    tensors = [torch.empty_like(tensor) for _ in range(num_ranks())]
    dist.all_gather(tensors, tensor.contiguous())
    return torch.cat(tensors)


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Differentiable `gather`: the backward pass sums each row's gradient over ranks and returns it to its own rank.

    Forward and backward are collective: every rank must run both equally often and in the same order.
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
    """Broadcast rank 0's parameters and buffers to all ranks; `group` defaults to the device group."""
    if num_ranks() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0, group=group)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """All-reduce the gradients in flat buckets; all ranks must pass the same parameters in the same order."""
    if num_ranks() == 1:
        return
    bucket: list[Tensor] = []
    num_bytes = 0
    pending: deque[tuple[Tensor, list[Tensor], dist.Work]] = deque()
    for index, parameter in enumerate(parameters):
        assert parameter.grad is not None
        bucket.append(parameter.grad)
        num_bytes += parameter.grad.nbytes
        is_last = index + 1 == len(parameters)
        if is_last or num_bytes >= BUCKET_BYTES or parameters[index + 1].dtype != parameter.dtype:
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            pending.append((flat, bucket, dist.all_reduce(flat, async_op=True)))
            del flat
            bucket, num_bytes = [], 0
            if len(pending) == MAX_PENDING_BUCKETS:
                _take_back(*pending.popleft())
    while pending:
        _take_back(*pending.popleft())


def _take_back(flat: Tensor, gradients: Sequence[Tensor], work: dist.Work) -> None:
    """Wait for the sum of a bucket, on the device, and copy it into its gradients."""
    work.wait()
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(summed.view_as(gradient))
