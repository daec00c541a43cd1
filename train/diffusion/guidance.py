"""Classifier-free guidance, with an interval, a rescale and the power-cosine schedule, and context guidance.

    guidance = Guidance(scale=4.0, interval=(0.1, 0.8), rescale=0.7)
    scale_S = guidance.scales(timestep_S)                  # 1 outside the interval: one model call is enough there
    prediction_LD = guidance.combine(conditional_LD, unconditional_LD, timestep_S, segments)

Shape suffixes: L tokens of a pack, S samples, D numbers per token. t = 1 is noise, t = 0 clean. Everything works on the
model output as it is (velocity, epsilon, x0 or v): at one point x they differ by an affine map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recaption.errors import UsageError
from train.layers.segments import Segments
from train.parallel.transfer import copied


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Settings of classifier-free guidance."""

    scale: float = 4.0
    """1 = no guidance (one model call instead of two), above 1 = closer to the prompt."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest t at which guidance applies; the scale is 1 elsewhere (arXiv 2404.07724)."""
    rescale: float = 0.0
    """Fraction from 0 to 1 by which the standard deviation of the guided prediction is brought back to that of the
    conditional one (0.7 in arXiv 2305.08891): high scales otherwise saturate."""
    power: float = 0.0
    """s of the power-cosine schedule, (scale - 1) (1 - cos(pi (1 - t)^s)) / 2 + 1: from 1 at noise to `scale` at clean
    (4 in MDT, arXiv 2303.14389); 0 = a constant scale."""
    context: float = 1.0
    """Context guidance (Video LDM, arXiv 2304.08818): f_0 + context * (f_S - f_0), f_0 without the conditioning frames, f_S
    with them. 1 = none, above 1 = closer to them; one more model call for videos that have some."""

    oscillation_steps: int = 0
    """Steps at `scale` before it alternates with `oscillation_scale` from step to step (Imagen Video); 0 = never."""
    oscillation_scale: float = 1.0
    dynamic_threshold: float = 0.0
    """Percentile, 99.5 say, of a sample's predicted |x0|: where it is above 1, x0 is clipped to it and divided by it
    (Imagen, arXiv 2205.11487). In pixel space only, where values beyond -1 to 1 saturate; 0 = off."""

    @classmethod
    def of(cls, guidance: float | Guidance) -> Guidance:
        """`Guidance` as it is; a number is a scale."""
        return guidance if isinstance(guidance, Guidance) else cls(scale=guidance)

    def check(self) -> None:
        """Raises UsageError where a setting is invalid or has no effect."""
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise UsageError(f"guidance interval {low} to {high}: pass two times with 0 <= low < high <= 1")
        if not 0 <= self.rescale <= 1:
            raise UsageError(f"guidance rescale = {self.rescale} must be a fraction from 0 to 1")
        if self.power < 0:
            raise UsageError(f"guidance power = {self.power} is negative; 0 turns the power-cosine schedule off")
        if self.scale == 1 and (self.interval != (0, 1) or self.rescale or self.power or self.oscillation_steps):
            raise UsageError(
                "guidance 1 is none: its interval, rescale, power and oscillation have no effect, leave them out"
            )
        if self.oscillation_steps < 0 or self.oscillation_scale < 1 or not 0 <= self.dynamic_threshold <= 100:
            raise UsageError(
                f"{self}: oscillation steps must be at least 0, the oscillation scale at least 1, and the dynamic threshold "
                "a percentile from 0 to 100"
            )
        if self.oscillation_steps and self.power:
            raise UsageError("guidance either oscillates or follows the power-cosine schedule: leave one of them out")
        if self.context < 0:
            raise UsageError(f"guidance context = {self.context} is negative; 1 is no context guidance")

    def check_values(self, value_range: tuple[float, float] | None) -> None:
        """Raises UsageError where the dynamic threshold has no meaning: latents are not bounded.

        Args:
            value_range: bounds of the compressor's values; None: it has none.
        """
        if self.dynamic_threshold and value_range != (-1.0, 1.0):
            raise UsageError("a dynamic threshold is for models of pixels (compressor pixels): leave it out")

    def scales(self, timestep_S: Tensor, step: int = 0) -> Tensor:
        """(S,) the guidance scale at each sample's timestep.

        Args:
            step: number of the solver's step, from 0.
        """
        is_low = self.oscillation_steps and step >= self.oscillation_steps and (step - self.oscillation_steps) % 2 == 0
        scale_S = torch.full_like(timestep_S, self.oscillation_scale if is_low else self.scale)
        if self.power:
            scale_S = (self.scale - 1) * (1 - torch.cos(math.pi * (1 - timestep_S) ** self.power)) / 2 + 1
        is_inside_S = (self.interval[0] <= timestep_S) & (timestep_S <= self.interval[1])
        return torch.where(is_inside_S, scale_S, 1.0)

    def combine(
        self,
        conditional_LD: Tensor,
        unconditional_LD: Tensor,
        timestep_S: Tensor,
        segments: Segments,
        step: int = 0,
    ) -> Tensor:
        """The guided prediction of a pack: each sample at its own timestep, rescaled by its own standard deviation.

        Args:
            timestep_S: on the CPU, or where the predictions are.
            step: number of the solver's step, from 0.
        """
        scale_S = copied(self.scales(timestep_S, step), conditional_LD.device)
        scale_L1 = scale_S[segments.segment_ids_L, None]
        guided_LD = apply_guidance(conditional_LD, unconditional_LD, scale_L1)
        if not self.rescale:
            return guided_LD
        factor_S = _std_per_sample(conditional_LD, segments) / _std_per_sample(guided_LD, segments).clamp(min=1e-8)
        factor_L1 = factor_S[segments.segment_ids_L, None]
        return guided_LD * (self.rescale * factor_L1 + 1 - self.rescale)

    def num_copies(self, *, has_context: bool) -> int:
        """Model calls of a step, at most: with everything, without the text, without the conditioning frames."""
        return 1 + (self.scale != 1) + (has_context and self.context != 1)


def apply_guidance(conditional_LD: Tensor, unconditional_LD: Tensor, scale: float | Tensor) -> Tensor:
    """unconditional + scale * (conditional - unconditional)."""
    return unconditional_LD + scale * (conditional_LD - unconditional_LD)


def _std_per_sample(values_LD: Tensor, segments: Segments) -> Tensor:
    """(S,) standard deviation over all numbers of each sample."""
    mean_S = segments.mean(values_LD.mean(-1))
    centred_LD = values_LD - mean_S[segments.segment_ids_L, None]
    return segments.mean(centred_LD.square().mean(-1)).sqrt()


def dynamic_threshold(clean_LD: Tensor, segments: Segments, percentile: float) -> Tensor:
    """Predicted x0 of a pack, clipped to each sample's percentile of |x0| and divided by it, where that is above 1."""
    parts = []
    for part_LD in clean_LD.split(list(segments.lengths)):
        magnitudes = part_LD.abs().flatten()
        rank = max(1, math.ceil(percentile / 100 * len(magnitudes)))
        bound = magnitudes.kthvalue(rank).values.clamp(min=1)
        parts.append(part_LD.clamp(-bound, bound) / bound)
    return torch.cat(parts)
