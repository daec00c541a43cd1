"""Ranks: one process per device, started by torchrun, Ray Train or nobody.

    with process_group("auto") as device:      # joins torchrun's group if there is one, leaves it again at the end
        total = sum_over_ranks(weight)          # the same number on every rank; unchanged where there is one rank

Gradients are summed here after the last backward of a step, not by a module wrapper: a task may call any method of its
model, and what a step divides by (the summed loss weights of all ranks) is known only then.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recaption.errors import UsageError

logger = logging.getLogger(__name__)

BUCKET_BYTES = 32 << 20
"""Gradients travel in flat pieces of about this size: few messages, little extra memory."""


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def num_ranks_here() -> int:
    """Ranks on this machine, as torchrun and Ray Train say it; all, where nobody does."""
    return min(num_ranks(), int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks())))


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is this rank's GPU where there is one, else the CPU; anything else is torch's own name of a device.

    Raises:
        UsageError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r} is not a name that torch knows; try cpu, cuda or cuda:1") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"device {name!r} asked for, but torch sees no CUDA device here; pass --device cpu")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        if device.index >= torch.cuda.device_count():
            raise UsageError(f"device {name!r} asked for, but there are only {torch.cuda.device_count()} CUDA devices")
    return device


@contextmanager
def process_group(device_name: str = "auto") -> Iterator[torch.device]:
    """Yield this rank's device inside the group that torchrun's environment (RANK, WORLD_SIZE, ...) describes.

    A group that somebody else has made (Ray Train) is used and left alone. One process alone needs no group.
    """
    device = choose_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ours = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        if ours:
            dist.destroy_process_group()


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


class Agreement:
    """Yes/no questions that every rank must answer alike, over a CPU group so that no GPU is waited for."""

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo") if num_ranks() > 1 else None

    def any(self, mine: bool) -> bool:
        """True on every rank if true on one."""
        if self.group is None:
            return mine
        flag = torch.tensor([int(mine)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flag.item())

    def gather(self, mine: object) -> list[object]:
        """What each rank passed, in rank order, on every rank."""
        if self.group is None:
            return [mine]
        gathered: list[object] = [None] * num_ranks()
        dist.all_gather_object(gathered, mine, group=self.group)
        return gathered

    def wait(self) -> None:
        """Return when every rank is here."""
        self.any(False)


class StopSignals:
    """While open, SIGTERM and the first Ctrl-C only leave a note; the loop reads it between steps."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        signal.signal(number, self._previous[number])  # asked a second time: stop at once
        logger.warning("told to stop: the step is finished and a checkpoint written first")

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def leave(self) -> None:
        """End the program the way that the signal asked for; also on ranks that did not get it."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of tuples, lists and dicts, and whatever has `.to(device)`; leave the rest."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        return type(batch)(to_device(value, device) for value in batch)  # type: ignore[call-arg]
    return batch
