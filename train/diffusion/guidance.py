"""Classifier-free guidance: how far past the prompt's own answer to go, and when.

    guidance = Guidance(scale=4.0, interval=(0.1, 0.8), rescale=0.7)
    weight_S = guidance.weights(timestep_S)                # 1 outside the interval: no second model call needed there
    answer_LD = guidance.combine(conditional_LD, unconditional_LD, timestep_S, segments)

Shape suffixes: L tokens of a row, S samples, D numbers per token. t = 1 is noise, t = 0 clean. All of it works on the
model's answer as it is (velocity, epsilon, x0 or v): at one point x they differ by an affine map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recaption.errors import UsageError
from train.layers.segments import Segments


@dataclass(frozen=True, kw_only=True)
class Guidance:
    scale: float = 4.0
    """1 = the prompt as trained (one model call instead of two), above 1 = more of what the prompt changes."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest t that is guided; 1 elsewhere (arXiv 2404.07724)."""
    rescale: float = 0.0
    """Share from 0 to 1 by which the answer is brought back to the spread that it has without guidance (0.7 in arXiv
    2305.08891): high scales otherwise saturate."""
    power: float = 0.0
    """s of the power-cosine schedule, (scale - 1) (1 - cos(pi (1 - t)^s)) / 2 + 1: from 1 at noise to `scale` at clean
    (4 in MDT, arXiv 2303.14389); 0 = the same scale throughout."""

    @classmethod
    def of(cls, guidance: float | Guidance) -> Guidance:
        return guidance if isinstance(guidance, Guidance) else cls(scale=guidance)

    def check(self) -> None:
        """Raises UsageError where a setting makes no sense, or has no effect."""
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise UsageError(f"guidance interval {low} to {high}: give two times with 0 <= low < high <= 1")
        if not 0 <= self.rescale <= 1:
            raise UsageError(f"guidance rescale = {self.rescale} must be a share from 0 to 1")
        if self.power < 0:
            raise UsageError(f"guidance power = {self.power} is negative; 0 turns the power-cosine schedule off")
        if self.scale == 1 and (self.interval != (0, 1) or self.rescale or self.power):
            raise UsageError("a guidance of 1 is none, its interval, rescale and power have no effect: leave them out")

    def weights(self, timestep_S: Tensor) -> Tensor:
        """The scale at each sample's time."""
        weight_S = torch.full_like(timestep_S, self.scale)
        if self.power:
            weight_S = (self.scale - 1) * (1 - torch.cos(math.pi * (1 - timestep_S) ** self.power)) / 2 + 1
        is_inside_S = (self.interval[0] <= timestep_S) & (timestep_S <= self.interval[1])
        return torch.where(is_inside_S, weight_S, 1.0)

    def combine(
        self, conditional_LD: Tensor, unconditional_LD: Tensor, timestep_S: Tensor, segments: Segments
    ) -> Tensor:
        """The guided answer of a row; every sample by its own time, its spread by its own tokens."""
        weight_L1 = self.weights(timestep_S)[segments.index_L, None]
        answer_LD = guided(conditional_LD, unconditional_LD, weight_L1)
        if not self.rescale:
            return answer_LD
        factor_S = _spread(conditional_LD, segments) / _spread(answer_LD, segments).clamp(min=1e-8)
        factor_L1 = factor_S[segments.index_L, None]
        return answer_LD * (self.rescale * factor_L1 + 1 - self.rescale)


def guided(conditional_LD: Tensor, unconditional_LD: Tensor, scale: float | Tensor) -> Tensor:
    """Plain guidance: 1 = the prompt as trained, above 1 = more of what the prompt changes."""
    return unconditional_LD + scale * (conditional_LD - unconditional_LD)


def _spread(answer_LD: Tensor, segments: Segments) -> Tensor:
    """(S,) standard deviation over all numbers of each sample."""
    mean_S = segments.mean(answer_LD.mean(-1))
    centred_LD = answer_LD - mean_S[segments.index_L, None]
    return segments.mean(centred_LD.square().mean(-1)).sqrt()
