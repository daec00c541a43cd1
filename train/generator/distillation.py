"""Progressive distillation: a student of few steps from a teacher of many, halving by halving.

    recaption train dit --run RUN --name guided --init-from RUN/train/main --distill guidance
    recaption train dit --run RUN --name eight --init-from RUN/train/guided --distill 8

`guidance` (arXiv 2210.03142): one call of the student gives what the teacher's two calls of classifier-free guidance do,
at any scale of a range, which the student gets as a scalar. `halve` (arXiv 2202.00512): one step of the student goes where
two steps of its teacher go. The student starts as the teacher (`init_from`), which has no dropout and is never updated; the
noise of an example is drawn once.

On rectified flow the target velocity is the mean of the teacher's two velocities, weighted by their steps. On a schedule
with alpha^2 + sigma^2 = 1, two DDIM steps from z_t end in z_s, and the x0 that one DDIM step needs to get there is

    x~ = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t).

Shape suffixes: L tokens of a pack, S samples of a pack, D numbers per token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recaption.errors import UsageError
from train.backbones.bases import weights_over_base
from train.backbones.registry import build
from train.checkpoint import step_folder
from train.checkpoint.weights import build_model
from train.diffusion.guidance import apply_guidance
from train.diffusion.loss import diffusion_loss
from train.diffusion.parameterization import prediction_target, to_x0_and_noise
from train.diffusion.process import DiffusionSettings, TimestepsAndNoise, add_noise
from train.diffusion.rng import seeded_generator
from train.diffusion.solvers import sampling_timesteps
from train.generator.batch import BatchDraws, DitBatch
from train.generator.objective import DiffusionObjective
from train.generator.settings import DitSettings
from train.layers.segments import Segments
from train.layers.text_condition import TextSelection
from train.sampling.student import GUIDANCE

FORWARD = 1 / 3
"""FLOPs of a forward pass, in units of forward and backward."""


def student_scalars(settings: DitSettings) -> tuple[str, ...]:
    """Scalars that the student takes: the guidance scale, once a teacher's guidance has been distilled.

    Raises:
        UsageError: the checkpoint that `init_from` names does not fit the stage.
    """
    distill = settings.distill
    if not distill.stage:
        return ()
    config = step_folder.find(settings.init_from).config
    scalars = tuple(config["backbone"].get("scalars", ()))
    before = config.get("distilled") or {}
    if distill.stage == "guidance" and before:
        raise UsageError(f"{settings.init_from} is distilled already: guidance comes first, then the halvings")
    if distill.stage == "halve" and before.get("num_steps") not in (None, 2 * distill.num_steps):
        raise UsageError(
            f"{settings.init_from} takes {before['num_steps']} steps: halve it to {before['num_steps'] // 2}, not "
            f"{distill.num_steps}"
        )
    return scalars if GUIDANCE in scalars or distill.stage == "halve" else (*scalars, GUIDANCE)


def distilled_config(settings: DitSettings) -> dict[str, Any] | None:
    """What a student's checkpoint records: the steps it was trained for, and the range of its guidance scale."""
    distill = settings.distill
    if not distill.stage:
        return None
    before = step_folder.find(settings.init_from).config.get("distilled") or {}
    if distill.stage == "guidance":
        return {"num_steps": None, "guidance": list(distill.guidance)}
    return {"num_steps": distill.num_steps, "guidance": before.get("guidance")}


def load_teacher(init_from: str, attention_backend: str) -> nn.Module:
    """The network of a checkpoint with its (EMA) weights.

    Raises:
        UsageError: no checkpoint there.
        CheckpointMismatchError: not one of a generator.
    """
    path = step_folder.find(init_from).path
    config, weights = step_folder.load_model(path, task="dit")
    backbone = {key: value for key, value in config["backbone"].items() if key != "name"}
    building = functools.partial(build, config["backbone"]["name"], attention_backend=attention_backend)
    return build_model(building, backbone, weights_over_base(config, weights, path), path)


def distillation_objective(settings: DitSettings) -> DiffusionObjective:
    """The objective of the settings' stage, with its teacher."""
    teacher = load_teacher(settings.init_from, settings.attention_backend)
    return (
        GuidanceDistillation(settings, teacher) if settings.distill.stage == "guidance" else Halving(settings, teacher)
    )


class _Distillation(DiffusionObjective):
    """What both stages share: a teacher, and a guidance scale per sample for students that take one."""

    def __init__(self, settings: DitSettings, teacher: nn.Module) -> None:
        super().__init__(settings)
        self.teacher = teacher
        is_guided = settings.distill.stage == "guidance" or GUIDANCE in teacher.config.get("scalars", ())
        self.scalar_names = (GUIDANCE,) if is_guided else ()
        self.guidance_range: tuple[float, float] = settings.distill.guidance

    def draws(self, batch: DitBatch, *, seed: int) -> BatchDraws:
        draws = super().draws(batch, seed=seed)
        if not self.scalar_names:
            return draws
        low, high = self.guidance_range
        scale_S = [
            low + (high - low) * float(torch.rand((), generator=seeded_generator(seed, batch.epoch, GUIDANCE, clip_id)))
            for clip_id in batch.clip_ids
        ]
        without_text = TextSelection.of([True] * len(batch.segments), batch.text.segments)
        return dataclasses.replace(draws, scalars={GUIDANCE: torch.tensor(scale_S)}, without_text=without_text)

    def frozen_networks(self) -> Sequence[nn.Module]:
        return (self.teacher,)

    def validation_inputs(self, batch: DitBatch) -> dict[str, Any]:
        """Scale 1: what the diffusion loss of the validation is defined for."""
        ones_S = torch.ones(len(batch.segments), device=batch.tokens_LD.device)
        return {"scalars": dict.fromkeys(self.scalar_names, ones_S)}

    def _student_loss(
        self, model: nn.Module, batch: DitBatch, x_LD: Tensor, timestep_S: Tensor, target_LD: Tensor, draws: BatchDraws,
        weight_S: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        mask_L = draws.condition_mask_L
        inputs = batch.inputs(x_LD, timestep_S, draws.text, mask_L, scalars=draws.scalars)
        return diffusion_loss(
            model(inputs),
            target_LD,
            batch.segments,
            norm=self.settings.loss_norm,
            weight_S=weight_S,
            loss_mask_L=None if mask_L is None else ~mask_L,
        )


class GuidanceDistillation(_Distillation):
    """One call of the student for the two calls of the teacher's guidance."""

    def loss(self, model: nn.Module, batch: DitBatch, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        noised = add_noise(batch.tokens_LD, draws.noise, batch.segments, self.settings.diffusion)
        timestep_S, mask_L = draws.noise.timestep_S, draws.condition_mask_L
        with torch.no_grad():
            conditional_LD, unconditional_LD = (
                self.teacher(batch.inputs(noised.x_LD, timestep_S, text, mask_L))
                for text in (draws.text, draws.without_text)
            )
            scale_L1 = draws.scalars[GUIDANCE][batch.segments.segment_ids_L, None]
            target_LD = apply_guidance(conditional_LD, unconditional_LD, scale_L1)
        return self._student_loss(model, batch, noised.x_LD, timestep_S, target_LD, draws, noised.weight_S)

    def flops(self, model: nn.Module, batch: DitBatch) -> float:
        return super().flops(model, batch) + 2 * FORWARD * super().flops(self.teacher, batch)


class Halving(_Distillation):
    """One step of the student for two of its teacher."""

    def __init__(self, settings: DitSettings, teacher: nn.Module) -> None:
        super().__init__(settings, teacher)
        config = distilled_config(settings)
        assert config is not None, "a stage of distillation is set"
        low, high = config["guidance"] or self.guidance_range  # the teacher's: it alone knows what it was trained for
        self.guidance_range = low, high

    def draws(self, batch: DitBatch, *, seed: int) -> BatchDraws:
        draws = super().draws(batch, seed=seed)
        num_steps = self.settings.distill.num_steps
        times_KS = sampling_timesteps(
            2 * num_steps, _on_cpu(batch.segments), self.settings.diffusion, token_shapes=batch.token_shapes
        )
        step_S = torch.tensor(
            [
                int(torch.randint(num_steps, (), generator=seeded_generator(seed, batch.epoch, "step", clip_id)))
                for clip_id in batch.clip_ids
            ]
        )
        samples = torch.arange(len(step_S))
        now_S, middle_S, next_S = (times_KS[2 * step_S + number, samples] for number in range(3))
        noise = TimestepsAndNoise(now_S, draws.noise.noise_LD)
        return dataclasses.replace(draws, noise=noise, times={"middle": middle_S, "next": next_S})

    def loss(self, model: nn.Module, batch: DitBatch, draws: BatchDraws) -> tuple[Tensor, Tensor]:
        diffusion = self.settings.diffusion
        noised = add_noise(batch.tokens_LD, draws.noise, batch.segments, diffusion)
        times = (draws.noise.timestep_S, draws.times["middle"], draws.times["next"])

        def teacher(x_LD: Tensor, timestep_S: Tensor) -> Tensor:
            inputs = batch.inputs(x_LD, timestep_S, draws.text, draws.condition_mask_L, scalars=draws.scalars)
            prediction_LD: Tensor = self.teacher(inputs)
            return prediction_LD

        with torch.no_grad():
            target_LD = two_step_target(teacher, noised.x_LD, times, batch.segments, diffusion)
        weight_S = None
        if diffusion.prediction == "x0":  # max(1, SNR): errors at low noise count more (arXiv 2202.00512, section 4)
            alpha_S, sigma_S = diffusion.alpha_sigma(times[0])
            weight_S = (alpha_S / sigma_S).square().clamp(min=1).float()
        return self._student_loss(model, batch, noised.x_LD, times[0], target_LD, draws, weight_S)

    def flops(self, model: nn.Module, batch: DitBatch) -> float:
        return super().flops(model, batch) + 2 * FORWARD * super().flops(self.teacher, batch)


def two_step_target(
    teacher: Any, x_LD: Tensor, times: tuple[Tensor, Tensor, Tensor], segments: Segments, diffusion: DiffusionSettings
) -> Tensor:
    """What the student has to predict at the first of three times to get where two steps of the teacher get at the last.

    Args:
        teacher: (x_LD, timestep_S) -> its prediction, of the type of `diffusion`.
        times: (S,) each: from noise to clean.
    """
    now_S, middle_S, next_S = times

    def per_token(value_S: Tensor) -> Tensor:
        return value_S.to(x_LD.dtype)[segments.segment_ids_L, None]

    if diffusion.prediction == "velocity":
        first_L1, second_L1 = per_token(middle_S - now_S), per_token(next_S - middle_S)
        first_LD = teacher(x_LD, now_S)
        second_LD = teacher(x_LD + first_L1 * first_LD, middle_S)
        return (first_L1 * first_LD + second_L1 * second_LD) / (first_L1 + second_L1)
    scales = [tuple(per_token(scale_S) for scale_S in diffusion.alpha_sigma(time_S)) for time_S in times]
    state_LD = x_LD
    for (alpha, sigma), (next_alpha, next_sigma), time_S in zip(scales, scales[1:], times):
        clean_LD, noise_LD = to_x0_and_noise(diffusion.prediction, teacher(state_LD, time_S), state_LD, alpha, sigma)
        state_LD = next_alpha * clean_LD + next_sigma * noise_LD
    (alpha, sigma), (next_alpha, next_sigma) = scales[0], scales[-1]
    ratio = next_sigma / sigma
    clean_LD = (state_LD - ratio * x_LD) / (next_alpha - ratio * alpha)
    noise_LD = (x_LD - alpha * clean_LD) / sigma
    return prediction_target(diffusion.prediction, clean_LD, noise_LD, alpha, sigma)


def _on_cpu(segments: Segments) -> Segments:
    return segments if segments.cu_seqlens.device.type == "cpu" else Segments.from_lengths(segments.lengths)
