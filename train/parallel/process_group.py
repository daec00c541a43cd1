"""Ranks: one process per device, started by torchrun, Ray Train or nobody.

    with process_group("auto") as device:      # joins torchrun's group if there is one, leaves it again at the end
        total = sum_over_ranks(weight)          # the same number on every rank; unchanged where there is one rank

Gradients are summed here after the last backward of a step, not by a module wrapper: a task may call any method of its
model, and what a step divides by (the summed loss weights of all ranks) is known only then.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

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
