"""From clean to noise on packed rows: where on that path a sample stands, what is learned there, and what it counts.

    draws = draw_path(clip_ids, segments, token_width, PathSettings(), key=(seed, step))
    point = path_point(clean_LD, draws, segments, PathSettings())     # .x_LD, .target_LD, .weight_S
    loss_sum, weight = flow_loss(backbone(point.x_LD, ...), point.target_LD, segments, norm="sample")

Shape suffixes: L tokens of a row, S samples of a row, D numbers per token. The way back is in `train.diffusion.solvers`.

One convention: t = 0 is clean, t = 1 is noise, x_t = alpha x_0 + sigma eps with the shares of `train.diffusion.noise_schedules`
(rectified flow: 1 - t and t). Everything random is drawn per sample from a generator keyed by names and numbers, so a
sample gets the same noise whichever row, rank or accumulation step it lands in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from packing.grid import Shape3
from recaption.errors import UsageError
from train.diffusion.noise_schedules import FLOW, NUM_DISCRETE_STEPS, SCHEDULES, alpha_sigma
from train.diffusion.parameterization import check_pairing, min_snr_weight, target_of
from train.diffusion.rng import generator_for
from train.diffusion.timestep_shift import SHIFT_RULES, shift_of, shifted
from train.layers.segments import Segments

TIMESTEPS = ("logit_normal", "uniform")


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """Which noise levels are trained and sampled, and what the model says about them."""

    schedule: str = FLOW
    """`flow` (rectified flow, the straight path), or DDPM's `cosine`, `linear` or `scaled_linear`."""
    prediction: str = "velocity"
    """`velocity` or `x0` on flow; `epsilon`, `x0` or `v` on the others."""
    zero_terminal_snr: bool = False
    """Rescale a diffusion schedule so that nothing of the sample is left at t = 1 (arXiv 2305.08891)."""
    discrete: bool = False
    """Train a diffusion schedule on t = 1/1000, 2/1000, ..., 1 only, as DDPM does, not on all t between."""
    snr_gamma: float = 0.0
    """min-SNR-gamma weights of the loss (arXiv 2303.09556), 5 in the paper; 0 = every noise level weighs the same."""
    timesteps: str = "logit_normal"
    """What t is drawn from, before the shift: `logit_normal` (flow's usual), or `uniform` (DDPM's)."""
    timestep_mean: float = 0.0
    """Of the normal distribution whose sigmoid is t; above 0 = more noise."""
    timestep_std: float = 1.0
    shift: float = 1.0
    """Extra weight a of the noisy end, t' = a t / (1 + (a - 1) t); a factor on what `shift_rule` gives."""
    shift_rule: str = "sqrt_tokens"
    """How a grows with a sample's own size: more tokens repeat the same content, so the same noise hides less of it.
    `sqrt_tokens` sqrt(tokens / shift_tokens) (SD3), `exp_tokens` (Flux), `area_time` (Open-Sora 2)."""
    shift_tokens: int = 0
    """Token count at which `shift` holds under `sqrt_tokens`; 0 = one shift for every size."""

    def check(self) -> None:
        """Raises UsageError where a setting makes no sense, or has no effect."""
        for name, choices in (("schedule", SCHEDULES), ("timesteps", TIMESTEPS), ("shift_rule", SHIFT_RULES)):
            if getattr(self, name) not in choices:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        check_pairing(self.prediction, self.schedule, zero_terminal_snr=self.zero_terminal_snr)
        if self.timestep_std <= 0 or self.shift <= 0 or self.shift_tokens < 0 or self.snr_gamma < 0:
            raise UsageError(f"{self}: timestep_std and shift must be positive, shift_tokens and snr_gamma at least 0")
        if self.discrete and self.schedule == FLOW:
            raise UsageError("discrete is for the diffusion schedules: schedule 'flow' has no steps")
        if self.shift_tokens and self.shift_rule != "sqrt_tokens":
            raise UsageError(f"shift_tokens has no effect with shift_rule {self.shift_rule!r}: leave it 0")
        if self.timesteps == "uniform" and (self.timestep_mean or self.timestep_std != 1):
            raise UsageError("timestep_mean and timestep_std have no effect with timesteps 'uniform': leave them out")
        if self.snr_gamma and self.zero_terminal_snr:
            raise UsageError(
                "snr_gamma gives t = 1 the weight 0 under zero_terminal_snr, so that the first step of sampling is never "
                "learned: leave one of them out"
            )

    def config(self) -> dict[str, Any]:
        """As a checkpoint records it: settings younger than the first checkpoints only where they are not the default,
        so that those can still be gone on from."""
        always = ("timestep_mean", "timestep_std", "shift", "shift_tokens")
        settings = dataclasses.asdict(self)
        return {
            field.name: settings[field.name]
            for field in dataclasses.fields(self)
            if field.name in always or settings[field.name] != field.default
        }

    def shift_of(self, num_tokens: int, token_shape: Shape3 | None = None) -> float:
        """The shift a of one sample, from its tokens along (frames, rows, columns), or only how many there are. The shape
        goes first: where tokens were dropped, the sample is as large as it was."""
        whole = num_tokens if token_shape is None else math.prod(token_shape)
        return self.shift * shift_of(self.shift_rule, whole, token_shape, self.shift_tokens)

    def alpha_sigma(self, timestep_S: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of the clean sample and of noise."""
        return alpha_sigma(self.schedule, timestep_S, zero_terminal_snr=self.zero_terminal_snr)


@dataclass(frozen=True)
class PathDraws:
    """What chance decided for the samples of a row."""

    timestep_S: Tensor
    noise_LD: Tensor


@dataclass(frozen=True)
class PathPoint:
    """A row on its way from clean to noise."""

    x_LD: Tensor
    target_LD: Tensor
    """What the model is to answer there; velocity (noise - clean) for rectified flow."""
    weight_S: Tensor | None = None
    """Of each sample's noise level in the loss; None = all the same."""


def draw_path(
    clip_ids: Sequence[str],
    segments: Segments,
    token_width: int,
    settings: PathSettings,
    *,
    key: Sequence[str | int],
    token_shapes: Sequence[Shape3] | None = None,
) -> PathDraws:
    """Timestep and noise of every sample; a function of `key` and the clip's id and size alone.

    Args:
        key: what makes this visit of the clip its own, for example (seed, epoch).
        token_shapes: tokens of each sample along (frames, rows, columns), for shift rules that tell them apart.
    """
    timesteps, noise = [], []
    shapes = [None] * len(segments) if token_shapes is None else token_shapes
    for clip_id, length, shape in zip(clip_ids, segments.lengths, shapes, strict=True):
        generator = generator_for(*key, clip_id)
        if settings.timesteps == "uniform":
            t = 1 - torch.rand((), generator=generator)  # 1 can come, 0 cannot: there is nothing to learn there
        else:
            t = torch.sigmoid(settings.timestep_mean + settings.timestep_std * torch.randn((), generator=generator))
        t = shifted(t, settings.shift_of(length, shape))
        if settings.discrete:
            t = (t * NUM_DISCRETE_STEPS).ceil().clamp(1, NUM_DISCRETE_STEPS) / NUM_DISCRETE_STEPS
        timesteps.append(t)
        noise.append(torch.randn(length, token_width, generator=generator))
    device = segments.cu_seqlens.device
    return PathDraws(torch.stack(timesteps).to(device), torch.cat(noise).to(device))


def path_point(
    clean_LD: Tensor, draws: PathDraws, segments: Segments, settings: PathSettings | None = None
) -> PathPoint:
    """x_t, what is to be learned there, and what that counts."""
    settings = settings or PathSettings()
    alpha_S, sigma_S = settings.alpha_sigma(draws.timestep_S)
    alpha_L1, sigma_L1 = (share_S.to(clean_LD.dtype)[segments.index_L, None] for share_S in (alpha_S, sigma_S))
    weight_S = None
    if settings.snr_gamma:
        weight_S = min_snr_weight(settings.prediction, settings.snr_gamma, alpha_S, sigma_S).float()
    return PathPoint(
        alpha_L1 * clean_LD + sigma_L1 * draws.noise_LD,
        target_of(settings.prediction, clean_LD, draws.noise_LD, alpha_L1, sigma_L1),
        weight_S,
    )
