"""Prompts to video with a checkpoint alone: it names its own text encoder, compressor, grid and sizes.

    videos = sample("RUN/train/dit", ["a red circle moves left"], num_frames=17, height_px=64, width_px=112)

    sampler = Sampler.from_checkpoint("RUN/train/dit")                  # every other kind of prompt
    request = Request(text="it moves left", timeline=animated(image_HWC, 17, sampler.grid))
    (made,) = sampler.make([request])
    made.video_THWC, made.given_T

All prompts go through the transformer as one packed row (several under a cap on tokens), with and without their text
where guidance asks for both. Any size of the model's grid will do, also one it was not trained at; videos longer than
those it was trained on are made window by window (windows.py). The same prompt, size and seed give the same video, whatever
else is sampled beside it.

Given frames come back as the compressor shows them, so that they look like the frames made beside them; their latents are
exactly those of the given pixels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from packing.buckets import Bucket, parse_bucket
from recaption.errors import CheckpointMismatchError, UsageError
from train import compressors
from train.backbones.registry import build
from train.checkpoint import step_folder as checkpoint
from train.checkpoint.weights import load_weights
from train.compressors.interface import Compressor
from train.diffusion.frame_conditioning import check_trained_for, is_trained_for
from train.diffusion.guidance import Guidance
from train.diffusion.process import PathSettings
from train.diffusion.solvers import choose_solver
from train.sampling.conditioning_frames import blank
from train.sampling.denoise import denoise
from train.sampling.request import Made, Request, TokenCodec, Work, in_rows, with_repetitions
from train.sampling.sizes import nearest_size
from train.text import encoder as text_encoder
from train.text.encoder import TextEncoder

MAX_ROW_TOKENS = 32_768
"""Most tokens of one row while sampling, guidance's second copy included; bounds memory."""


GIVEN_PIXELS = ("decoded", "original")


MIN_WINDOW = 3
"""Token frames: given ones on both sides and one between."""


@dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """How the way from noise to clean is walked."""

    num_steps: int = 40
    guidance: float | Guidance = 4.0
    """A scale, or `Guidance` for all there is to set: 1 = none (one model call instead of two), higher = closer to the
    prompt and less varied."""
    solver: str = "auto"
    """`auto`, or one of `train.diffusion.solvers` that goes with the schedule the model was trained on."""

    def resolved(self, path: PathSettings) -> SolverSettings:
        """Raises UsageError where they do not go with the model, or make no sense."""
        guidance = Guidance.of(self.guidance)
        guidance.check()
        return dataclasses.replace(self, guidance=guidance, solver=choose_solver(self.solver, path))

    @property
    def max_row_tokens(self) -> int:
        return MAX_ROW_TOKENS // (1 if Guidance.of(self.guidance).scale == 1 else 2)


def sample(
    checkpoint_path: str,
    prompts: Sequence[str],
    *,
    num_frames: int | None = None,
    height_px: int | None = None,
    width_px: int | None = None,
    num_steps: int = 40,
    guidance: float | Guidance = 4.0,
    solver: str = "auto",
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> list[np.ndarray]:
    """One video (T, H, W, 3) uint8 per prompt.

    Args:
        checkpoint_path: a step folder, or a training's folder (its newest step).
        num_frames, height_px, width_px: the size most samples were trained at where left out.
        num_steps: of the solver; `heun` asks the model twice a step.
        guidance: a scale, or `Guidance` for all there is to set: 1 = none (one model call instead of two), higher =
            closer to the prompt and less varied.
        solver: `auto`, or one of `train.diffusion.solvers` that goes with the schedule the model was trained on.
        seed: the same noise for every prompt; a prompt that is given twice gets another noise the second time.

    Raises:
        UsageError: no checkpoint there, no prompt, or a size off the model's grid (the nearest one is named).
        CheckpointMismatchError: a checkpoint of something else.
    """
    sampler = Sampler.from_checkpoint(checkpoint_path, device=device)
    return sampler.sample(
        prompts,
        size=sampler.size(num_frames, height_px, width_px),
        num_steps=num_steps,
        guidance=guidance,
        solver=solver,
        seed=seed,
        progress=progress,
    )


class Sampler:
    """A trained transformer with all it needs around it."""

    def __init__(
        self,
        model: nn.Module,
        *,
        encoder: TextEncoder,
        compressor: Compressor,
        patch: tuple[int, int, int],
        path: PathSettings,
        buckets: Sequence[Bucket],
        conditions: Sequence[str] = (),
        device: torch.device | str = "cpu",
        source: str = "this model",
    ) -> None:
        """
        Args:
            buckets: sizes the model was trained at, the most frequent first.
            conditions: the mix of given frames it was trained with.
            source: what messages call it.
        """
        self.device = torch.device(device)
        self.model, self.compressor = model.to(self.device).eval(), compressor.to(self.device)
        self.encoder, self.path = encoder, path
        self.codec = TokenCodec(self.compressor, patch, self.device)
        self.grid = self.codec.grid
        self.buckets, self.conditions, self.source = tuple(buckets), tuple(conditions), source

    @classmethod
    def from_checkpoint(cls, path: str, *, device: str = "cpu", ema: bool = True) -> Sampler:
        """Raises UsageError or CheckpointMismatchError as `sample`."""
        config, weights = checkpoint.load_model(path, ema=ema, task="dit")
        backbone = dict(config["backbone"])
        model = build(backbone.pop("name"), **backbone)
        load_weights(model, weights, path)
        text = config["text_encoder"]
        patch_frames, patch_rows, patch_columns = config["patch"]
        return cls(
            model,
            encoder=text_encoder.load(text["spec"], device=device, weights_hash=text["weights_hash"]),
            compressor=_load_compressor(config["compressor"], path, device),
            patch=(patch_frames, patch_rows, patch_columns),
            path=PathSettings(**config["path"]),
            buckets=[parse_bucket(name) for name in config["buckets"]],
            conditions=config.get("conditions", ()),
            device=device,
            source=path,
        )

    @property
    def fps(self) -> int:
        return self.buckets[0].fps

    @property
    def longest_frames(self) -> int:
        """Of the videos it was trained on; longer ones are made in windows."""
        return max(bucket.num_frames for bucket in self.buckets)

    @property
    def overlap_frames(self) -> int:
        """What windows share unless told otherwise, and what a loop sees of its start: about a third of a window."""
        return self._window(0, 0)[1] * self.codec.frames_per_token

    def default_new_frames(self, mode: str) -> int:
        """Frames to add to a video: what one window has room for beside given frames, on one side or on both."""
        longest, overlap = self._window(0, 0)
        room = longest // 2 if mode in ("connect", "loop") else longest - overlap
        return max(1, room) * self.codec.frames_per_token

    def size(self, num_frames: int | None, height_px: int | None, width_px: int | None) -> Bucket:
        """The size asked for, completed from the most frequent bucket.

        Raises:
            UsageError: the model's grid has no such size; the nearest one is named.
        """
        usual = self.buckets[0]
        wanted = Bucket(
            num_frames or usual.num_frames, height_px or usual.height_px, width_px or usual.width_px, usual.fps
        )
        nearest = nearest_size(wanted, self.grid)
        if nearest != wanted:
            step_px = self.grid.spatial_stride * self.grid.patch[1], self.grid.spatial_stride * self.grid.patch[2]
            raise UsageError(
                f"this model cannot sample {wanted.num_frames} frames of {wanted.height_px}x{wanted.width_px} px "
                f"(height x width): it takes {self.grid.frame_stride}k+1 frames, heights in steps of {step_px[0]} and "
                f"widths in steps of {step_px[1]}; nearest is {nearest.num_frames} frames of "
                f"{nearest.height_px}x{nearest.width_px}"
            )
        return wanted

    def sample(
        self,
        prompts: Sequence[str],
        *,
        size: Bucket,
        num_steps: int = 40,
        guidance: float | Guidance = 4.0,
        solver: str = "auto",
        seed: int = 0,
        progress: bool = False,
    ) -> list[np.ndarray]:
        """As the function `sample`."""
        timeline = blank(size.num_frames, size.height_px, size.width_px)
        requests = [Request(text=prompt, timeline=timeline, seed=seed) for prompt in prompts]
        settings = SolverSettings(num_steps=num_steps, guidance=guidance, solver=solver)
        return [made.video_THWC for made in self.make(requests, settings, progress=progress)]

    @torch.no_grad()
    def make(
        self,
        requests: Sequence[Request],
        settings: SolverSettings | None = None,
        *,
        window_frames: int = 0,
        overlap_frames: int = 0,
        given_pixels: str = "decoded",
        progress: bool = False,
    ) -> list[Made]:
        """One video per request; the same for the same request, whatever the others are.

        Args:
            window_frames: longest piece that is made at once; 0: the longest video of the training.
            overlap_frames: frames that a piece shares with the one before; 0: about a third of it.
            given_pixels: `decoded` shows given frames as the compressor does, `original` as they came.

        Raises:
            UsageError: nothing asked for, or a kind of prompt that the model was not trained for.
        """
        if not requests:
            raise UsageError("no prompt to sample")
        if given_pixels not in GIVEN_PIXELS:
            raise UsageError(f"unknown given_pixels {given_pixels!r}: choose one of {', '.join(GIVEN_PIXELS)}")
        for request in requests:
            for mode in (request.timeline.mode, *(("loop",) if request.closing_frames else ())):
                check_trained_for(mode, self.conditions, self.source)
        settings = (settings or SolverSettings()).resolved(self.path)
        longest, overlap = self._window(window_frames, overlap_frames)
        is_rolled = is_trained_for("extend", self.conditions)
        works = [
            Work(request, repetition, self.codec, longest=longest, overlap=overlap, is_rolled=is_rolled)
            for request, repetition in with_repetitions(requests)
        ]
        num_steps = sum(work.num_windows for work in works) * settings.num_steps
        with tqdm(total=num_steps, desc="sample", unit="step", disable=not progress) as bar:
            while waiting := [work for work in works if work.next_piece() is not None]:
                for row in in_rows(waiting, settings.max_row_tokens):
                    self._make_row(row, settings, functools.partial(bar.update, len(row)))
        return [work.made(is_original=given_pixels == "original") for work in works]

    def _make_row(self, row: Sequence[Work], settings: SolverSettings, on_step: Callable[[], object]) -> None:
        pieces = [piece for work in row if (piece := work.next_piece())]
        tokens = denoise(
            self.model,
            pieces,
            encoder=self.encoder,
            path=self.path,
            num_steps=settings.num_steps,
            guidance=Guidance.of(settings.guidance),
            solver=settings.solver,
            max_row_tokens=settings.max_row_tokens,
            on_step=on_step,
        )
        for work, piece, tokens_LD in zip(row, pieces, tokens, strict=True):
            work.take(self.codec.decode(tokens_LD, piece.token_shape))

    def _window(self, window_frames: int, overlap_frames: int) -> tuple[int, int]:
        """(longest, overlap) of a window in token frames.

        Raises:
            UsageError: an overlap that leaves no room for new frames.
        """
        unit = self.codec.frames_per_token
        longest = max(MIN_WINDOW, (max(window_frames or self.longest_frames, 1) - 1) // unit + 1)
        overlap = -(-overlap_frames // unit) if overlap_frames else max(1, round(longest / 3))
        if overlap > longest - 2:
            raise UsageError(
                f"overlap_frames = {overlap_frames} leaves no room in windows of {1 + (longest - 1) * unit} frames: "
                f"{unit * (longest - 2)} is the most"
            )
        return longest, overlap


def _load_compressor(saved: dict[str, Any], path: str, device: str) -> Compressor:
    """The compressor of a checkpoint.

    Raises:
        CheckpointMismatchError: its spec now means another one (retrained under the same path, say).
    """
    compressor = compressors.load(saved["spec"], device=device)
    if checkpoint.plain(compressor.config) != saved["config"]:
        raise CheckpointMismatchError(
            f"{path} was trained on latents of {saved['spec']} with {saved['config']}; here it is {compressor.config}"
        )
    return compressor
