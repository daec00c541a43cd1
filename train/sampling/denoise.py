"""Denoising of several videos at once, as one pack, with classifier-free guidance and overlapping windows.

    inputs = [DenoiseInput(text="a red circle", noise_key=("sample", 0, 0), token_shape=(5, 8, 8))]
    tokens = denoise(model, inputs, encoder=encoder, diffusion=diffusion, num_steps=40, guidance=Guidance(), solver="auto")

An input may have conditioning tokens (put back before every model call, so that any solver works), start from a partly
noised video (SDEdit), or be longer than the model was trained on: then overlapping windows are predicted and averaged.

Shape suffixes: L tokens of a pack, S inputs of a pack, V windows of a pack, D numbers per token, K points in time; of a
mask, K token frames.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from packing.grid import Shape3, positions
from train.backbones.interface import PackedInputs
from train.diffusion.guidance import Guidance, dynamic_threshold
from train.diffusion.inversion import invert
from train.diffusion.noise_schedules import NUM_DISCRETE_STEPS
from train.diffusion.parameterization import prediction_target, to_x0_and_noise
from train.diffusion.process import DiffusionSettings, TimestepsAndNoise, add_noise
from train.diffusion.rng import seeded_generator
from train.diffusion.solvers import integrate, sampling_timesteps
from train.layers.layouts import LayoutKey, Layouts
from train.layers.segments import Segments
from train.parallel.transfer import copied
from train.sampling.student import GUIDANCE
from train.sampling.windows import Window, blend_weights
from train.text.encoder import TextEncoder


@dataclass(frozen=True, kw_only=True)
class DenoiseInput:
    """A video, or a window of one, to be denoised."""

    text: str
    noise_key: tuple[str | int, ...]
    """Seeds its noise."""
    token_shape: Shape3
    """Tokens along (frames, rows, columns)."""
    clean_LD: Tensor | None = None
    """Tokens of the conditioning frames, or of the video to edit."""
    condition_mask_K: tuple[bool, ...] = ()
    """Per token frame: whether it is a conditioning frame. Empty: none of them."""
    strength: float = 1.0
    """Time to start from: 1 = pure noise, below = `clean_LD` noised to that time."""
    source_text: str | None = None
    """Start from the noise that `clean_LD` has under this caption, by inversion; None: from drawn noise. All inputs of a
    pack have one, or none has."""
    windows: tuple[Window, ...] = ()
    """Overlapping windows of token frames; empty: the model gets the whole input."""
    hint_LD: Tensor | None = None
    """Noised tokens of the low-resolution video, for a super-resolution model."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """Further numbers that the model takes, without the guidance scale of a student."""

    @property
    def tokens_per_frame(self) -> int:
        return self.token_shape[1] * self.token_shape[2]

    @property
    def num_tokens(self) -> int:
        return self.token_shape[0] * self.tokens_per_frame

    @property
    def model_windows(self) -> tuple[Window, ...]:
        """`windows`, or one window over the whole input."""
        return self.windows or (Window(0, self.token_shape[0]),)


def denoise(
    model: nn.Module,
    inputs: Sequence[DenoiseInput],
    *,
    encoder: TextEncoder,
    diffusion: DiffusionSettings,
    num_steps: int,
    guidance: Guidance,
    solver: str,
    max_pack_tokens: int,
    precision: str = "fp32",
    value_range: tuple[float, float] | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> list[Tensor]:
    """Clean tokens of every input.

    Args:
        precision: of the model calls, `fp32` or `bf16` (autocast); what the solver computes stays float32.
        max_pack_tokens: limit of one model call; applies to the windows of one input only, callers pack inputs.
        value_range: bounds of the values of clean tokens, for the dynamic threshold.
        on_step: called after each solver step, for a progress bar.
    """
    guidance.check_values(value_range)
    pack = _PackedInputs(model, inputs, encoder, guidance, max_pack_tokens, precision, diffusion)
    times_KS = _times(inputs, num_steps, diffusion)

    def after_step() -> None:
        pack.step += 1
        on_step()

    if inputs[0].source_text is None:
        start_LD = pack.initial(times_KS[0])
    else:
        sources = [dataclasses.replace(one, text=one.source_text or "", condition_mask_K=()) for one in inputs]
        source = _PackedInputs(model, sources, encoder, Guidance(scale=1.0), max_pack_tokens, precision, diffusion)
        assert source.clean_LD is not None, "an input to invert has clean tokens"
        start_LD = invert(
            source.predict,
            source.clean_LD,
            source.segments,
            times_KS,
            diffusion=diffusion,
            solver=solver,
            on_step=on_step,
        )
    x_LD = integrate(
        pack.predict,
        start_LD,
        pack.segments,
        times_KS,
        diffusion=diffusion,
        solver=solver,
        noise_of=lambda number: pack.noise("step", number),
        on_step=after_step,
    )
    return list(pack.with_conditioning(x_LD).split([one.num_tokens for one in inputs]))


def _times(inputs: Sequence[DenoiseInput], num_steps: int, diffusion: DiffusionSettings) -> Tensor:
    """(K+1, S) timesteps on the CPU, shifted by the size that the model gets of each input and scaled by its strength."""
    shapes = [(one.model_windows[0].length, *one.token_shape[1:]) for one in inputs]
    segments = Segments.from_lengths([frames * rows * columns for frames, rows, columns in shapes])
    strength_S = torch.tensor([one.strength for one in inputs])
    times_KS = sampling_timesteps(num_steps, segments, diffusion, token_shapes=shapes) * strength_S
    return (times_KS * NUM_DISCRETE_STEPS).ceil() / NUM_DISCRETE_STEPS if diffusion.discrete else times_KS


class _PackedInputs:
    """The inputs as one pack, and the guided model on it."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[DenoiseInput],
        encoder: TextEncoder,
        guidance: Guidance,
        max_pack_tokens: int,
        precision: str,
        diffusion: DiffusionSettings,
    ) -> None:
        self.model, self.inputs, self.guidance, self.precision = model, inputs, guidance, precision
        self.diffusion, self.step = diffusion, 0
        self.device = next(model.parameters()).device
        self.segments = Segments.from_lengths([one.num_tokens for one in inputs], self.device)
        self.clean_LD, self.condition_mask_L, self.hint_LD = self._clean(), self._condition_mask(), self._hint()
        self.is_student = GUIDANCE in model.config.get("scalars", ())  # type: ignore[operator, union-attr]
        windows = [(index, window) for index, one in enumerate(inputs) for window in one.model_windows]
        self.calls = [
            _ModelCall(inputs, of_call, encoder, self.device, model.layout_keys)  # type: ignore[arg-type]
            for of_call in _split_into_calls(inputs, windows, max_pack_tokens)
        ]
        self.is_averaged = any(len(one.model_windows) > 1 for one in inputs)

    def _clean(self) -> Tensor | None:
        if all(one.clean_LD is None for one in self.inputs):
            return None
        width = self.model.config["token_width"]
        parts = [torch.zeros(one.num_tokens, width) if one.clean_LD is None else one.clean_LD for one in self.inputs]
        return copied(torch.cat([part.cpu() for part in parts]), self.device)

    def _condition_mask(self) -> Tensor | None:
        if not any(any(one.condition_mask_K) for one in self.inputs):
            return None
        masks = [
            torch.tensor(one.condition_mask_K or (False,) * one.token_shape[0]).repeat_interleave(one.tokens_per_frame)
            for one in self.inputs
        ]
        return copied(torch.cat(masks), self.device)

    def _hint(self) -> Tensor | None:
        hints = [one.hint_LD for one in self.inputs if one.hint_LD is not None]
        return copied(torch.cat([hint.cpu() for hint in hints]), self.device) if hints else None

    def initial(self, timestep_S: Tensor) -> Tensor:
        """Pure noise; for inputs of strength below 1, `clean_LD` noised to `timestep_S`."""
        if all(one.strength == 1 for one in self.inputs):
            return self.initial_noise_LD
        is_noised_S = copied(torch.tensor([one.strength < 1 for one in self.inputs]), self.device)
        is_noised_L1 = is_noised_S[self.segments.segment_ids_L, None]
        return torch.where(is_noised_L1, self._clean_noised(timestep_S), self.initial_noise_LD)

    def _clean_noised(self, timestep_S: Tensor) -> Tensor:
        """`clean_LD` with the initial noise at this time."""
        assert self.clean_LD is not None, "conditioning frames and inputs of strength below 1 have clean tokens"
        draws = TimestepsAndNoise(copied(timestep_S, self.device), self.initial_noise_LD)
        return add_noise(self.clean_LD, draws, self.segments, self.diffusion).x_LD

    @functools.cached_property
    def initial_noise_LD(self) -> Tensor:
        return self.noise()

    def noise(self, *step: str | int) -> Tensor:
        """Initial noise, or that of one solver step; of each input by its own key, so the rest of the pack is irrelevant."""
        width = self.model.config["token_width"]
        parts = [
            torch.randn(one.num_tokens, width, generator=seeded_generator(*one.noise_key, *step)) for one in self.inputs
        ]
        return copied(torch.cat(parts), self.device)

    def with_conditioning(self, x_LD: Tensor) -> Tensor:
        """x with the clean conditioning tokens put back."""
        if self.condition_mask_L is None:
            return x_LD
        assert self.clean_LD is not None
        return torch.where(self.condition_mask_L[:, None], self.clean_LD, x_LD)

    def predict(self, x_LD: Tensor, timestep_S: Tensor) -> Tensor:
        """The guided prediction under the dynamic threshold, averaged over windows.

        Args:
            timestep_S: on the CPU: whether guidance applies is decided without waiting for the device.
        """
        mask_L = self.condition_mask_L
        noised_LD = None if mask_L is None else torch.where(mask_L[:, None], self._clean_noised(timestep_S), x_LD)
        x_LD = self.with_conditioning(x_LD)
        prediction_LD = self._averaged(x_LD, noised_LD, timestep_S)
        if not self.guidance.dynamic_threshold:
            return prediction_LD
        alpha_S, sigma_S = self.diffusion.alpha_sigma(timestep_S)
        alpha_L1, sigma_L1 = (
            copied(scale_S.to(x_LD.dtype), x_LD.device)[self.segments.segment_ids_L, None]
            for scale_S in (alpha_S, sigma_S)
        )
        kind = self.diffusion.prediction
        clean_LD, _ = to_x0_and_noise(kind, prediction_LD, x_LD, alpha_L1, sigma_L1)
        clean_LD = dynamic_threshold(clean_LD, self.segments, self.guidance.dynamic_threshold)
        return prediction_target(kind, clean_LD, (x_LD - alpha_L1 * clean_LD) / sigma_L1, alpha_L1, sigma_L1)

    def _averaged(self, x_LD: Tensor, noised_LD: Tensor | None, timestep_S: Tensor) -> Tensor:
        """The guided prediction, averaged over windows."""
        if not self.is_averaged:
            (call,) = self.calls
            return self._predict(call, x_LD, noised_LD, timestep_S)
        sum_LD, weight_L1 = torch.zeros_like(x_LD), x_LD.new_zeros(len(x_LD), 1)
        for call in self.calls:
            part_noised_LD = None if noised_LD is None else noised_LD[call.index_L]
            part_LD = self._predict(call, x_LD[call.index_L], part_noised_LD, timestep_S)
            sum_LD.index_add_(0, call.index_L, part_LD * call.weight_L1)
            weight_L1.index_add_(0, call.index_L, call.weight_L1)
        return sum_LD / weight_L1

    def _predict(self, call: _ModelCall, x_LD: Tensor, noised_LD: Tensor | None, timestep_S: Tensor) -> Tensor:
        """The guided prediction for the windows of one call.

        Args:
            noised_LD: with the conditioning tokens noised too; None where there are none.
        """
        timestep_V = timestep_S[call.input_V]
        hint_LD = None if self.hint_LD is None else self.hint_LD[call.index_L]
        mask_L = None if self.condition_mask_L is None else self.condition_mask_L[call.index_L]
        has_text_guidance = not self.is_student and bool((self.guidance.scales(timestep_V, self.step) != 1).any())
        has_context_guidance = mask_L is not None and self.guidance.context != 1
        scalars = dict(call.scalars)
        if self.is_student:
            scalars[GUIDANCE] = torch.full_like(timestep_V, self.guidance.scale)
        inputs = call.inputs(x_LD, noised_LD, timestep_V, mask_L, hint_LD=hint_LD, scalars=scalars)
        copies = 1 + has_text_guidance + has_context_guidance
        num_windows = len(call.segments)
        inputs = inputs.repeated(copies, [False] * num_windows + [has_text_guidance] * num_windows * (copies - 1))
        if has_context_guidance:
            inputs = _last_without_context(inputs, copies)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            parts = self.model(inputs).chunk(copies)
        prediction_LD = parts[0]
        if has_text_guidance:
            prediction_LD = self.guidance.combine(parts[0], parts[1], timestep_V, call.segments, self.step)
        if has_context_guidance:
            prediction_LD = prediction_LD + (self.guidance.context - 1) * (parts[int(has_text_guidance)] - parts[-1])
        return prediction_LD if mask_L is None else prediction_LD.masked_fill(mask_L[:, None], 0)


class _ModelCall:
    """The windows of one model call. Each is a sample of the pack, with positions that start at 0."""

    def __init__(
        self,
        inputs: Sequence[DenoiseInput],
        windows: Sequence[tuple[int, Window]],
        encoder: TextEncoder,
        device: torch.device,
        layout_keys: Iterable[LayoutKey],
    ) -> None:
        """
        Args:
            windows: (index of the input, window).
            layout_keys: of the model.
        """
        starts = [0, *itertools.accumulate(one.num_tokens for one in inputs)]
        index, position, weight, shapes = [], [], [], []
        for number, window in windows:
            one = inputs[number]
            per_frame = one.tokens_per_frame
            first = starts[number] + window.start * per_frame
            index.append(torch.arange(first, first + window.length * per_frame))
            shapes.append((window.length, *one.token_shape[1:]))
            position.append(torch.from_numpy(positions(shapes[-1])))
            weight.append(torch.from_numpy(blend_weights(window)).repeat_interleave(per_frame))
        self.device = device
        self.index_L = copied(torch.cat(index), device)
        """Tokens of the windows in the pack of inputs."""
        self.weight_L1 = copied(torch.cat(weight)[:, None], device)
        self.token_shapes = tuple(shapes)
        segments, position_L3 = Segments.from_lengths([math.prod(shape) for shape in shapes]), torch.cat(position)
        self.position_L3, self.segments = copied(position_L3, device), segments.to(device)
        layouts = Layouts(segments, position_L3).built(layout_keys)
        self.layouts = layouts.to(device, self.segments, self.position_L3)
        self.scalars = {
            name: torch.tensor([inputs[number].scalars[name] for number, _ in windows]) for name in inputs[0].scalars
        }
        """On the CPU too."""
        self.input_V = torch.tensor([number for number, _ in windows])
        """On the CPU, where the timesteps are."""
        self.text = encoder.encode([inputs[number].text for number, _ in windows]).to(device)

    def inputs(
        self,
        x_LD: Tensor,
        noised_LD: Tensor | None,
        timestep_V: Tensor,
        condition_mask_L: Tensor | None,
        *,
        hint_LD: Tensor | None,
        scalars: Mapping[str, Tensor],
    ) -> PackedInputs:
        """Of one model call with the texts."""
        return PackedInputs(
            tokens_LD=x_LD,
            position_L3=self.position_L3,
            segments=self.segments,
            timestep_S=copied(timestep_V, self.device),
            text=self.text,
            condition_mask_L=condition_mask_L,
            noised_LD=noised_LD,
            hint_LD=hint_LD,
            scalars={name: copied(value_V, self.device) for name, value_V in scalars.items()},
            token_shapes=self.token_shapes,
            layouts=self.layouts,
        )


def _last_without_context(inputs: PackedInputs, copies: int) -> PackedInputs:
    """The last of the copies as if there were no conditioning frames: all tokens noised."""
    assert inputs.condition_mask_L is not None
    is_last_L = torch.arange(len(inputs.tokens_LD), device=inputs.tokens_LD.device) >= (
        len(inputs.tokens_LD) // copies * (copies - 1)
    )
    return inputs.replace(
        tokens_LD=torch.where(is_last_L[:, None], inputs.all_noised_LD, inputs.tokens_LD),
        condition_mask_L=inputs.condition_mask_L & ~is_last_L,
    )


def _split_into_calls(
    inputs: Sequence[DenoiseInput], windows: Sequence[tuple[int, Window]], max_pack_tokens: int
) -> list[list[tuple[int, Window]]]:
    """One call for inputs of one window each; otherwise calls of at most `max_pack_tokens`."""
    if all(len(one.model_windows) == 1 for one in inputs):
        return [list(windows)]
    calls: list[list[tuple[int, Window]]] = [[]]
    num_tokens = 0
    for number, window in windows:
        length = window.length * inputs[number].tokens_per_frame
        if calls[-1] and num_tokens + length > max_pack_tokens:
            calls.append([])
            num_tokens = 0
        calls[-1].append((number, window))
        num_tokens += length
    return calls
