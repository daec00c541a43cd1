"""The forward diffusion process on packs: timestep and noise per sample, noised tokens, regression target.

    draws = sample_timesteps_and_noise(clip_ids, segments, token_width, DiffusionSettings(), key=(seed, epoch))
    noised = add_noise(clean_LD, draws, segments, DiffusionSettings())     # .x_LD, .target_LD, .weight_S
    loss_sum, weight = diffusion_loss(backbone(noised.x_LD, ...), noised.target_LD, segments, norm="sample")

Shape suffixes: L tokens of a pack, S samples of a pack, D numbers per token. Sampling is in diffusion/solvers.py.

One convention: t = 0 is clean, t = 1 is noise, x_t = alpha x_0 + sigma eps with the tables of diffusion/noise_schedules.py
(rectified flow: 1 - t and t). All random numbers are drawn per sample from a seeded generator, so a sample gets the same
noise whichever pack, rank or accumulation step it lands in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from packing.grid import Shape3
from recaption.errors import UsageError
from train.diffusion.noise_schedules import FLOW, NUM_DISCRETE_STEPS, SCHEDULES, alpha_sigma
from train.diffusion.parameterization import check_pairing, min_snr_weight, prediction_target
from train.diffusion.rng import seeded_generator
from train.diffusion.timestep_shift import SHIFT_RULES, shift_of, shifted
from train.layers.segments import Segments
from train.parallel.transfer import copied

TIMESTEPS = ("logit_normal", "uniform")


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings:
    """Noise schedule, prediction type, timestep distribution and loss weighting."""

    schedule: str = FLOW
    """`flow` (rectified flow), or DDPM's `cosine`, `linear` or `scaled_linear`."""
    prediction: str = "velocity"
    """What the model predicts: `velocity` or `x0` on flow; `epsilon`, `x0` or `v` on the others."""
    zero_terminal_snr: bool = False
    """Rescale a diffusion schedule so that alpha is 0 at t = 1 (arXiv 2305.08891)."""
    discrete: bool = False
    """Train a diffusion schedule on t = 1/1000, 2/1000, ..., 1 only, as DDPM does, not on continuous t."""
    snr_gamma: float = 0.0
    """gamma of min-SNR loss weighting (arXiv 2303.09556), 5 in the paper; 0 = every noise level weighs the same."""
    timesteps: str = "logit_normal"
    """Distribution of t before the shift: `logit_normal` (usual for flow), or `uniform` (DDPM's)."""
    timestep_mean: float = 0.0
    """Mean of the normal distribution whose sigmoid is t; above 0 = more noise."""
    timestep_std: float = 1.0
    """Its standard deviation."""
    shift: float = 1.0
    """Timestep shift a, t' = a t / (1 + (a - 1) t), above 1 = more noise; multiplies the a of `shift_rule`."""
    shift_rule: str = "sqrt_tokens"
    """How a grows with the size of a sample: larger samples are more redundant, so the same noise hides less of them.
    `sqrt_tokens` sqrt(tokens / shift_tokens) (SD3), `exp_tokens` (Flux), `area_time` (Open-Sora 2)."""
    shift_tokens: int = 0
    """Number of tokens at which `sqrt_tokens` gives a = 1; 0 = the same shift for every size."""

    def check(self) -> None:
        """Raises UsageError where a setting is invalid or has no effect."""
        for name, choices in (("schedule", SCHEDULES), ("timesteps", TIMESTEPS), ("shift_rule", SHIFT_RULES)):
            if getattr(self, name) not in choices:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        check_pairing(self.prediction, self.schedule, zero_terminal_snr=self.zero_terminal_snr)
        if self.timestep_std <= 0 or self.shift <= 0 or self.shift_tokens < 0 or self.snr_gamma < 0:
            raise UsageError(f"{self}: timestep_std and shift must be positive, shift_tokens and snr_gamma at least 0")
        if self.discrete and self.schedule == FLOW:
            raise UsageError("discrete is for the diffusion schedules: schedule 'flow' has no discrete steps")
        if self.shift_tokens and self.shift_rule != "sqrt_tokens":
            raise UsageError(f"shift_tokens has no effect with shift_rule {self.shift_rule!r}: leave it 0")
        if self.timesteps == "uniform" and (self.timestep_mean or self.timestep_std != 1):
            raise UsageError("timestep_mean and timestep_std have no effect with timesteps 'uniform': leave them out")
        if self.snr_gamma and self.zero_terminal_snr:
            raise UsageError(
                "snr_gamma gives t = 1 the weight 0 under zero_terminal_snr, so that the first step of sampling is never "
                "trained: leave one of them out"
            )

    def shift_of(self, num_tokens: int, token_shape: Shape3 | None = None) -> float:
        """The timestep shift a of one sample.

        Args:
            num_tokens: tokens that are left of it.
            token_shape: tokens along (frames, rows, columns) before token dropping; decides where it is passed, so that
                dropped tokens do not make a sample smaller.
        """
        size = num_tokens if token_shape is None else math.prod(token_shape)
        return self.shift * shift_of(self.shift_rule, size, token_shape, self.shift_tokens)

    def alpha_sigma(self, timestep_S: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of x_t = alpha x_0 + sigma eps at each timestep."""
        return alpha_sigma(self.schedule, timestep_S, zero_terminal_snr=self.zero_terminal_snr)


@dataclass(frozen=True)
class TimestepsAndNoise:
    """The random part of a training example, for the samples of a pack."""

    timestep_S: Tensor
    noise_LD: Tensor

    def to(self, device: torch.device | str) -> TimestepsAndNoise:
        return TimestepsAndNoise(copied(self.timestep_S, device), copied(self.noise_LD, device))


@dataclass(frozen=True)
class NoisedTokens:
    """x_t of a pack with its regression target."""

    x_LD: Tensor
    target_LD: Tensor
    """Regression target: velocity, noise, x0 or v."""
    weight_S: Tensor | None = None
    """Loss weight of each sample's noise level; None = all the same."""


def sample_timesteps_and_noise(
    clip_ids: Sequence[str],
    segments: Segments,
    token_width: int,
    settings: DiffusionSettings,
    *,
    key: Sequence[str | int],
    token_shapes: Sequence[Shape3] | None = None,
) -> TimestepsAndNoise:
    """Sample a timestep and noise for every sample, as a function of `key` and the clip's id and size alone.

    Args:
        key: seeds the generator together with the clip id, for example (seed, epoch).
        token_shapes: tokens of each sample along (frames, rows, columns), before token dropping; for shift rules that
            need them.
    """
    timesteps, noise = [], []
    shapes = [None] * len(segments) if token_shapes is None else token_shapes
    for clip_id, length, shape in zip(clip_ids, segments.lengths, shapes, strict=True):
        generator = seeded_generator(*key, clip_id)
        if settings.timesteps == "uniform":
            t = 1 - torch.rand((), generator=generator)  # in (0, 1]: there is nothing to learn at 0
        else:
            t = torch.sigmoid(settings.timestep_mean + settings.timestep_std * torch.randn((), generator=generator))
        t = shifted(t, settings.shift_of(length, shape))
        if settings.discrete:
            t = (t * NUM_DISCRETE_STEPS).ceil().clamp(1, NUM_DISCRETE_STEPS) / NUM_DISCRETE_STEPS
        timesteps.append(t)
        noise.append(torch.randn(length, token_width, generator=generator))
    device = segments.cu_seqlens.device
    return TimestepsAndNoise(torch.stack(timesteps), torch.cat(noise)).to(device)


def add_noise(
    clean_LD: Tensor, draws: TimestepsAndNoise, segments: Segments, settings: DiffusionSettings | None = None
) -> NoisedTokens:
    """x_t = alpha x_0 + sigma eps with its regression target and loss weight."""
    settings = settings or DiffusionSettings()
    alpha_S, sigma_S = settings.alpha_sigma(draws.timestep_S)
    alpha_L1, sigma_L1 = (scale_S.to(clean_LD.dtype)[segments.segment_ids_L, None] for scale_S in (alpha_S, sigma_S))
    weight_S = None
    if settings.snr_gamma:
        weight_S = min_snr_weight(settings.prediction, settings.snr_gamma, alpha_S, sigma_S).float()
    return NoisedTokens(
        alpha_L1 * clean_LD + sigma_L1 * draws.noise_LD,
        prediction_target(settings.prediction, clean_LD, draws.noise_LD, alpha_L1, sigma_L1),
        weight_S,
    )
