"""Everything of a training that a checkpoint keeps as tensors, under the keys of its files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.checkpoint.safetensors_storage import as_shard, local_part
from train.checkpoint.step_folder import EMA, MODEL, OPTIMIZER, keyed
from train.engine.ema import WeightAverage
from train.engine.optimizer import moments
from train.parallel.fsdp import drop_gathered


class TrainingState:
    """Weights, moments and average, whole or this rank's parts of them: `tensors()` is what is saved and read into."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.AdamW, average: WeightAverage | None) -> None:
        self.model, self.optimizer, self.average = model, optimizer, average

    def tensors(self) -> dict[str, Tensor]:
        """The very memory of the training, by FILE/NAME."""
        drop_gathered(self.model)
        found = keyed(MODEL, _parts(self.model.state_dict()))
        if self.average is not None:
            found |= keyed(EMA, self.average.tensors())
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                own = moments(self.optimizer, parameter)
                found |= keyed(OPTIMIZER, _parts({f"{name}.{kind}": tensor for kind, tensor in own.items()}))
        return found


def _parts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = {name: as_shard(local_part(tensor), tensor) for name, tensor in tensors.items()}
    return {name: part for name, part in parts.items() if part is not None}
