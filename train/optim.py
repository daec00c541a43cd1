"""Optimizer, learning rate and the running average of the weights, the same for every task.

    optimizer = build_optimizer(model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    set_lr(optimizer, lr_at(step, peak=1e-3, num_steps=1000, warmup_steps=50, schedule="cosine"))
    apply_step(optimizer, skip=loss_was_not_finite)      # a tensor: nobody waits for the device

The trainer calls these in this order, then `WeightAverage.update`.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from recaption.errors import UsageError

SCHEDULES = ("cosine", "constant")


def split_for_decay(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Trainable parameters with and without weight decay.

    Matrices and convolution kernels decay; norms, biases, single scales, embeddings and learned positions do not:
    pulling those towards zero changes what they mean instead of how smooth the function is.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decay: dict[str, nn.Parameter] = {}
    rest: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        leaf = name.rsplit(".", 1)[-1]
        is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings and "embed" not in leaf
        (decay if is_matrix else rest)[name] = parameter
    return decay, rest


def build_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters. Fused, because that kernel can leave out a step without a host sync.

    Raises:
        UsageError: nothing to train.
    """
    decay, rest = split_for_decay(model)
    if not decay and not rest:
        raise UsageError("the model has no trainable parameter")
    groups = [
        {"params": list(decay.values()), "weight_decay": weight_decay},
        {"params": list(rest.values()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


def lr_at(
    step: int, *, peak: float, num_steps: int, warmup_steps: int, schedule: str, final_share: float = 0.0
) -> float:
    """Learning rate of the step that follows `step` finished ones: linear warmup, then constant or half a cosine.

    The cosine ends at `final_share * peak` on the last step.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    assert schedule == "cosine"
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps))
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def apply_step(optimizer: torch.optim.AdamW, *, skip: Tensor) -> None:
    """One optimizer step, left out on the device where `skip` (a scalar 0. or 1.) is 1: weights and moments stay."""
    # The fused kernel's own switch, the one that torch.amp.GradScaler sets.
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
    optimizer.step()


class WeightAverage:
    """Exponential moving average of the trainable weights in float32; frozen weights are shared, buffers copied.

    The decay rises as (1 + step) / (10 + step) up to its final value, so that early samples are not of the init.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise UsageError(f"{decay = } is not between 0 and 1")
        self.decay = decay
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.model = copy.deepcopy(model, memo=frozen)  # type: ignore[arg-type]
        self.model.eval()
        self._average: list[Tensor] = []
        self._source: list[Tensor] = []
        for mine, theirs in zip(self.model.parameters(), model.parameters()):
            if theirs.requires_grad:
                mine.requires_grad_(False)
                mine.data = mine.data.float()
                self._average.append(mine)
                self._source.append(theirs)
        self._buffers = list(zip(self.model.buffers(), model.buffers()))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` finished steps (1 = after the first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mine, theirs in zip(self._average, self._source):
            mine.lerp_(theirs.to(mine.dtype), 1 - decay)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
