"""Exponential moving average (EMA) of the weights, in float32; used for sampling, validation and export.

    ema = EMA(model, decay=0.999)
    ema.update(step)                 # after each optimizer step
    with ema.swapped_in():           # the model computes with the averaged weights
        task.validate(model, step)

If the model is sharded (FSDP2), each rank averages its own shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recaption.errors import UsageError
from train.checkpoint.safetensors_storage import TensorShard, local_shard, shard_of
from train.parallel.fsdp import reshard


class EMA:
    """EMA of the trainable weights; frozen weights and buffers are taken from the model.

    The decay warms up as (1 + step) / (10 + step) to its final value, so that the average soon forgets the initialisation.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise UsageError(f"{decay = } is not between 0 and 1")
        self.model, self.decay = model, decay
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._averages = [local_shard(parameter).float().clone() for parameter in self._trainable]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update after optimizer step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, parameter in zip(self._averages, self._trainable):
            average.lerp_(local_shard(parameter).to(average.dtype), 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Context in which the model has the averaged weights; the trained ones are restored bit for bit."""
        weights = [local_shard(parameter).clone() for parameter in self._trainable]
        self._set_weights(self._averages)
        try:
            yield
        finally:
            self._set_weights(weights)

    @torch.no_grad()
    def _set_weights(self, values: list[Tensor]) -> None:
        reshard(self.model)
        for parameter, value in zip(self._trainable, values):
            local_shard(parameter).copy_(value)

    def tensors(self) -> dict[str, TensorShard]:
        """The averaged state dict, frozen tensors and buffers included; a checkpoint may be loaded into it in place."""
        reshard(self.model)
        averages = dict(zip(map(id, self._trainable), self._averages))
        state = self.model.state_dict(keep_vars=True)
        return {name: shard_of(tensor, averages.get(id(tensor))) for name, tensor in state.items()}
