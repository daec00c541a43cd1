"""Sampling from a checkpoint alone: it names its own text encoder, compressor, patch size and sizes.

    videos = sample("RUN/train/dit", ["a red circle moves left"], num_frames=17, height_px=64, width_px=112)

    sampler = Sampler.from_checkpoint("RUN/train/dit")                  # all other modes
    request = Request(text="it moves left", conditioning=image_to_video(image_HWC, 17, sampler.grid))
    (sampled,) = sampler.sample_requests([request])
    sampled.video_THWC, sampled.condition_mask_T

All requests go through the transformer as one pack (several above a limit of tokens), with and without their text for
guidance. Any size of the model's grid works, also one it was not trained on; videos longer than the longest trained one are
sampled window by window (windows.py). The same prompt, size and seed give the same video, whatever else is sampled.

Conditioning frames are returned as the compressor decodes them, so that they match the sampled frames; the model is
conditioned on the latents of the original pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from packing.buckets import Bucket, parse_bucket
from packing.grid import Shape3
from recaption.errors import CheckpointMismatchError, UsageError
from train.backbones.bases import weights_over_base
from train.backbones.registry import build
from train.checkpoint import step_folder as checkpoint
from train.checkpoint.weights import build_model
from train.compressors import registry as compressors
from train.compressors.interface import Compressor
from train.diffusion.frame_conditioning import check_trained_for, is_trained_for
from train.diffusion.guidance import Guidance
from train.diffusion.process import DiffusionSettings
from train.sampling.conditioning_frames import text_to_video
from train.sampling.denoise import denoise
from train.sampling.key_frames import KeyFrameTake, SingleTake
from train.sampling.request import LatentTokenizer, Request, SampledVideo, SamplingState, number_repeats, pack_requests
from train.sampling.sizes import nearest_size
from train.sampling.solver_settings import SolverSettings
from train.sampling.stage import Stage
from train.sampling.student import DEFAULT_NUM_STEPS, Student
from train.sampling.windows import Window, overlapping_windows
from train.text import encoder as text_encoder
from train.text.encoder import TextEncoder

CONDITIONING_PIXELS = ("decoded", "original")
MIN_WINDOW_LENGTH = 3
"""Token frames: known ones on both sides and one between."""


def sample(
    checkpoint_path: str,
    prompts: Sequence[str],
    *,
    num_frames: int | None = None,
    height_px: int | None = None,
    width_px: int | None = None,
    num_steps: int = 0,
    guidance: float | Guidance = 4.0,
    solver: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> list[np.ndarray]:
    """One video (T, H, W, 3) uint8 per prompt.

    Args:
        checkpoint_path: a step folder, or a training's folder (its newest step).
        num_frames, height_px, width_px: default: the most frequent size of the training.
        num_steps: of the solver; 0: 30, or those that a distilled model was trained for. `heun` calls the model twice a
            step.
        guidance: a scale, or `Guidance` with all settings: 1 = none (one model call instead of two), higher = closer to
            the prompt and less diverse.
        solver: `auto`, or a solver of `train.diffusion.solvers` that supports the schedule the model was trained on.
        precision: `fp32`, `bf16`, or `auto`: bf16 on a GPU, fp32 on a CPU.
        seed: the same noise for every prompt; a repeated prompt gets other noise.

    Raises:
        UsageError: no checkpoint there, no prompt, or a size the model's grid does not have (the nearest one is named).
        CheckpointMismatchError: a checkpoint of another task.
    """
    sampler = Sampler.from_checkpoint(checkpoint_path, device=device)
    return sampler.sample(
        prompts,
        size=sampler.size(num_frames, height_px, width_px),
        num_steps=num_steps,
        guidance=guidance,
        solver=solver,
        precision=precision,
        seed=seed,
        progress=progress,
    )


class Sampler:
    """A trained transformer with its text encoder and compressor."""

    student: Student | None = None
    """What it was distilled to."""
    stage: Stage | None = None
    """Of a cascade; None: a base, or a model of its own."""

    def __init__(
        self,
        model: nn.Module,
        *,
        encoder: TextEncoder,
        compressor: Compressor,
        patch: tuple[int, int, int],
        diffusion: DiffusionSettings,
        buckets: Sequence[Bucket],
        conditions: Sequence[str] = (),
        distilled: dict[str, Any] | None = None,
        stage: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
        name: str = "this model",
    ) -> None:
        """
        Args:
            buckets: sizes the model was trained on, the most frequent first.
            conditions: the frame conditioning it was trained with, as of `DitSettings.conditions`.
            name: of the model, in messages.
        """
        self.device = torch.device(device)
        self.model, self.compressor = model.to(self.device).eval(), compressor.to(self.device)
        self.encoder, self.diffusion = encoder, diffusion
        self.tokenizer = LatentTokenizer(self.compressor, patch, self.device)
        self.grid = self.tokenizer.grid
        self.buckets, self.conditions, self.name = tuple(buckets), tuple(conditions), name
        self.student, self.stage = Student.of(distilled), Stage.of(stage)
        self.value_range: tuple[float, float] | None = getattr(self.compressor, "value_range", None)

    @classmethod
    def from_checkpoint(
        cls,
        path: str,
        *,
        device: str = "cpu",
        ema: bool = True,
        attention_backend: str = "auto",
        base: str = "",
        decoder: str = "",
    ) -> Sampler:
        """A sampler with the (EMA) weights of a checkpoint; raises as `sample`.

        Args:
            attention_backend: of the model calls here; `auto` is the fastest that runs on the device. It need not be the
                training's.
            base: for temporal layers: checkpoint of another image model of the same architecture to put them over.
            decoder: spec of a compressor with the same latents, to decode with.
        """
        config, weights = checkpoint.load_model(path, ema=ema, task="dit")
        try:
            backbone = {key: value for key, value in config["backbone"].items() if key != "name"}
            building = functools.partial(build, config["backbone"]["name"], attention_backend=attention_backend)
            text = config["text_encoder"]["spec"], config["text_encoder"]["weights_hash"]
            patch_frames, patch_rows, patch_columns = config["patch"]
            diffusion = DiffusionSettings(**config["diffusion"])
            buckets = [parse_bucket(name) for name in config["buckets"]]
            compressor, conditions = config["compressor"], config["conditions"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointMismatchError(
                f"{path} has a config that describes no sampler ({type(error).__name__}: {error})"
            ) from error
        model = build_model(building, backbone, weights_over_base(config, weights, path, other_base=base), path)
        return cls(
            model,
            encoder=text_encoder.load(text[0], device=device, weights_hash=text[1]),
            compressor=_load_compressor(compressor, path, device, decoder),
            patch=(patch_frames, patch_rows, patch_columns),
            diffusion=diffusion,
            buckets=buckets,
            conditions=conditions,
            distilled=config.get("distilled"),
            stage=config.get("stage"),
            device=device,
            name=path,
        )

    def resolved(self, settings: SolverSettings) -> SolverSettings:
        """The settings as this model is sampled with; raises UsageError where they do not fit it."""
        settings = settings.resolved(self.diffusion, self.device, self.student)
        Guidance.of(settings.guidance).check_values(self.value_range)
        return settings

    def windows_of(self, token_shape: Shape3) -> tuple[Window, ...]:
        """Overlapping windows of a video that is longer than those of the training; none for a shorter one."""
        length, overlap = self._window_size(0, 0)
        return tuple(overlapping_windows(token_shape[0], length, overlap)) if token_shape[0] > length else ()

    def num_steps(self, requested: int) -> int:
        """Steps of the solver; `requested` 0: the default, or those that a distilled model was trained for."""
        return self.student.num_steps_for(requested) if self.student else requested or DEFAULT_NUM_STEPS

    @property
    def fps(self) -> int:
        return self.buckets[0].fps

    def frames_of(self, seconds: float) -> int:
        """Frames in so many seconds, at least one."""
        return max(1, round(seconds * self.fps))

    @property
    def max_trained_frames(self) -> int:
        """Frames of the longest bucket it was trained on; longer videos are sampled in windows."""
        return max(bucket.num_frames for bucket in self.buckets)

    def window_frames(self, requested_frames: int = 0) -> int:
        """Frames of the longest video that is sampled at once.

        Args:
            requested_frames: 0: those of the longest trained video.
        """
        return 1 + (self._window_size(requested_frames, 0)[0] * self.grid.patch[0] - 1) * self.grid.frame_stride

    @property
    def overlap_frames(self) -> int:
        """Default overlap of windows, and of a loop with its start: about a third of a window."""
        return self._window_size(0, 0)[1] * self.tokenizer.frames_per_token

    def default_new_frames(self, mode: str) -> int:
        """Frames to add to a video by default: as many as fit into one window next to known frames, on one or both sides."""
        length, overlap = self._window_size(0, 0)
        room = length // 2 if mode in ("connect", "loop") else length - overlap
        return max(1, room) * self.tokenizer.frames_per_token

    def size(self, num_frames: int | None, height_px: int | None, width_px: int | None) -> Bucket:
        """The requested size, completed from the most frequent bucket.

        Raises:
            UsageError: the model's grid does not have this size; the nearest one is named.
        """
        default = self.buckets[0]
        requested = Bucket(
            num_frames or default.num_frames, height_px or default.height_px, width_px or default.width_px, default.fps
        )
        nearest = nearest_size(requested, self.grid)
        if nearest != requested:
            step_px = self.grid.spatial_stride * self.grid.patch[1], self.grid.spatial_stride * self.grid.patch[2]
            raise UsageError(
                f"this model cannot sample {requested.num_frames} frames of {requested.height_px}x{requested.width_px} px "
                f"(height x width): it takes {self.grid.frame_stride}k+1 frames, heights in steps of {step_px[0]} and "
                f"widths in steps of {step_px[1]}; nearest is {nearest.num_frames} frames of "
                f"{nearest.height_px}x{nearest.width_px}"
            )
        return requested

    def sample(
        self,
        prompts: Sequence[str],
        *,
        size: Bucket,
        num_steps: int = 0,
        guidance: float | Guidance = 4.0,
        solver: str = "auto",
        precision: str = "auto",
        seed: int = 0,
        progress: bool = False,
    ) -> list[np.ndarray]:
        """Text to video; see the function `sample`."""
        conditioning = text_to_video(size.num_frames, size.height_px, size.width_px)
        requests = [Request(text=prompt, conditioning=conditioning, seed=seed) for prompt in prompts]
        settings = SolverSettings(num_steps=num_steps, guidance=guidance, solver=solver, precision=precision)
        return [sampled.video_THWC for sampled in self.sample_requests(requests, settings, progress=progress)]

    @torch.no_grad()
    def sample_requests(
        self,
        requests: Sequence[Request],
        settings: SolverSettings | None = None,
        *,
        window_frames: int = 0,
        overlap_frames: int = 0,
        conditioning_pixels: str = "decoded",
        progress: bool = False,
    ) -> list[SampledVideo]:
        """One video per request; the result of a request does not depend on the others.

        Args:
            window_frames: length of a window; 0: that of the longest trained video.
            overlap_frames: frames that a window shares with the one before; 0: about a third of it.
            conditioning_pixels: of the conditioning frames in the result: `decoded` by the compressor, or `original`.

        Raises:
            UsageError: no request, or a mode that the model was not trained for.
        """
        if not requests:
            raise UsageError("no prompt to sample")
        if conditioning_pixels not in CONDITIONING_PIXELS:
            raise UsageError(
                f"unknown conditioning_pixels {conditioning_pixels!r}: choose one of {', '.join(CONDITIONING_PIXELS)}"
            )
        if self.student and any(request.conditioning.source_text is not None for request in requests):
            raise UsageError(
                f"{self.name} is distilled to a few steps, which cannot be inverted: edit with its teacher"
            )
        for request in requests:
            for mode in (request.conditioning.mode, *(("loop",) if request.loop_frames else ())):
                check_trained_for(mode, self.conditions, self.name)
        if self.stage is not None:
            raise UsageError(f"{self.name} is a {self.stage.kind} stage of a cascade: name its base before it")
        settings = self.resolved(settings or SolverSettings())
        window_length, overlap = self._window_size(window_frames, overlap_frames)
        max_frames = self.window_frames(window_frames)
        takes = [self._take(request, repetition, max_frames) for request, repetition in number_repeats(requests)]
        state_of = functools.partial(
            SamplingState,
            tokenizer=self.tokenizer,
            window_length=window_length,
            overlap=overlap,
            is_autoregressive=is_trained_for("extend", self.conditions),
        )
        states = _states(takes, state_of)
        of_first = [state for of_take in states.values() for state in of_take]
        has_context = any(state.has_context for state in of_first) or any(take.num_later_windows for take in takes)
        if Guidance.of(settings.guidance).context != 1 and not has_context:
            raise UsageError("context guidance has no effect on videos without conditioning frames: leave it out")
        num_passes = sum(take.num_later_windows for take in takes)
        num_passes += sum(state.num_passes for state in of_first)
        with tqdm(total=num_passes * settings.num_steps, desc="sample", unit="step", disable=not progress) as bar:
            while states:
                self._sample_states([state for of_take in states.values() for state in of_take], settings, bar)
                for take, of_take in states.items():
                    take.commit([state.result(original_pixels=conditioning_pixels == "original") for state in of_take])
                states = _states(takes, state_of)
        return [take.result() for take in takes]

    def _take(self, request: Request, repetition: int, window_frames: int) -> SingleTake | KeyFrameTake:
        """By key frames where the request asks for it and does not fit into one window.

        Raises:
            UsageError: key frames for a model or in a mode that cannot have them.
        """
        if request.long == "windows" or request.conditioning.num_frames <= window_frames:
            return SingleTake(request, repetition)
        check_trained_for("long keyframes", self.conditions, self.name)
        return KeyFrameTake(request, repetition, window_frames, self.grid)

    def _sample_states(self, states: Sequence[SamplingState], settings: SolverSettings, bar: tqdm) -> None:
        """Sample the windows of each state, packed with those of the others."""
        while waiting := [state for state in states if state.next_input() is not None]:
            inverted = [state for state in waiting if state.is_inverted]
            drawn = [state for state in waiting if not state.is_inverted]
            for pack in (
                pack for of_kind in (inverted, drawn) for pack in pack_requests(of_kind, settings.max_pack_tokens)
            ):
                self._sample_pack(pack, settings, functools.partial(bar.update, len(pack)))

    def _sample_pack(
        self, states: Sequence[SamplingState], settings: SolverSettings, on_step: Callable[[], object]
    ) -> None:
        """Denoise and decode the next window of each state."""
        inputs = [one for state in states if (one := state.next_input())]
        tokens = denoise(
            self.model,
            inputs,
            encoder=self.encoder,
            diffusion=self.diffusion,
            num_steps=settings.num_steps,
            guidance=Guidance.of(settings.guidance),
            solver=settings.solver,
            max_pack_tokens=settings.max_pack_tokens,
            precision=settings.precision,
            value_range=self.value_range,
            on_step=on_step,
        )
        for state, one, tokens_LD in zip(states, inputs, tokens, strict=True):
            state.commit(self.tokenizer.decode(tokens_LD, one.token_shape))

    def _window_size(self, window_frames: int, overlap_frames: int) -> tuple[int, int]:
        """(length, overlap) of a window in token frames.

        Raises:
            UsageError: the overlap leaves no room for new frames.
        """
        unit = self.tokenizer.frames_per_token
        length = max(MIN_WINDOW_LENGTH, (max(window_frames or self.max_trained_frames, 1) - 1) // unit + 1)
        overlap = -(-overlap_frames // unit) if overlap_frames else max(1, round(length / 3))
        if overlap > length - 2:
            raise UsageError(
                f"overlap_frames = {overlap_frames} leaves no room for new frames in windows of {1 + (length - 1) * unit} "
                f"frames: at most {unit * (length - 2)}"
            )
        return length, overlap


def _states(
    takes: Sequence[SingleTake | KeyFrameTake], state_of: Callable[[Request, int], SamplingState]
) -> dict[SingleTake | KeyFrameTake, list[SamplingState]]:
    """The states of what can be sampled now, of the takes that are not complete."""
    return {
        take: [state_of(one, take.repetition) for one in requests]
        for take in takes
        if (requests := take.next_requests())
    }


def _load_compressor(saved: dict[str, Any], path: str, device: str, decoder: str) -> Compressor:
    """The compressor of a checkpoint, or `decoder` in its place.

    Raises:
        CheckpointMismatchError: its spec is another compressor by now (retrained under the same path, say), or `decoder` is
            one of other latents.
    """
    compressor = compressors.load(decoder or saved["spec"], device=device)
    if checkpoint.as_json(compressor.config) != saved["config"]:
        raise CheckpointMismatchError(
            f"{path} was trained on latents of {saved['spec']} with {saved['config']}; "
            f"{decoder or 'here it'} is {compressor.config}"
        )
    return compressor
