"""Prompt adherence of a transformer trained on the CPU, on held-out combinations of object, colour and background.

    OMP_NUM_THREADS=1 python tests/benchmarks/train/bench_prompt_following.py                      # trains, prints the curve
    OMP_NUM_THREADS=1 python tests/benchmarks/train/bench_prompt_following.py --checkpoint FOLDER  # evaluates one of its own

Scenes of one large object on three backgrounds, 5 frames of 64 px. A sixth of all (object, colour, background) triples is
held out of the training, and prompts are of those only. The `tiny` captioner reads the samples. Each figure comes with its
chance level (the same captions against the prompts of other samples) and its upper bound (reconstructions of real scenes of
the same prompts). Pairs of shape and colour that `tiny` was not trained on are excluded.

The default is about an hour of one core with bfloat16 matrix units, three minutes of it rendering; elsewhere use
`--precision fp32` and more time. `--no-positions` disables absolute positions.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from scene_training import Latents, one_large_object

from packing.buckets import Bucket
from recaption.captioners.registry import load_captioner
from recaption.records import CaptionFields
from recaption.scenes.renderer import Scene
from recaption.scenes.splits import HELD_OUT_PAIRS
from train.diffusion.process import DiffusionSettings
from train.engine.settings import TrainerSettings
from train.engine.trainer import train
from train.evaluation.metrics import Metric, RealClips, Samples, evaluate
from train.generator.settings import DitSettings
from train.generator.task import DitTask
from train.sampling.contact_sheet import contact_sheet_png
from train.sampling.sampler import Sampler

BUCKET = Bucket(5, 64, 64, 8)
COMPRESSOR = "patch:24,whitening=0.5"
FIRST_SEED = 7_000_000
NUM_PROMPTS = 100
SHOWN = ("main_object+colour", "main_object", "colour", "background", "action")


def scenes() -> Iterator[Scene]:
    """Scenes of the training and of the held-out triples, without end."""
    for seed in itertools.count(FIRST_SEED):
        scene = one_large_object(seed, BUCKET)
        if (scene.fields.main_object, scene.fields.colour) not in HELD_OUT_PAIRS:
            yield scene


def is_held_out(fields: CaptionFields) -> bool:
    key = f"{fields.main_object} {fields.colour} {fields.background}"
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 6 == 0


class EvaluatedDitTask(DitTask):
    """`DitTask` that measures prompt adherence at every validation."""

    held_out: list[Scene]
    captioner: Any
    num_prompts = NUM_PROMPTS
    """Prompts of a validation; the last line of the output has all of them."""
    sheet: Path

    def start_clock(self) -> None:
        """Start counting CPU time; validation is not counted."""
        self._cpu, self._wall, self._outside = time.process_time(), time.perf_counter(), 0.0

    def validate(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        before = time.process_time()
        minutes = (before - self._cpu - self._outside) / 60
        found = super().validate(model, step)
        scored = score(
            self.sampler(model), self.held_out[: self.num_prompts], self.captioner, self.sheet, with_real=False
        )
        print(
            f"step {step:5d}  {minutes:5.1f} CPU-min  {(time.perf_counter() - self._wall) / 60:5.1f} min  "
            f"loss {found['loss']:.3f}  {line(scored)}",
            flush=True,
        )
        self._outside += time.process_time() - before
        values = {name: metric.value for name, metric in scored.items() if metric.value is not None}
        return found | values | {"cpu_minutes": minutes}

    def sampler(self, model: torch.nn.Module) -> Sampler:
        return Sampler(
            model,
            encoder=self.encoder,
            compressor=self.compressor,
            patch=self.settings.patch,
            diffusion=self.settings.diffusion,
            buckets=self.buckets,
        )


def score(
    sampler: Sampler, held_out: list[Scene], captioner: Any, sheet: Path, *, with_real: bool = True
) -> dict[str, Metric]:
    prompts = [scene.short_caption for scene in held_out]
    videos = sampler.sample(prompts, size=BUCKET, num_steps=20, guidance=3.0)
    sheet.write_bytes(contact_sheet_png(videos[:12], prompts[:12]))
    samples = Samples(prompts=tuple(prompts), videos=videos, more_videos=())
    real = RealClips(videos=[scene.frames_THWC for scene in held_out], captions=prompts) if with_real else RealClips()
    return evaluate(samples, real, captioner, sampler.compressor).metrics


def line(metrics: dict[str, Metric]) -> str:
    def one(name: str, metric: Metric) -> str:
        ceiling = "" if metric.real is None else f", upper bound {metric.real:.0%}"
        return f"{name} {metric.value:.0%} (chance {metric.chance:.1%}{ceiling})"

    return "  ".join(one(name, metrics[f"prompt_following/{name}"]) for name in SHOWN)


def split(num_training: int, held_out: list[Scene]) -> Iterator[Scene]:
    """Yields the training scenes; the first `NUM_PROMPTS` held-out ones are appended to `held_out`."""
    found = 0
    for scene in scenes():
        if is_held_out(scene.fields):
            if len(held_out) < NUM_PROMPTS:
                held_out.append(scene)
        elif found < num_training:
            found += 1
            yield scene
        if found == num_training and len(held_out) == NUM_PROMPTS:
            return


def build(arguments: argparse.Namespace) -> EvaluatedDitTask:
    held_out: list[Scene] = []
    latents = Latents.of(split(arguments.scenes, held_out), BUCKET, COMPRESSOR)
    settings = DitSettings(
        width=256,
        depth=4,
        num_heads=4,
        patch=(2, 2, 2),
        absolute_positions=arguments.positions,
        diffusion=DiffusionSettings(timestep_mean=0.5),
        validation_packs=1,
    )
    task = latents.task(EvaluatedDitTask, settings, capacity=768)
    task.held_out, task.captioner, task.num_prompts = held_out, load_captioner("tiny"), arguments.prompts
    triples = {(f.main_object, f.colour, f.background) for f in latents.fields}
    print(
        f"{len(latents.fields)} scenes of {len(triples)} (object, colour, background), {NUM_PROMPTS} held-out prompts; "
        f"rendered in {time.process_time() / 60:.1f} CPU-min",
        flush=True,
    )
    return task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=13000)
    parser.add_argument("--precision", default="bf16", help="fp32 where the CPU has no bfloat16 matrix unit")
    parser.add_argument("--every", type=int, default=1000, help="steps between two points of the curve")
    parser.add_argument("--prompts", type=int, default=30, help="prompts per point; the last one has all 100")
    parser.add_argument("--scenes", type=int, default=30000)
    parser.add_argument("--positions", action=argparse.BooleanOptionalAction, default=True, help="absolute positions")
    parser.add_argument("--checkpoint", help="evaluate this one, trained by this script, without training")
    parser.add_argument("--out", help="folder of the training; default: a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.out or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        task = build(arguments)
        task.sheet = folder / "samples.png"
        sampler = Sampler.from_checkpoint(arguments.checkpoint) if arguments.checkpoint else None
        if sampler is None:
            settings = TrainerSettings(
                num_steps=arguments.steps,
                lr=2e-3,
                ema_decay=0.998,
                precision=arguments.precision,
                validate_every=arguments.every,
                checkpoint_every=arguments.every,
                device="cpu",
            )
            task.start_clock()
            result = train(task, settings, str(folder / "train"), progress=False)
            sampler = Sampler.from_checkpoint(result.checkpoint)
        metrics = score(sampler, task.held_out, task.captioner, task.sheet)
        print(f"all {NUM_PROMPTS} prompts: {line(metrics)}")
        print(json.dumps({name: metric.value for name, metric in metrics.items()}))


if __name__ == "__main__":
    main()
