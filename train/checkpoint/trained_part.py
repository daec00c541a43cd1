"""Checkpoints of the trained part of a model alone: adapters or temporal layers, without the frozen base they sit in.

    base = FrozenBase(spec="RUN/train/images", weights_hash="0f3c...")        # recorded in config.json
    tensors = trained_part(model.state_dict(keep_vars=True))            # what is saved
    weights = with_base(config, weights)                                # the whole model again, for sampling

The base is named by where it lies and checked by the hash of its weights: a file of 3 GB that every checkpoint would repeat.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from recaption.errors import CheckpointMismatchError
from recaption.weights import weights_hash
from train.checkpoint.step_folder import find

Value = TypeVar("Value")
BaseReader = Callable[[str], dict[str, Tensor]]
"""spec -> weights, on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenBase:
    """The frozen weights that a trained part belongs to."""

    spec: str
    """Step folder or RUN/train/NAME of a checkpoint, or what the reader of the model takes."""
    weights_hash: str
    """`weights_hash` of the base's weights."""
    prefix: str = ""
    """Of the names that the base's weights have in the whole model."""

    @property
    def config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def trained_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters that are trained, and buffers, which no gradient tells apart; of `model.state_dict(keep_vars=True)`."""
    return {
        name: tensor for name, tensor in state.items() if tensor.requires_grad or not isinstance(tensor, nn.Parameter)
    }


def read_checkpoint_base(spec: str) -> dict[str, Tensor]:
    """(EMA) weights of the checkpoint at `spec`.

    Raises:
        UsageError: no checkpoint there.
    """
    checkpoint = find(spec)
    return checkpoint.weights(ema=checkpoint.has_ema)


def with_base(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    source: str,
    read_base: BaseReader = read_checkpoint_base,
    *,
    other_base: str = "",
) -> dict[str, Tensor]:
    """The weights of a whole model: those of a checkpoint, over the base that its config names, if it names one.

    Args:
        other_base: spec of another base to put them over, whatever its weights are; the caller has compared the configs.

    Raises:
        CheckpointMismatchError: the base has other weights by now; the message begins with `source`.
    """
    saved = config.get("base")
    if saved is None:
        return dict(weights)
    base = FrozenBase(**saved)
    frozen = read_base(other_base or base.spec)
    found = "" if other_base else weights_hash(frozen)
    if found and found != base.weights_hash:
        raise CheckpointMismatchError(
            f"{source} was trained over {base.spec} with weights {base.weights_hash}, there are {found} now: "
            "put the old ones back"
        )
    return {**{base.prefix + name: tensor for name, tensor in frozen.items()}, **weights}
