"""Rectified flow on packed rows: where on the path to noise a sample stands, what is learned there, the way back.

    draws = draw_path(clip_ids, segments, token_width, PathSettings(), key=(seed, step))
    point = path_point(clean_LD, draws, segments)                     # .x_LD and .target_LD
    loss_sum, weight = flow_loss(backbone(point.x_LD, ...), point.target_LD, segments, norm="sample")
    clean_LD = integrate(velocity, noise_LD, segments, times_KS, solver="heun")

Shape suffixes: L tokens of a row, S samples of a row, D numbers per token, K points in time.

One convention: t = 0 is clean, t = 1 is noise, x_t = (1 - t) x_0 + t eps, velocity = eps - x_0. Everything random is
drawn per sample from a generator keyed by names and numbers, so a sample gets the same noise whichever row, rank or
accumulation step it lands in.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recaption.errors import UsageError
from train.attention import Segments

LOSS_NORMS = ("sample", "token")
SOLVERS = ("euler", "heun")


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """Which noise levels are trained and sampled."""

    timestep_mean: float = 0.0
    """Of the normal distribution whose sigmoid is t; above 0 = more noise."""
    timestep_std: float = 1.0
    shift: float = 1.0
    """Extra weight a of the noisy end, t' = a t / (1 + (a - 1) t), for a sample of `shift_tokens` tokens."""
    shift_tokens: int = 0
    """Token count at which `shift` holds; a grows with sqrt(tokens / shift_tokens), as in SD3: more tokens repeat the
    same content, so the same noise hides less of it. 0 = one shift for every size."""

    def shift_of(self, num_tokens: int) -> float:
        """The shift a of one sample, from its own number of tokens."""
        return self.shift * math.sqrt(num_tokens / self.shift_tokens) if self.shift_tokens else self.shift


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
    """Velocity there: noise - clean."""


def generator_for(*key: str | int) -> torch.Generator:
    """A CPU generator that depends on nothing but `key`: equal on every machine, rank and process.

    CPU on purpose: CUDA's stream of numbers changes between devices, and a row's noise is a few MB.
    """
    digest = hashlib.sha256(b"\x00".join(f"{type(part).__name__}:{part}".encode() for part in key)).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def chance(share: float, *key: str | int) -> bool:
    """True for about `share` of all keys, always the same ones."""
    return bool(torch.rand((), generator=generator_for(*key)) < share)


def shifted(t: Tensor, shift: float | Tensor) -> Tensor:
    """Move t towards noise (shift > 1) or clean (shift < 1); 0 and 1 stay."""
    return shift * t / (1 + (shift - 1) * t)


def draw_path(
    clip_ids: Sequence[str],
    segments: Segments,
    token_width: int,
    settings: PathSettings,
    *,
    key: Sequence[str | int],
    num_tokens: Sequence[int] | None = None,
) -> PathDraws:
    """Timestep and noise of every sample; a function of `key` and the clip's id alone.

    Args:
        key: what makes this visit of the clip its own, for example (seed, epoch).
        num_tokens: of each sample before any were dropped, which the shift goes by; default: those that are here.
    """
    timesteps, noise = [], []
    for clip_id, length, size in zip(clip_ids, segments.lengths, num_tokens or segments.lengths, strict=True):
        generator = generator_for(*key, clip_id)
        normal = torch.randn((), generator=generator)
        logit_normal = torch.sigmoid(settings.timestep_mean + settings.timestep_std * normal)
        timesteps.append(shifted(logit_normal, settings.shift_of(size)))
        noise.append(torch.randn(length, token_width, generator=generator))
    device = segments.cu_seqlens.device
    return PathDraws(torch.stack(timesteps).to(device), torch.cat(noise).to(device))


def path_point(clean_LD: Tensor, draws: PathDraws, segments: Segments) -> PathPoint:
    """x_t and its velocity."""
    t_L1 = draws.timestep_S[segments.index_L, None]
    return PathPoint((1 - t_L1) * clean_LD + t_L1 * draws.noise_LD, draws.noise_LD - clean_LD)


def flow_loss(velocity_LD: Tensor, target_LD: Tensor, segments: Segments, *, norm: str) -> tuple[Tensor, Tensor]:
    """Sum of squared errors and the weight to divide by, once summed over rows, ranks and accumulation steps.

    Dividing the sums, and not averaging averages, gives the same gradient for any arrangement of the same samples.

    Args:
        norm: `sample` = every clip counts the same (DiT's weighting), `token` = every token does (favours long clips).
    """
    error_L = (velocity_LD.float() - target_LD.float()).square().mean(-1)
    if norm == "token":
        return error_L.sum(), torch.tensor(float(error_L.shape[0]), device=error_L.device)
    if norm == "sample":
        return segments.mean(error_L).sum(), torch.tensor(float(len(segments)), device=error_L.device)
    raise UsageError(f"unknown loss normalisation {norm!r}: choose one of {', '.join(LOSS_NORMS)}")


def sampling_times(num_steps: int, segments: Segments, settings: PathSettings) -> Tensor:
    """(K+1, S) from 1 to 0: even steps, moved by each sample's own shift."""
    if num_steps < 1:
        raise UsageError(f"{num_steps = } must be at least 1")
    even_K1 = torch.linspace(1, 0, num_steps + 1)[:, None]
    shift_S = torch.tensor([settings.shift_of(length) for length in segments.lengths])
    return shifted(even_K1, shift_S).to(segments.cu_seqlens.device)


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor],
    x_LD: Tensor,
    segments: Segments,
    times_KS: Tensor,
    *,
    solver: str = "euler",
    on_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """Follow dx/dt = velocity(x_LD, timestep_S) through `times_KS`, every sample at its own pace.

    Args:
        solver: `euler`, one velocity a step, or `heun`, two (second order).
        on_step: called after each step, for a progress bar.
    """
    if solver not in SOLVERS:
        raise UsageError(f"unknown solver {solver!r}: choose one of {', '.join(SOLVERS)}")
    for now_S, next_S in itertools.pairwise(times_KS):
        step_L1 = (next_S - now_S)[segments.index_L, None]
        slope_LD = velocity(x_LD, now_S)
        if solver == "heun":
            slope_LD = (slope_LD + velocity(x_LD + step_L1 * slope_LD, next_S)) / 2
        x_LD = x_LD + step_L1 * slope_LD
        on_step()
    return x_LD


def guided(conditional_LD: Tensor, unconditional_LD: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: 1 = the prompt as trained, above 1 = more of what the prompt changes."""
    return unconditional_LD + guidance * (conditional_LD - unconditional_LD)
