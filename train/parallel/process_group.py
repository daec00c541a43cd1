"""Process group, ranks and devices: one process per device, under torchrun, under Ray Train or standalone.

    with process_group("auto", timeout_minutes=30) as device:      # joins torchrun's group, if any; destroyed at the end
        total = sum_over_ranks(weight)                              # all-reduce; a no-op with one rank

A collective that another rank does not join within the timeout ends the process. What only rank 0 does (validation,
sampling) is waited for in a group with a longer one (control.py).

Without FSDP, gradients are all-reduced after the last backward of a step (collectives.py), not by a DDP wrapper: a task
may call any method of its model, and the divisor (the loss weights of all ranks) is known only then.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from recaption.errors import UsageError

DEFAULT_TIMEOUT_MINUTES = 30.0
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
    return _own_gpu(device) if device.type == "cuda" else device


def _own_gpu(device: torch.device) -> torch.device:
    """This rank's GPU: the one named, or that of LOCAL_RANK; raises UsageError where ranks would share one."""
    if not torch.cuda.is_available():
        raise UsageError(f"device {str(device)!r} requested, but torch finds no CUDA device; pass --device cpu")
    local_rank, num_devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.index is None:
        if local_rank >= num_devices:
            raise UsageError(
                f"LOCAL_RANK {local_rank} has no GPU of its own: this machine has {num_devices}; start {num_devices} ranks "
                "here (torchrun --nproc-per-node, --num-workers)"
            )
        return torch.device("cuda", local_rank)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    if ranks_here > 1:
        raise UsageError(
            f"device {str(device)!r} would put all {ranks_here} ranks of this machine on one GPU; pass cuda, which gives "
            "each rank its own"
        )
    if device.index >= num_devices:
        raise UsageError(f"device {str(device)!r} requested, but there are only {num_devices} CUDA devices")
    return device


PRECISIONS = ("auto", "fp32", "bf16")


def choose_precision(name: str, device: torch.device | str) -> str:
    """Resolve a precision of inference: `auto` is bf16 on a GPU and fp32 on a CPU.

    Raises:
        UsageError: no such precision.
    """
    if name not in PRECISIONS:
        raise UsageError(f"precision {name!r} is unknown; there are: {', '.join(PRECISIONS)}")
    if name == "auto":
        return "bf16" if torch.device(device).type == "cuda" else "fp32"
    return name


@contextmanager
def process_group(
    device_name: str = "auto", *, timeout_minutes: float = DEFAULT_TIMEOUT_MINUTES
) -> Iterator[torch.device]:
    """Yield this rank's device inside the process group of torchrun's environment (RANK, WORLD_SIZE, ...).

    An existing group (Ray Train) is used and not destroyed. A single process needs none.

    Args:
        timeout_minutes: how long a collective waits for the other ranks.
    """
    device = choose_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    is_owner = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if is_owner:
        is_cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            timeout=timedelta(minutes=timeout_minutes),
            device_id=device if is_cuda else None,
        )
    try:
        yield device
    finally:
        if is_owner:
            dist.destroy_process_group()
