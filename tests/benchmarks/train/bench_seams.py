"""Seams: how large the step from a given frame to a made one is, against the usual step between made frames.

    python tests/benchmarks/train/bench_seams.py --checkpoint RUN/train/main [--num-scenes 4] [--sheet FILE.png]
    python tests/benchmarks/train/bench_seams.py --checkpoint FOLDER --train 8000    # first trains one there: 50 CPU-minutes

Scenes that the model never saw are animated from their first frame, extended both ways, extended beyond the length of the
training, connected, looped, filled in between, and edited. For each kind, over the scenes:

    seam ratio    mean absolute step across the border of given and made, over the mean step between neighbouring made
                  frames; 1 is seamless, the goal is 1.5 or less. For a loop also from its last frame to its first.
    given PSNR    given frames as they come back, against their pixels
    off by        largest difference of the first frame from what the compressor alone makes of it

A compressor with groups of frames may move little inside a group and more from one to the next, and seams lie between
groups. So the ratio is taken twice: to steps between made frames of different groups (like against like), and to all of
them. What scenes have where nothing is made at all, only compressed, is printed below.
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
from train.diffusion.frame_conditioning import is_trained_for
from train.diffusion.process import PathSettings
from train.engine.settings import TrainerSettings
from train.engine.trainer import train
from train.generator.settings import DitSettings
from train.generator.task import DitTask
from train.sampling import conditioning_frames as timeline
from train.sampling.conditioning_frames import Timeline
from train.sampling.contact_sheet import contact_sheet_png
from train.sampling.request import Made, Request
from train.sampling.sampler import Sampler, SolverSettings

FIRST_SEED = 7_000_000
FIRST_TRAINED_SEED = 20_000_000
GOAL = 1.5
BUCKET = Bucket(17, 64, 64, 8)
COMPRESSOR = "patch:48,whitening=0.5"
CONDITIONS = ("none=0.3", "first=0.1", "head=0.22", "tail=0.1", "ends=0.18", "keyframes=0.05", "random=0.05")
"""Mostly given frames: what is measured here is how well they are gone on from."""


def trained_scenes(number: int) -> Iterator[Scene]:
    for seed in range(FIRST_TRAINED_SEED, FIRST_TRAINED_SEED + number):
        yield one_large_object(seed, BUCKET)


def train_one(folder: str, *, num_steps: int, num_scenes: int, precision: str) -> None:
    """A transformer of 5 M weights, five latent frames a clip; goes on where `folder` stands."""
    settings = DitSettings(
        width=256,
        depth=4,
        num_heads=4,
        patch=(1, 2, 2),
        absolute_positions=True,
        conditions=CONDITIONS,
        path=PathSettings(timestep_mean=0.3),
        validation_rows=1,
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


def seams(given_T: np.ndarray, *, is_loop: bool) -> list[int]:
    """Frames at which given turns into made or back; 0 = from the last frame to the first."""
    edges = (np.flatnonzero(np.diff(given_T.astype(int))) + 1).tolist()
    return edges + ([0] if is_loop else [])


def made_step(video_THWC: np.ndarray, given_T: np.ndarray, stride: int | None = None, *, left_out: int = 0) -> float:
    """Mean step between neighbouring made frames; with `stride`, of those only that are in different groups.

    Args:
        left_out: frames that stand before the first of these in its own count, which begins with a group of one.
    """
    made = [t for t in range(1, len(given_T)) if not given_T[t] and not given_T[t - 1]]
    steps = [step(video_THWC, t) for t in made if stride is None or (t + left_out) % stride == 1]
    return max(float(np.mean(steps)), 1e-6)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.square(one.astype(float) - other.astype(float)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-6)))


def requests_of(seed: int, sampler: Sampler) -> dict[str, Request]:
    """One request of every kind about one scene."""
    size = sampler.size(None, None, None)
    length = sampler.longest_frames
    scene = one_large_object(seed, size, num_frames=2 * length)
    video, grid = scene.frames_THWC, sampler.grid
    half = length // 2 + 1
    made_from: dict[str, Timeline] = {
        "image": timeline.animated(video[0], length, grid),
        "extend": timeline.extended(video[:half], sampler.default_new_frames("extend"), grid),
        "extend, 3 windows": timeline.extended(video[:half], 2 * length - 2, grid),
        "extend-back": timeline.led_up_to(video[half:length], sampler.default_new_frames("extend-back"), grid),
        "connect": timeline.connected(
            [video[:5], video[5 + sampler.default_new_frames("connect") :][:4]],
            sampler.default_new_frames("connect"),
            grid,
        ),
        "loop": timeline.looped(video[:half], sampler.default_new_frames("loop"), sampler.overlap_frames, grid),
        "inbetween": timeline.between([video[0], video[length - 1]], [0, length - 1], length, grid),
        "edit": timeline.edited(video[:length], 0.6, grid),
    }
    asked = {
        name: Request(text=scene.long_caption, timeline=one, seed=seed)
        for name, one in made_from.items()
        if is_trained_for(one.mode, sampler.conditions)
    }
    if is_trained_for("loop", sampler.conditions):
        asked["text, looped"] = Request(
            text=scene.long_caption,
            timeline=timeline.blank(length, size.height_px, size.width_px),
            closing_frames=sampler.default_new_frames("loop"),
        )
    return asked


@dataclass
class Row:
    """What was measured of one kind of prompt."""

    ratios: list[float] = field(default_factory=list)
    """To steps between groups."""
    plain_ratios: list[float] = field(default_factory=list)
    """To all steps."""
    steps: list[float] = field(default_factory=list)
    given_psnr: list[float] = field(default_factory=list)
    first_off_by: list[float] = field(default_factory=list)

    def add(self, request: Request, made: Made, sampler: Sampler) -> None:
        video, asked, given_T = made.video_THWC, request.timeline, made.given_T
        is_loop = asked.mode == "loop" or bool(request.closing_frames)
        if request.closing_frames:  # what was made first is given to what closes it
            given_T = np.arange(len(given_T)) < asked.num_frames
        self.measure(video, given_T, sampler.grid.frame_stride, is_loop=is_loop)
        span = slice(asked.start, asked.end)
        source, source_T = asked.frames_THWC[span], asked.given_T[span]
        if source_T.any():
            self.given_psnr.append(psnr(video[: len(source_T)][source_T], source[source_T]))
        if source_T[0]:
            shape = sampler.grid.token_shape(1, *source.shape[1:3])
            first = sampler.codec.decode(sampler.codec.encode(source[:1]), shape)
            self.first_off_by.append(float(np.abs(first.astype(int) - video[:1]).max()))

    def measure(self, video: np.ndarray, given_T: np.ndarray, stride: int, *, is_loop: bool) -> None:
        left_out = int(not given_T[0])  # what leads up to a video: its first frame was made and left out
        borders = [step(video, frame) for frame in seams(given_T, is_loop=is_loop)]
        self.steps.append(made_step(video, given_T))
        if borders:
            self.ratios += [border / made_step(video, given_T, stride, left_out=left_out) for border in borders]
            self.plain_ratios += [border / made_step(video, given_T) for border in borders]

    def text(self) -> str:
        seam = " " * 57
        if self.ratios:
            share = np.mean(np.array(self.ratios) <= GOAL)
            seam = f"{len(self.ratios):5d} {np.median(self.ratios):13.2f} {np.max(self.ratios):6.2f} {share:11.2f}"
            seam += f" {np.median(self.plain_ratios):17.2f}"
        given = f"{np.mean(self.given_psnr):8.1f} dB" if self.given_psnr else " " * 11
        first = f"{np.max(self.first_off_by):5.0f} of 255" if self.first_off_by else ""
        return f"{seam} {np.mean(self.steps):10.2f} {given} {first}"


def of_scenes(num_scenes: int, sampler: Sampler) -> Row:
    """The same where nothing is made: the second half of a scene stands for the made one."""
    size, length, row = sampler.size(None, None, None), sampler.longest_frames, Row()
    for index in range(num_scenes):
        frames = one_large_object(FIRST_SEED + index, size, num_frames=length).frames_THWC
        shown = sampler.codec.decode(sampler.codec.encode(frames), sampler.grid.token_shape(*frames.shape[:3]))
        row.measure(shown, np.arange(length) < length // 2 + 1, sampler.grid.frame_stride, is_loop=False)
    return row


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
    made = sampler.make(requests, settings, progress=True)
    rows = {name: Row() for name in names}
    for name, request, one in zip(names, requests, made):
        rows[name].add(request, one, sampler)
    print(f"{arguments.checkpoint}: {arguments.num_scenes} scenes, {arguments.num_steps} steps")
    print("                           ratio to steps between groups    ratio to all")
    print(
        "kind                seams        median  worst  within 1.5            median  made step  given PSNR   off by"
    )
    for name, row in rows.items():
        print(f"{name:20s}{row.text()}")
    print(f"{'(compressed scenes)':20s}{of_scenes(arguments.num_scenes, sampler).text()}")
    if arguments.sheet:
        rows = [i for i in range(len(names)) if i < len(set(names))]
        sources = [requests[i].timeline.frames_THWC if names[i] == "edit" else None for i in rows]
        given = [made[i].given_T for i in rows]
        arguments.sheet.write_bytes(
            contact_sheet_png(
                [made[i].video_THWC for i in rows], [names[i] for i in rows], given=given, sources=sources
            )
        )


if __name__ == "__main__":
    main()
