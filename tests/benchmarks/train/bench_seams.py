"""Seams: difference between a conditioning frame and the sampled frame next to it, relative to that of sampled frames.

    python tests/benchmarks/train/bench_seams.py --checkpoint RUN/train/main [--num-scenes 4] [--sheet FILE.png]
    python tests/benchmarks/train/bench_seams.py --checkpoint FOLDER --train 8000    # first trains one there: 50 CPU-minutes

Held-out scenes are sampled in every mode: image to video, extended both ways, extended beyond the trained length,
connected, looped, interpolated and edited. For each mode, over the scenes:

    seam ratio    mean absolute difference across the seam, over the mean difference of consecutive sampled frames; 1 is
                  seamless, the goal is 1.5 or less. For a loop also from its last frame to its first.
    cond. PSNR    conditioning frames in the result, against their original pixels
    off by        largest difference of the first frame from its reconstruction by the compressor alone

Reconstructions of a compressor with groups of frames may move little within a group and more from one to the next, and
seams are between groups. So the ratio is computed twice: to differences between sampled frames of different groups, and to
all of them. The last line has the same for scenes that are only compressed, not sampled.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scene_training import Latents, one_large_object

from packing.buckets import Bucket
from recaption.scenes.renderer import Scene
from train.compressors.picture_quality import psnr_db
from train.compressors.pixels import to_pixels
from train.diffusion.frame_conditioning import is_trained_for
from train.diffusion.process import DiffusionSettings
from train.engine.settings import TrainerSettings
from train.engine.trainer import train
from train.generator.settings import DitSettings
from train.generator.task import DitTask
from train.sampling import conditioning_frames as conditioning
from train.sampling.conditioning_frames import ConditioningFrames
from train.sampling.contact_sheet import contact_sheet_png
from train.sampling.request import Request, SampledVideo
from train.sampling.sampler import Sampler
from train.sampling.solver_settings import SolverSettings

FIRST_SEED = 7_000_000
FIRST_TRAINED_SEED = 20_000_000
GOAL = 1.5
BUCKET = Bucket(17, 64, 64, 8)
COMPRESSOR = "patch:48,whitening=0.5"
CONDITIONS = ("none=0.3", "first=0.1", "prefix=0.22", "suffix=0.1", "both_ends=0.18", "keyframes=0.05", "random=0.05")
"""Mostly with conditioning frames, which is what this measures."""


def trained_scenes(number: int) -> Iterator[Scene]:
    for seed in range(FIRST_TRAINED_SEED, FIRST_TRAINED_SEED + number):
        yield one_large_object(seed, BUCKET)


def train_one(folder: str, *, num_steps: int, num_scenes: int, precision: str) -> None:
    """Train a transformer of 5 M weights on clips of five latent frames; resumes from `folder`."""
    settings = DitSettings(
        width=256,
        depth=4,
        num_heads=4,
        patch=(1, 2, 2),
        absolute_positions=True,
        conditions=CONDITIONS,
        diffusion=DiffusionSettings(timestep_mean=0.3),
        validation_packs=1,
    )
    task = Latents.of(trained_scenes(num_scenes), BUCKET, COMPRESSOR).task(DitTask, settings, capacity=1280)
    trainer = TrainerSettings(
        num_steps=num_steps, lr=2e-3, ema_decay=0.998, precision=precision, checkpoint_every=500, device="cpu"
    )
    started = time.process_time()
    result = train(task, trainer, folder)
    print(
        f"{num_scenes} scenes, {result.steps} steps from {result.resumed_from or 0} in "
        f"{(time.process_time() - started) / 60:.1f} CPU-min: {result.validation}"
    )


def step(video_THWC: np.ndarray, frame: int) -> float:
    """Mean absolute difference of a frame from the one before it, in levels of 255."""
    return float(np.abs(video_THWC[frame].astype(float) - video_THWC[frame - 1].astype(float)).mean())


def seams(condition_mask_T: np.ndarray, *, is_loop: bool) -> list[int]:
    """Frames at which conditioning frames turn into sampled ones or back; 0 = from the last frame to the first."""
    edges = (np.flatnonzero(np.diff(condition_mask_T.astype(int))) + 1).tolist()
    return edges + ([0] if is_loop else [])


def sampled_step(
    video_THWC: np.ndarray, condition_mask_T: np.ndarray, stride: int | None = None, *, num_dropped: int = 0
) -> float:
    """Mean difference of consecutive sampled frames; with `stride`, only of those in different groups.

    Args:
        num_dropped: frames that were dropped before the first of these; groups are counted from there.
    """
    pairs = [t for t in range(1, len(condition_mask_T)) if not condition_mask_T[t] and not condition_mask_T[t - 1]]
    steps = [step(video_THWC, t) for t in pairs if stride is None or (t + num_dropped) % stride == 1]
    return max(float(np.mean(steps)), 1e-6)


def requests_of(seed: int, sampler: Sampler) -> dict[str, Request]:
    """One request per mode about one scene."""
    size = sampler.size(None, None, None)
    length = sampler.max_trained_frames
    scene = one_large_object(seed, size, num_frames=2 * length)
    video, grid = scene.frames_THWC, sampler.grid
    half = length // 2 + 1
    conditioning_of: dict[str, ConditioningFrames] = {
        "image": conditioning.image_to_video(video[0], length, grid),
        "extend": conditioning.extend(video[:half], sampler.default_new_frames("extend"), grid),
        "extend, 3 windows": conditioning.extend(video[:half], 2 * length - 2, grid),
        "extend-back": conditioning.extend_backward(
            video[half:length], sampler.default_new_frames("extend-back"), grid
        ),
        "connect": conditioning.connect(
            [video[:5], video[5 + sampler.default_new_frames("connect") :][:4]],
            sampler.default_new_frames("connect"),
            grid,
        ),
        "loop": conditioning.loop(video[:half], sampler.default_new_frames("loop"), sampler.overlap_frames, grid),
        "inbetween": conditioning.keyframe_interpolation([video[0], video[length - 1]], [0, length - 1], length, grid),
        "edit": conditioning.video_to_video(video[:length], 0.6, grid),
    }
    requests = {
        name: Request(text=scene.long_caption, conditioning=one, seed=seed)
        for name, one in conditioning_of.items()
        if is_trained_for(one.mode, sampler.conditions)
    }
    if is_trained_for("loop", sampler.conditions):
        requests["text, looped"] = Request(
            text=scene.long_caption,
            conditioning=conditioning.text_to_video(length, size.height_px, size.width_px),
            loop_frames=sampler.default_new_frames("loop"),
        )
    return requests


@dataclass
class SeamStatistics:
    """Measurements of one mode."""

    ratios: list[float] = field(default_factory=list)
    """To differences between groups."""
    plain_ratios: list[float] = field(default_factory=list)
    """To all differences."""
    steps: list[float] = field(default_factory=list)
    conditioning_psnr_db: list[float] = field(default_factory=list)
    first_off_by: list[float] = field(default_factory=list)

    def add(self, request: Request, sampled: SampledVideo, sampler: Sampler) -> None:
        video, mask_T, conditioning = sampled.video_THWC, sampled.condition_mask_T, request.conditioning
        is_loop = conditioning.mode == "loop" or bool(request.loop_frames)
        if request.loop_frames:  # the sampled video is the conditioning of the frames that close the loop
            mask_T = np.arange(len(mask_T)) < conditioning.num_frames
        self.measure(video, mask_T, sampler.grid.frame_stride, is_loop=is_loop)
        span = slice(conditioning.start, conditioning.end)
        source, source_T = conditioning.frames_THWC[span], conditioning.condition_mask_T[span]
        if source_T.any():
            shown, original = (to_pixels(torch.from_numpy(x[source_T])) for x in (video[: len(source_T)], source))
            self.conditioning_psnr_db.append(psnr_db(shown, original))
        if source_T[0]:
            shape = sampler.grid.token_shape(1, *source.shape[1:3])
            first = sampler.tokenizer.decode(sampler.tokenizer.encode(source[:1]), shape)
            self.first_off_by.append(float(np.abs(first.astype(int) - video[:1]).max()))

    def measure(self, video: np.ndarray, condition_mask_T: np.ndarray, stride: int, *, is_loop: bool) -> None:
        num_dropped = int(not condition_mask_T[0])  # extending backward samples one frame more, which is dropped
        seam_steps = [step(video, frame) for frame in seams(condition_mask_T, is_loop=is_loop)]
        self.steps.append(sampled_step(video, condition_mask_T))
        if seam_steps:
            self.ratios += [
                seam / sampled_step(video, condition_mask_T, stride, num_dropped=num_dropped) for seam in seam_steps
            ]
            self.plain_ratios += [seam / sampled_step(video, condition_mask_T) for seam in seam_steps]

    def text(self) -> str:
        seam = " " * 57
        if self.ratios:
            fraction = np.mean(np.array(self.ratios) <= GOAL)
            seam = f"{len(self.ratios):5d} {np.median(self.ratios):13.2f} {np.max(self.ratios):6.2f} {fraction:11.2f}"
            seam += f" {np.median(self.plain_ratios):17.2f}"
        conditioning = f"{np.mean(self.conditioning_psnr_db):8.1f} dB" if self.conditioning_psnr_db else " " * 11
        first = f"{np.max(self.first_off_by):5.0f} of 255" if self.first_off_by else ""
        return f"{seam} {np.mean(self.steps):10.2f} {conditioning} {first}"


def of_scenes(num_scenes: int, sampler: Sampler) -> SeamStatistics:
    """The same for scenes that are only compressed, with their second half taken as sampled."""
    size, length, statistics = sampler.size(None, None, None), sampler.max_trained_frames, SeamStatistics()
    for index in range(num_scenes):
        frames = one_large_object(FIRST_SEED + index, size, num_frames=length).frames_THWC
        reconstructed = sampler.tokenizer.decode(
            sampler.tokenizer.encode(frames), sampler.grid.token_shape(*frames.shape[:3])
        )
        statistics.measure(reconstructed, np.arange(length) < length // 2 + 1, sampler.grid.frame_stride, is_loop=False)
    return statistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--num-scenes", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument(
        "--train", type=int, default=0, help="steps of a training into the folder --checkpoint; 0 = none"
    )
    parser.add_argument("--scenes", type=int, default=10000, help="of that training")
    parser.add_argument("--precision", default="bf16", help="of that training; fp32 where the CPU knows no bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.train:
        train_one(
            arguments.checkpoint,
            num_steps=arguments.train,
            num_scenes=arguments.scenes,
            precision=arguments.precision,
        )
    sampler = Sampler.from_checkpoint(arguments.checkpoint)
    names, requests = [], []
    for index in range(arguments.num_scenes):
        for name, request in requests_of(FIRST_SEED + index, sampler).items():
            names.append(name)
            requests.append(request)
    settings = SolverSettings(num_steps=arguments.num_steps, guidance=arguments.guidance)
    videos = sampler.sample_requests(requests, settings, progress=True)
    statistics = {name: SeamStatistics() for name in names}
    for name, request, one in zip(names, requests, videos):
        statistics[name].add(request, one, sampler)
    print(f"{arguments.checkpoint}: {arguments.num_scenes} scenes, {arguments.num_steps} steps")
    print("                           ratio to group differences      ratio to all")
    print(
        "mode                seams        median  worst  within 1.5            median       step  cond. PSNR   off by"
    )
    for name, of_mode in statistics.items():
        print(f"{name:20s}{of_mode.text()}")
    print(f"{'(compressed scenes)':20s}{of_scenes(arguments.num_scenes, sampler).text()}")
    if arguments.sheet:
        shown = [i for i in range(len(names)) if i < len(set(names))]
        sources = [requests[i].conditioning.frames_THWC if names[i] == "edit" else None for i in shown]
        masks = [videos[i].condition_mask_T for i in shown]
        arguments.sheet.write_bytes(
            contact_sheet_png(
                [videos[i].video_THWC for i in shown], [names[i] for i in shown], condition_masks=masks, sources=sources
            )
        )


if __name__ == "__main__":
    main()
