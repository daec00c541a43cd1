"""Weights of a checkpoint: loading them, and the hash that names them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from recaption.errors import CheckpointMismatchError


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """First 12 hex digits of the sha256 of names, types, shapes and values: the same weights, the same hash."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load by name, all of them.

    Raises:
        CheckpointMismatchError: names or shapes differ; `source` is named.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointMismatchError(f"{source} does not fit the model: {reason}") from error


def _load_weights(path: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointMismatchError(f"{path} cannot be read: {error}") from error
