"""The tensors of a training run that a checkpoint saves and restores: weights, EMA, AdamW moments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.checkpoint.safetensors_storage import TensorShard
from train.checkpoint.step_folder import EMA_FILE, MODEL_FILE, OPTIMIZER_FILE, with_file_prefix
from train.checkpoint.trained_part import trained_part
from train.engine.ema import EMA
from train.engine.optimizer import adam_state
from train.parallel.fsdp import reshard


class TrainState:
    """Weights, AdamW moments and EMA, or this rank's shards of them, saved from and loaded into the live tensors."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.AdamW, ema: EMA | None, *, has_frozen_base: bool = False
    ) -> None:
        """
        Args:
            has_frozen_base: what is not trained belongs to a base that is kept elsewhere: no file repeats it.
        """
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.has_frozen_base = has_frozen_base

    def tensors(self) -> dict[str, Tensor | TensorShard]:
        """The live tensors (no copies), keyed by FILE/NAME."""
        reshard(self.model)
        state = self.model.state_dict(keep_vars=True)
        saved = trained_part(state).keys() if self.has_frozen_base else state.keys()
        tensors = with_file_prefix(MODEL_FILE, {name: state[name].detach() for name in saved})
        if self.ema is not None:
            averages = self.ema.tensors()
            tensors |= with_file_prefix(EMA_FILE, {name: averages[name] for name in saved})
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                state = adam_state(self.optimizer, parameter)
                tensors |= with_file_prefix(
                    OPTIMIZER_FILE, {f"{name}.{kind}": tensor for kind, tensor in state.items()}
                )
        return tensors
