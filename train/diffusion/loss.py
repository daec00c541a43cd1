"""The diffusion loss, averaged per sample and weighted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recaption.errors import UsageError
from train.layers.segments import Segments

LOSS_NORMS = ("sample", "token", "tokens^P")


def flow_loss(
    answer_LD: Tensor,
    target_LD: Tensor,
    segments: Segments,
    *,
    norm: str,
    counted_L: Tensor | None = None,
    weight_S: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of squared errors and the weight to divide by, once summed over rows, ranks and accumulation steps.

    Dividing the sums, and not averaging averages, gives the same gradient for any arrangement of the same samples.

    Args:
        norm: `sample` = every clip counts the same (DiT's weighting), `token` = every token does (favours long clips),
            `tokens^P` = a clip counts its number of tokens to the power P, between the two for P from 0 to 1.
        counted_L: bool, the tokens that enter loss and weight; default: all. A sample with none of them weighs nothing.
        weight_S: factor on each sample's loss, not on its share in the weight to divide by.
    """
    power = norm_power(norm)
    error_L = (answer_LD.float() - target_LD.float()).square().mean(-1)
    if counted_L is None:
        counted_L = torch.ones_like(error_L, dtype=torch.bool)
    error_L = torch.where(counted_L, error_L, 0)
    error_S, count_S = (segments.sum(values_L[:, None])[:, 0] for values_L in (error_L, counted_L.float()))
    share_S = torch.where(count_S > 0, count_S.clamp(min=1) ** power, 0)
    loss_S = share_S * error_S / count_S.clamp(min=1)
    return (loss_S if weight_S is None else loss_S * weight_S).sum(), share_S.sum()


def norm_power(norm: str) -> float:
    """The power of its number of tokens that a sample counts: 0 for `sample`, 1 for `token`.

    Raises:
        UsageError: no loss normalisation of that name.
    """
    if norm in ("sample", "token"):
        return float(norm == "token")
    try:
        power = float(norm.removeprefix("tokens^")) if norm.startswith("tokens^") else math.nan
    except ValueError:
        power = math.nan
    if not 0 <= power < math.inf:
        raise UsageError(
            f"unknown loss_norm {norm!r}: choose one of {', '.join(LOSS_NORMS)} (P at least 0, as in tokens^0.5)"
        )
    return power
