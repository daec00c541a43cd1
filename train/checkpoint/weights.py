"""Weights of a checkpoint: reading, and loading into a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from recaption.errors import CheckpointMismatchError

Model = TypeVar("Model", bound=nn.Module)


def build_model(
    build: Callable[..., Model], config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str
) -> Model:
    """The model that a checkpoint's config describes, with its weights.

    Built without memory first: a config whose sizes are not those of the weights must not allocate them.

    Args:
        config: keyword arguments of `build`.

    Raises:
        CheckpointMismatchError: the config is not one of such a model, or the weights do not fit it; the message begins with
            `source`.
    """
    num_numbers = sum(tensor.numel() for tensor in weights.values())
    too_large = [f"{name} = {value}" for name, value in config.items() if _is_larger(value, num_numbers)]
    if too_large:
        raise CheckpointMismatchError(
            f"{source} does not fit its config: {too_large[0]}, with {num_numbers} numbers of weights"
        )
    try:
        with torch.device("meta"):
            _check_fits(build(**config), weights, source)
        model = build(**config)
    except CheckpointMismatchError:
        raise
    except Exception as error:  # whatever a constructor makes of arguments of the wrong type
        reason = str(error).strip().split("\n", 1)[0][:200]
        raise CheckpointMismatchError(
            f"{source} has a config that describes no model ({type(error).__name__}: {reason})"
        ) from error
    load_weights(model, weights, source)
    return model


def _is_larger(value: Any, num_numbers: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > max(num_numbers, 1)


def _check_fits(blank: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in blank.state_dict().items()}
    saved = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(own.keys() | saved.keys()):
        if own.get(name) != saved.get(name):
            raise CheckpointMismatchError(
                f"{source} does not fit the model: {name} has shape {saved.get(name)} in the checkpoint, {own.get(name)} in "
                "the model"
            )


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
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointMismatchError(f"{path} cannot be read: {error}") from error
