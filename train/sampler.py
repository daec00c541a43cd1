"""Prompts to video with a checkpoint alone: it names its own text encoder, compressor, grid and sizes.

    videos = sample("RUN/train/dit", ["a red circle moves left"], num_frames=17, height_px=64, width_px=112)
    files = write(videos, "RUN/samples", ["a red circle moves left"], fps=8)
    files.videos, files.contact_sheet

All prompts go through the transformer as one packed row (several under a cap on tokens), with and without their text
where guidance asks for both. Any size of the model's grid will do, also one it was not trained at. The same prompt,
size and seed give the same video, whatever else is sampled beside it.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from packing.batch import unpatchify
from packing.buckets import Bucket, parse_bucket
from packing.grid import Grid, positions
from recaption.errors import CheckpointMismatchError, UsageError
from recaption.run_folder import RunFolder
from train import backbones, checkpoint, compressors, text_encoder
from train.attention import Segments
from train.flow import PathSettings, generator_for
from train.guidance import Guidance
from train.solvers import choose_solver, integrate, sampling_times
from train.text_encoder import TextEncoder

MAX_ROW_TOKENS = 32_768
"""Most tokens of one row while sampling, guidance's second copy included; bounds memory."""
SHEET_COLUMNS = 8
SHEET_FRAME_PX = 128
"""Smallest height of a frame on the contact sheet; smaller frames are enlarged by a whole factor."""


@dataclass(frozen=True, kw_only=True)
class SampleFiles:
    """What `write` wrote."""

    videos: tuple[str, ...]
    contact_sheet: str


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
        solver: `auto`, or one of `train.solvers` that goes with the schedule the model was trained on.
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
        compressor: compressors.Compressor,
        patch: tuple[int, int, int],
        path: PathSettings,
        buckets: Sequence[Bucket],
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            buckets: sizes the model was trained at, the most frequent first.
        """
        self.device = torch.device(device)
        self.model, self.compressor = model.to(self.device).eval(), compressor.to(self.device)
        self.encoder, self.path = encoder, path
        self.grid = Grid(frame_stride=compressor.frame_stride, spatial_stride=compressor.spatial_stride, patch=patch)
        self.buckets = tuple(buckets)

    @classmethod
    def from_checkpoint(cls, path: str, *, device: str = "cpu", ema: bool = True) -> Sampler:
        """Raises UsageError or CheckpointMismatchError as `sample`."""
        config, weights = checkpoint.load_model(path, ema=ema, task="dit")
        backbone = dict(config["backbone"])
        model = backbones.build(backbone.pop("name"), **backbone)
        checkpoint.load_weights(model, weights, path)
        text = config["text_encoder"]
        patch_frames, patch_rows, patch_columns = config["patch"]
        return cls(
            model,
            encoder=text_encoder.load(text["spec"], device=device, weights_hash=text["weights_hash"]),
            compressor=_load_compressor(config["compressor"], path, device),
            patch=(patch_frames, patch_rows, patch_columns),
            path=PathSettings(**config["path"]),
            buckets=[parse_bucket(name) for name in config["buckets"]],
            device=device,
        )

    @property
    def fps(self) -> int:
        return self.buckets[0].fps

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

    @torch.no_grad()
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
        if not prompts:
            raise UsageError("no prompt to sample")
        guidance = Guidance.of(guidance)
        guidance.check()
        solver = choose_solver(solver, self.path)
        num_tokens = self.grid.num_tokens(size.num_frames, size.height_px, size.width_px)
        copies = 1 if guidance.scale == 1 else 2
        per_row = max(1, MAX_ROW_TOKENS // (num_tokens * copies))
        rows = _in_rows(prompts, per_row)
        videos: list[np.ndarray] = []
        with tqdm(total=len(rows) * num_steps, desc="sample", unit="step", disable=not progress) as bar:
            for row in rows:
                tokens_LD = self._sample_row(
                    row,
                    size,
                    num_steps=num_steps,
                    guidance=guidance,
                    solver=solver,
                    seed=seed,
                    on_step=bar.update,
                )
                videos += [self._decode(tokens, size) for tokens in tokens_LD.split(num_tokens)]
        return videos

    def _sample_row(
        self,
        row: Sequence[tuple[str, int]],
        size: Bucket,
        *,
        num_steps: int,
        guidance: Guidance,
        solver: str,
        seed: int,
        on_step: Callable[[], object],
    ) -> Tensor:
        """Clean tokens of all prompts of one row, end to end."""
        device = self.device
        token_shape = self.grid.token_shape(size.num_frames, size.height_px, size.width_px)
        position_L3 = torch.from_numpy(positions(token_shape)).repeat(len(row), 1).to(device)
        segments = Segments.from_lengths([len(position_L3) // len(row)] * len(row), device)
        token_width = self.model.config["token_width"]
        text = self.encoder.encode([prompt for prompt, _ in row]).to(device)

        def asked(x_LD: Tensor, timestep_S: Tensor, copies: int) -> Tensor:
            """With the prompts; in a second copy of the row, without."""
            return self.model(
                x_LD.repeat(copies, 1),
                position_L3.repeat(copies, 1),
                segments.repeated(copies),
                timestep_S.repeat(copies),
                text.text_MC.repeat(copies, 1),
                text.segments.repeated(copies),
                text.pooled_SC.repeat(copies, 1),
                drop_text_S=[False] * len(row) + [True] * (len(row) * (copies - 1)),
            )

        def answer(x_LD: Tensor, timestep_S: Tensor) -> Tensor:
            if bool((guidance.weights(timestep_S) == 1).all()):
                return asked(x_LD, timestep_S, 1)
            conditional_LD, unconditional_LD = asked(x_LD, timestep_S, 2).chunk(2)
            return guidance.combine(conditional_LD, unconditional_LD, timestep_S, segments)

        def noise_of(*step: str | int) -> Tensor:
            return torch.cat(
                [
                    torch.randn(length, token_width, generator=generator_for("sample", seed, repetition, *step))
                    for length, (_, repetition) in zip(segments.lengths, row)
                ]
            ).to(device)

        return integrate(
            answer,
            noise_of(),
            segments,
            sampling_times(num_steps, segments, self.path, token_shapes=[token_shape] * len(row)),
            path=self.path,
            solver=solver,
            noise_of=lambda number: noise_of("step", number),
            on_step=on_step,
        )

    def _decode(self, tokens_LD: Tensor, size: Bucket) -> np.ndarray:
        token_shape = self.grid.token_shape(size.num_frames, size.height_px, size.width_px)
        latents_BCTHW = unpatchify(tokens_LD, token_shape, self.grid.patch)[None]
        pixels_CTHW = self.compressor.decode(latents_BCTHW)[0].float().clamp(-1, 1)
        return ((pixels_CTHW + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().contiguous().numpy()


def _load_compressor(saved: dict[str, Any], path: str, device: str) -> compressors.Compressor:
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


def nearest_size(wanted: Bucket, grid: Grid) -> Bucket:
    """The size of the grid closest to `wanted`; `wanted` itself where the grid has it."""
    latent_frames = 1 + max(0, wanted.num_frames - 1) / grid.frame_stride
    patch_frames, patch_rows, patch_columns = grid.patch
    latent_frames = patch_frames * max(1, _round_half_up(latent_frames / patch_frames))
    sides = [
        step_px * max(1, _round_half_up(side_px / step_px))
        for side_px, step_px in (
            (wanted.height_px, grid.spatial_stride * patch_rows),
            (wanted.width_px, grid.spatial_stride * patch_columns),
        )
    ]
    return Bucket(1 + (latent_frames - 1) * grid.frame_stride, sides[0], sides[1], wanted.fps)


def _round_half_up(x: float) -> int:
    return int(x + 0.5)


def _in_rows(prompts: Sequence[str], per_row: int) -> list[list[tuple[str, int]]]:
    """(prompt, how often it came before) in rows of at most `per_row`.

    The second number and the seed make the noise: a prompt gives the same video alone and in company, two prompts of
    one seed can be compared, and the same prompt twice gives two videos.
    """
    seen: Counter[str] = Counter()
    keyed = []
    for prompt in prompts:
        keyed.append((prompt, seen[prompt]))
        seen[prompt] += 1
    return [keyed[start : start + per_row] for start in range(0, len(keyed), per_row)]


def write(videos: Sequence[np.ndarray], out_dir: str, prompts: Sequence[str], fps: int | Fraction) -> SampleFiles:
    """One mp4 per video and a contact sheet, under numbered names; `out_dir` may be any folder that fsspec knows."""
    from recaption.video_io import encode_video

    folder = RunFolder(out_dir)
    names = []
    for index, video_THWC in enumerate(videos):
        names.append(f"sample-{index:04d}.mp4")
        folder.write_bytes(names[-1], encode_video(video_THWC, fps=fps))
    folder.write_bytes("contact_sheet.png", contact_sheet_png(videos, prompts))
    return SampleFiles(
        videos=tuple(folder.path(name) for name in names), contact_sheet=folder.path("contact_sheet.png")
    )


def contact_sheet_png(videos: Sequence[np.ndarray], prompts: Sequence[str]) -> bytes:
    """A PNG with one row per video: its prompt, then frames from first to last."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=16)
    gap_px, text_px = 4, 26
    strips = [_strip(video, gap_px) for video in videos]
    width = max(strip.shape[1] for strip in strips) + 2 * gap_px
    height = sum(strip.shape[0] + text_px + gap_px for strip in strips) + gap_px
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    top = gap_px
    for strip, prompt in zip(strips, prompts, strict=True):
        draw.text((gap_px, top), _fitted(prompt, width - 2 * gap_px, font.getlength), fill="black", font=font)
        sheet.paste(Image.fromarray(strip), (gap_px, top + text_px))
        top += strip.shape[0] + text_px + gap_px
    target = io.BytesIO()
    sheet.save(target, "PNG")
    return target.getvalue()


def _strip(video_THWC: np.ndarray, gap_px: int) -> np.ndarray:
    """At most SHEET_COLUMNS frames side by side, small ones enlarged."""
    num_frames, height_px = video_THWC.shape[:2]
    chosen = np.linspace(0, num_frames - 1, min(SHEET_COLUMNS, num_frames)).round().astype(int)
    factor = max(1, -(-SHEET_FRAME_PX // height_px))
    frames = video_THWC[chosen].repeat(factor, axis=1).repeat(factor, axis=2)
    gap = np.full((frames.shape[1], gap_px, 3), 255, np.uint8)
    return np.concatenate([part for frame in frames for part in (frame, gap)][:-1], axis=1)


def _fitted(text: str, width_px: int, length_px: Callable[[str], float]) -> str:
    """`text` on one line, its end cut where it is wider than the sheet."""
    text = " ".join(text.split())
    if length_px(text) <= width_px:
        return text
    while text and length_px(text + "...") > width_px:
        text = text[:-1]
    return text + "..."
