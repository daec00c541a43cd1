"""Process group, ranks and devices: one process per device, under torchrun, under Ray Train or standalone.

    with process_group("auto") as device:      # joins torchrun's group, if any; destroyed at the end
        total = sum_over_ranks(weight)          # all-reduce; a no-op with one rank

Without FSDP, gradients are all-reduced after the last backward of a step (collectives.py), not by a DDP wrapper: a task
may call any method of its model, and the divisor (the loss weights of all ranks) is known only then.
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


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def num_local_ranks() -> int:
    """Ranks on this machine (LOCAL_WORLD_SIZE of torchrun and Ray Train); all ranks if that is not set."""
    return min(num_ranks(), int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks())))


def choose_device(name: str = "auto") -> torch.device:
    """Resolve a device name: `auto` is this rank's GPU if there is one, else the CPU; otherwise a torch device name.

    Raises:
        UsageError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r} is not a torch device; try cpu, cuda or cuda:1") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"device {name!r} requested, but torch finds no CUDA device; pass --device cpu")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        if device.index >= torch.cuda.device_count():
            raise UsageError(f"device {name!r} requested, but there are only {torch.cuda.device_count()} CUDA devices")
    return device


@contextmanager
def process_group(device_name: str = "auto") -> Iterator[torch.device]:
    """Yield this rank's device inside the process group of torchrun's environment (RANK, WORLD_SIZE, ...).

    An existing group (Ray Train) is used and not destroyed. A single process needs none.
    """
    device = choose_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    is_owner = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if is_owner:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        if is_owner:
            dist.destroy_process_group()


def to_device(batch: Any, device: torch.device) -> Any:
    """Move tensors in nested tuples, lists and dicts, and objects with `.to(device)`; anything else is returned as is."""
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
