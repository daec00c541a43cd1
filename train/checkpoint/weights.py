"""Weights of a checkpoint: reading, and loading into a model."""

from __future__ import annotations

from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from recaption.errors import CheckpointMismatchError


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
