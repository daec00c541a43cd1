"""The diffusion loss: mean squared error per sample, weighted and summed over a pack."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recaption.errors import UsageError
from train.layers.segments import Segments

LOSS_NORMS = ("sample", "token", "tokens^P")


def diffusion_loss(
    prediction_LD: Tensor,
    target_LD: Tensor,
    segments: Segments,
    *,
    norm: str,
    loss_mask_L: Tensor | None = None,
    weight_S: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of squared errors, and the weight to divide by once both are summed over packs, ranks and
    accumulation steps.

    Dividing sums instead of averaging averages gives the same gradient for any arrangement of the same samples.

    Args:
        norm: `sample` = every clip counts the same (DiT's weighting), `token` = every token does (favours long clips),
            `tokens^P` = a clip counts its number of tokens to the power P, between the two for P from 0 to 1.
        loss_mask_L: bool, the tokens that enter loss and weight; default: all. A sample with none of them weighs nothing.
        weight_S: factor on each sample's loss, not on its part of the weight to divide by.
    """
    power = norm_power(norm)
    error_L = (prediction_LD.float() - target_LD.float()).square().mean(-1)
    if loss_mask_L is None:
        loss_mask_L = torch.ones_like(error_L, dtype=torch.bool)
    error_L = torch.where(loss_mask_L, error_L, 0)
    error_S, count_S = (segments.sum(values_L[:, None])[:, 0] for values_L in (error_L, loss_mask_L.float()))
    norm_S = torch.where(count_S > 0, count_S.clamp(min=1) ** power, 0)
    loss_S = norm_S * error_S / count_S.clamp(min=1)
    return (loss_S if weight_S is None else loss_S * weight_S).sum(), norm_S.sum()


def norm_power(norm: str) -> float:
    """The power P with which a sample counts tokens^P: 0 for `sample`, 1 for `token`.

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
