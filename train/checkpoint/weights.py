"""Weights of a checkpoint: reading, loading into a model, and their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from recaption.errors import CheckpointMismatchError


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """First 12 hex digits of the sha256 over names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Strict `load_state_dict`.

    Raises:
        CheckpointMismatchError: names or shapes differ; the message begins with `source`.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointMismatchError(f"{source} does not fit the model: {reason}") from error


def read_weights(path: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointMismatchError: missing, or not safetensors.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointMismatchError(f"{path} cannot be read: {error}") from error
