"""AdamW and learning-rate schedule.

    optimizer = build_optimizer(model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    set_lr(optimizer, lr_at(step, peak=1e-3, num_steps=1000, warmup_steps=50, schedule="cosine"))
    apply_step(optimizer, skip=loss_was_not_finite)      # a tensor, so no host sync

The trainer calls these in this order, then `EMA.update` (ema.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from recaption.errors import UsageError

SCHEDULES = ("cosine", "wsd", "constant")


def split_for_decay(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Split the trainable parameters into those with and without weight decay.

    Matrices and convolution kernels decay; norms, biases, scalar scales, embeddings and learned positions do not.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decay: dict[str, nn.Parameter] = {}
    no_decay: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        leaf = name.rsplit(".", 1)[-1]
        is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings and "embed" not in leaf
        (decay if is_matrix else no_decay)[name] = parameter
    return decay, no_decay


def build_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters; only the fused kernel can skip a step without a host sync.

    Raises:
        UsageError: no trainable parameter.
    """
    decay, no_decay = split_for_decay(model)
    if not decay and not no_decay:
        raise UsageError("the model has no trainable parameter")
    groups = [
        {"params": list(decay.values()), "weight_decay": weight_decay},
        {"params": list(no_decay.values()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


def lr_at(
    step: int,
    *,
    peak: float,
    num_steps: int,
    warmup_steps: int,
    schedule: str,
    final_fraction: float = 0.0,
    decay_fraction: float = 0.2,
) -> float:
    """Learning rate of step `step` (from 0): linear warmup, then `schedule`.

    `constant`; `cosine`: half a cosine; `wsd` (warmup, stable, decay; arXiv 2404.06395): constant, then linear decay
    over the last `decay_fraction` of all steps. Both end at `final_fraction * peak` on the last step.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    last = num_steps - 1
    first = warmup_steps if schedule == "cosine" else max(warmup_steps, last - round(decay_fraction * num_steps))
    progress = min(1.0, max(0, step - first) / max(1, last - first))
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return peak * (final_fraction + (1 - final_fraction) * remaining)


def adam_state(optimizer: torch.optim.AdamW, parameter: nn.Parameter) -> dict[str, Tensor]:
    """AdamW's state of a parameter (`step`, `exp_avg`, `exp_avg_sq`), zero-initialised if no step was taken yet."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def total_norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """Global gradient norm, over all ranks if the gradients are sharded."""
    norm = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def apply_step(optimizer: torch.optim.AdamW, *, skip: Tensor) -> None:
    """One optimizer step; if the scalar `skip` is 1., weights and moments stay as they are, decided on the device."""
    # The fused kernel's own flag, which torch.amp.GradScaler sets too.
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
    optimizer.step()
