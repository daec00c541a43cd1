"""A cascade of pixel-space models: a base, then stages that each double the size or the frame rate of its clips.

    cascade = Cascade([base, tsr, ssr])                      # Samplers; checked to fit each other
    videos = cascade.sample_requests(requests, settings)     # SampledVideo each, of the last stage

A stage sees its low-resolution clip, brought to its own grid (bilinear in space, repeated in time) and noised
(diffusion/noise_augmentation.py), as a hint beside every token. Stages differ in the strides of their `pixels` compressors
alone: all of them make videos of one size in pixels and frames, each finer than the one before.

Shape suffixes: B clips, C channels, T frames, H rows, W columns, L tokens, D numbers per token.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from packing.loader.batch import patchify
from recaption.errors import CheckpointMismatchError, UsageError
from train.diffusion.guidance import Guidance
from train.diffusion.noise_augmentation import LEVEL, augmented, level_of_snr
from train.diffusion.rng import seeded_generator
from train.layers.segments import Segments
from train.sampling.denoise import DenoiseInput, denoise
from train.sampling.request import Request, SampledVideo, number_repeats, pack_inputs
from train.sampling.sampler import Sampler
from train.sampling.solver_settings import SolverSettings
from train.sampling.stage import DEFAULT_SNR


class Cascade:
    """Samplers of a base and of the stages after it."""

    def __init__(self, samplers: Sequence[Sampler], *, snr: float = DEFAULT_SNR) -> None:
        """
        Args:
            snr: signal-to-noise ratio of the hints.

        Raises:
            UsageError: the first is a stage, another is none, or a stage does not fit the one before it.
            CheckpointMismatchError: they were trained on texts of different encoders.
        """
        if snr <= 0:
            raise UsageError(f"a signal-to-noise ratio of {snr:g} must be above 0")
        self.samplers, self.snr = list(samplers), snr
        self.base = self.samplers[0]
        if self.base.stage is not None:
            raise UsageError(f"{self.base.name} is a {self.base.stage.kind} stage: name the base of the cascade first")
        for before, sampler in itertools.pairwise(self.samplers):
            _check_fits(before, sampler)

    def sample_requests(
        self,
        requests: Sequence[Request],
        settings: SolverSettings | None = None,
        *,
        progress: bool = False,
        **windows: Any,
    ) -> list[SampledVideo]:
        """As `Sampler.sample_requests`, with the arguments of the base's windows; then stage after stage."""
        sampled = self.base.sample_requests(requests, settings, progress=progress, **windows)
        for sampler in self.samplers[1:]:
            sampled = [
                dataclasses.replace(one, video_THWC=video_THWC)
                for one, video_THWC in zip(sampled, self._stage(sampler, requests, sampled, settings, progress))
            ]
        return sampled

    @torch.no_grad()
    def _stage(
        self,
        sampler: Sampler,
        requests: Sequence[Request],
        sampled: Sequence[SampledVideo],
        settings: SolverSettings | None,
        progress: bool,
    ) -> list[np.ndarray]:
        """The videos of the stage before, sampled again on the finer grid of this one."""
        assert sampler.stage is not None
        solver = sampler.resolved(settings or SolverSettings())
        inputs = [
            self._input(sampler, request, repetition, one.video_THWC)
            for (request, repetition), one in zip(number_repeats(requests), sampled, strict=True)
        ]
        videos = []
        with tqdm(
            total=len(inputs) * solver.num_steps, desc=sampler.stage.kind, unit="step", disable=not progress
        ) as bar:
            for pack in pack_inputs(inputs, solver.max_pack_tokens):
                packed = [inputs[index] for index in pack]
                denoised = denoise(
                    sampler.model,
                    packed,
                    encoder=sampler.encoder,
                    diffusion=sampler.diffusion,
                    num_steps=solver.num_steps,
                    guidance=Guidance.of(solver.guidance),
                    solver=solver.solver,
                    max_pack_tokens=solver.max_pack_tokens,
                    precision=solver.precision,
                    value_range=sampler.value_range,
                    on_step=functools.partial(bar.update, len(packed)),
                )
                videos += [
                    sampler.tokenizer.decode(tokens_LD, one.token_shape) for tokens_LD, one in zip(denoised, packed)
                ]
        return videos

    def _input(self, sampler: Sampler, request: Request, repetition: int, video_THWC: np.ndarray) -> DenoiseInput:
        stage, grid = sampler.stage, sampler.grid
        assert stage is not None
        latent_CTHW = sampler.tokenizer.encode_latent(video_THWC).cpu()
        low_LD = patchify(stage.hint(latent_CTHW).contiguous(), grid.patch)
        level = level_of_snr(self.snr, sampler.diffusion)
        key = ("sample", request.seed, repetition, sampler.tokenizer.compressor.name, "hint")
        noise_LD = torch.randn(low_LD.shape, generator=seeded_generator(*key))
        segments = Segments.from_lengths([len(low_LD)])
        return DenoiseInput(
            text=request.text,
            noise_key=("sample", request.seed, repetition, sampler.tokenizer.compressor.name),
            token_shape=grid.token_shape(*video_THWC.shape[:3]),
            hint_LD=augmented(low_LD, noise_LD, torch.tensor([level]), segments, sampler.diffusion),
            scalars={LEVEL: level},
            windows=sampler.windows_of(grid.token_shape(*video_THWC.shape[:3])),
        )


def _check_fits(before: Sampler, sampler: Sampler) -> None:
    """Raises as `Cascade`."""
    stage = sampler.stage
    if stage is None:
        raise UsageError(
            f"{sampler.name} is no super-resolution stage: only the first checkpoint of a cascade is a base"
        )
    coarse, fine = (one.tokenizer.compressor for one in (before, sampler))
    expected = (
        fine.frame_stride * (stage.ratio if stage.kind == "tsr" else 1),
        fine.spatial_stride * (stage.ratio if stage.kind == "ssr" else 1),
    )
    if (coarse.frame_stride, coarse.spatial_stride) != expected:
        raise UsageError(
            f"{sampler.name} ({stage.kind}, ratio {stage.ratio}) takes clips with strides {expected} (frames, pixels), "
            f"{before.name} makes them with {(coarse.frame_stride, coarse.spatial_stride)}"
        )
    if before.encoder.config != sampler.encoder.config:
        raise CheckpointMismatchError(
            f"{sampler.name} was trained with text encoder {sampler.encoder.spec}, {before.name} with "
            f"{before.encoder.spec}: all stages take the same texts"
        )
