"""Films from texts: per shot whether the captioner reads the subject's colour and object; and long takes by both plans.

    OMP_NUM_THREADS=1 python tests/benchmarks/train/bench_story.py --out FOLDER                 # trains, then the films
    OMP_NUM_THREADS=1 python tests/benchmarks/train/bench_story.py --checkpoint CKPT --out FOLDER

The training is of scenes of one large object, 7 frames of 48 px, a frame stride of 1 and frame conditioning of all kinds:
about 10 minutes of one core. Another checkpoint of scenes, of any size, takes --checkpoint; its stories are then --story.
Each film is a folder of FOLDER, whose film.png is what to look at. Long takes are compared where the model was trained on
keyframes: the share in which the subject is read in the last second, and how far contrast has drifted from the first second.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scene_training import ONE_LARGE_OBJECT, Latents

from jobs.recipe.settings import SampleSettings
from jobs.sample.read_back import read_back
from jobs.sample.requests import FilmFlags
from jobs.sample.sample import sample_videos
from jobs.sample.story import sample_story
from packing.buckets import Bucket
from recaption.captioners.registry import load_captioner
from recaption.scenes.renderer import Scene, render
from recaption.scenes.splits import HELD_OUT_PAIRS
from recaption.video_io.reader import probe, read_frames
from train.diffusion.frame_conditioning import is_trained_for
from train.diffusion.process import DiffusionSettings
from train.engine.settings import TrainerSettings
from train.engine.trainer import train
from train.generator.settings import DitSettings
from train.generator.task import DitTask
from train.sampling.sampler import Sampler

BUCKET = Bucket(7, 48, 48, 8)
COMPRESSOR = "patch:24,whitening=0.5,frame-stride=1"
CONDITIONS = ("none=0.5", "first=0.1", "prefix=0.15", "both_ends=0.1", "keyframes=0.15")
WORLD: dict[str, Any] = {
    **ONE_LARGE_OBJECT,
    "main_object": ("circle", "square", "star", "heart"),
    "colour": ("red", "yellow", "blue", "white"),
}
FIRST_SEED = 9_000_000
SUBJECTS = ["a red circle", "a blue star", "a white heart", "a yellow star"]
STORY = (
    "{subject} moves left on the sand, then stays still on the sand. It moves right on the grass. Finally it moves left on "
    "the road."
)
LONG_PLANS = ("windows", "keyframes")


def scenes(count: int) -> Iterator[Scene]:
    size = {
        "num_frames": BUCKET.num_frames,
        "height_px": BUCKET.height_px,
        "width_px": BUCKET.width_px,
        "fps": BUCKET.fps,
    }
    every = (render(seed, **size, **WORLD) for seed in itertools.count(FIRST_SEED))
    known = (scene for scene in every if (scene.fields.main_object, scene.fields.colour) not in HELD_OUT_PAIRS)
    return itertools.islice(known, count)


def train_model(folder: Path, *, num_steps: int, num_scenes: int, precision: str) -> str:
    """The checkpoint."""
    started = time.process_time()
    latents = Latents.of(scenes(num_scenes), BUCKET, COMPRESSOR)
    print(f"{num_scenes} scenes rendered in {(time.process_time() - started) / 60:.1f} CPU-min", flush=True)
    settings = DitSettings(
        width=256,
        depth=4,
        num_heads=4,
        patch=(1, 2, 2),
        absolute_positions=True,
        conditions=CONDITIONS,
        diffusion=DiffusionSettings(timestep_mean=0.5),
        validation_packs=1,
    )
    trainer = TrainerSettings(
        num_steps=num_steps,
        lr=2e-3,
        ema_decay=0.995,
        precision=precision,
        validate_every=num_steps,
        checkpoint_every=200,
        device="cpu",
    )
    result = train(latents.task(DitTask, settings, capacity=768), trainer, str(folder / "train"), progress=False)
    print(
        f"{num_steps} steps, {(time.process_time() - started) / 60:.1f} CPU-min in all: {result.checkpoint}", flush=True
    )
    return result.checkpoint


def tell_film(checkpoint: str, story: str, folder: Path, settings: SampleSettings) -> tuple[int, int]:
    """Sample a film, print its shots, and return (shots, shots whose subject was read)."""
    sample_story([checkpoint], FilmFlags(story=story), settings, out=str(folder), device="cpu", progress=False)
    told = json.loads((folder / "story.json").read_text())
    num_frames = sum(shot["num_frames"] for shot in told["shots"])
    print(f"{folder.name}: {probe(told_path(folder, told)).num_frames} frames in film.mp4, {num_frames} in its shots")
    for number, shot in enumerate(told["shots"], 1):
        read = shot["read_back"]
        pairs = ", ".join(
            f"{name} {read[name]['asked'] or '-'} read as {read[name]['read'] or '-'}" for name in ("colour", "object")
        )
        verdict = "read" if read["is_subject_read"] else "NOT READ"
        print(
            f"  {number} {shot['transition']:8} {shot['num_frames']:3d} frames  {verdict:8}  {pairs}  ({shot['prompt']})"
        )
    print(f"  subject read in {told['shots_where_subject_was_read']} of {told['shots_with_subject']} shots", flush=True)
    return told["shots_with_subject"], told["shots_where_subject_was_read"]


def told_path(folder: Path, told: dict[str, Any]) -> str:
    return str(folder / told["film"])


def compare_long_takes(checkpoint: str, subjects: list[str], folder: Path, settings: SampleSettings) -> None:
    """Takes of 5 seconds in windows and by key frames: what is read in their last second, and the drift of contrast."""
    prompts = [f"{subject} moves right on the grass" for subject in subjects]
    captioner = load_captioner("tiny")
    for long in LONG_PLANS:
        changed = dataclasses.replace(settings, long=long, seconds=5.0)
        summary = sample_videos(
            checkpoint, prompts, changed, out=str(folder / f"long-{long}"), device="cpu", progress=False
        )
        videos = [read_frames(path, None).pixels_THWC for path in summary["videos"]]
        captions = [one.text for one in captioner.caption([video[-BUCKET.fps :] for video in videos])]
        read = sum(bool(one.is_subject_read) for one in read_back(subjects, captions))
        drift = [abs(float(np.log(video[-BUCKET.fps :].std() / video[: BUCKET.fps].std()))) for video in videos]
        change = [float(np.abs(np.diff(video.astype(float), axis=0)).mean()) for video in videos]
        print(
            f"{long:9} {len(videos[0])} frames: subject read in the last second of {read} of {len(videos)}; contrast "
            f"changes by {np.mean(drift):.0%} from the first second to the last; {np.mean(change):.1f} levels a frame",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="of a generator of scenes; default: one is trained")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--precision", default="bf16", help="fp32 where the CPU has no bfloat16 matrix unit")
    parser.add_argument("--story", action="append", help="a text per film; default: four subjects of the training")
    parser.add_argument("--seconds", type=float, default=0.0, help="of each film")
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(arguments.out)
    checkpoint = arguments.checkpoint or train_model(
        folder, num_steps=arguments.steps, num_scenes=arguments.scenes, precision=arguments.precision
    )
    settings = SampleSettings(num_steps=arguments.num_steps, guidance=arguments.guidance, expander="none")
    stories = arguments.story or [STORY.format(subject=subject) for subject in SUBJECTS]
    films = [
        tell_film(
            checkpoint, story, folder / f"film-{number}", dataclasses.replace(settings, seconds=arguments.seconds)
        )
        for number, story in enumerate(stories)
    ]
    shots, read = (sum(column) for column in zip(*films))
    all_but_one = sum(read >= shots - 1 for shots, read in films)
    print(
        f"all films: subject read in {read} of {shots} shots; "
        f"in all shots but one, or in all, of {all_but_one} of {len(films)} films"
    )
    if not arguments.story and is_trained_for("long keyframes", Sampler.from_checkpoint(checkpoint).conditions):
        compare_long_takes(checkpoint, SUBJECTS, folder, settings)


if __name__ == "__main__":
    main()
