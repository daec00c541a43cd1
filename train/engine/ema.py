"""The running average of the weights, in float32: what samples, validation and users of a checkpoint get.

    average = WeightAverage(model, decay=0.999)
    average.update(step)                          # after each optimizer step
    with average.in_place_of_weights():           # the model computes with the average
        task.validate(model, step)

Where the model is sharded, so is the average: each rank keeps the average of its own part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recaption.errors import UsageError
from train.checkpoint.safetensors_storage import as_shard, local_part
from train.parallel import fsdp as sharding


class WeightAverage:
    """Exponential moving average of the trainable weights; frozen weights and buffers are those of the model.

    The decay rises as (1 + step) / (10 + step) up to its final value, so that early samples are not of the init.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise UsageError(f"{decay = } is not between 0 and 1")
        self.model, self.decay = model, decay
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._averages = [local_part(parameter).float().clone() for parameter in self._trained]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` finished steps (1 = after the first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, parameter in zip(self._averages, self._trained):
            average.lerp_(local_part(parameter).to(average.dtype), 1 - decay)

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Inside, the model's weights are the average; afterwards they are what they were, to the bit."""
        weights = [local_part(parameter).clone() for parameter in self._trained]
        self._set_weights(self._averages)
        try:
            yield
        finally:
            self._set_weights(weights)

    @torch.no_grad()
    def _set_weights(self, values: list[Tensor]) -> None:
        sharding.drop_gathered(self.model)
        for parameter, value in zip(self._trained, values):
            local_part(parameter).copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """By the names of the model's state dict, in memory that a checkpoint may be read into; frozen ones included."""
        sharding.drop_gathered(self.model)
        averages = dict(zip(map(id, self._trained), self._averages))
        found = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            part = as_shard(averages.get(id(tensor), local_part(tensor)), tensor)
            if part is not None:
                found[name] = part
        return found
