"""Copies to the device that nothing waits for: from pinned memory, non-blocking.

    batch = to_device(batch, device)          # a whole batch, once per step
    index_L = copied(index_L, device)         # one tensor

A copy from memory that is not pinned waits until the device has finished everything before it, also with `non_blocking`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def copied(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`; from the CPU to a GPU by way of pinned memory, so that neither of them waits."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move tensors in nested tuples, lists and dicts, and objects with `.to(device)`; anything else is returned as is."""
    if isinstance(batch, Tensor):
        return copied(batch, device)
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        return type(batch)(to_device(value, device) for value in batch)  # type: ignore[call-arg]
    return batch
