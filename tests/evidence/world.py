"""The scenes of an experiment: training latents, held-out clips and prompts, rendered and encoded once for all arms.

    scenes = World().scenes("build/evidence/worlds")     # rendered by the first experiment that uses this world
    scenes.training(), scenes.held_out(size), scenes.prompts()

One large object on one of three grounds moves left, moves right or stays still. A third of all (object, colour, ground)
triples is held out of the training; prompts are about those only. Pairs of shape and colour that the reader (`tiny`) was
not trained on do not occur. Latents are float16 on disk, mapped into memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from packing.buckets import Bucket, bucket_name
from recaption.records import CaptionFields
from recaption.scenes.renderer import SIMPLE, Scene, render
from recaption.scenes.splits import HELD_OUT_PAIRS
from tests.stand_ins.memory_source import MemorySource
from train.compressors import registry as compressors
from train.compressors.pixels import to_frames, to_pixels

ONE_LARGE_OBJECT: dict[str, Any] = {
    **SIMPLE,
    "size": "large",
    "background": ("sand", "grass", "road"),
    "action": ("moves left", "moves right", "stays still"),
}
"""Arguments of `recaption.scenes.render`."""
FIRST_SEED = 7_000_000
SEEDS_PER_SIZE = 10_000_000
FORMAT_VERSION = 2
PART_SCENES = 2_000
"""Of one file."""
MAX_SCENES_PER_PROMPT = 4
"""Captions repeat: 300 different ones take 565 scenes."""
HELD_OUT_SIZE = "held_out_size_"
"""Prefix of what is measured at a size that is not trained on."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What is rendered. The same world is rendered once and shared by all experiments with it."""

    sizes: tuple[Bucket, ...] = (Bucket(5, 64, 64, 8),)
    """Sizes that are trained on, in equal numbers; prompts are sampled at the first."""
    held_out_sizes: tuple[Bucket, ...] = ()
    """Sizes that are only validated and sampled at."""
    compressor: str = "patch:24,whitening=0.5"
    num_training: int = 20_000
    num_held_out: int = 256
    """Held-out clips of each size."""
    num_prompts: int = 300
    """Different captions about held-out triples, at the first size."""
    one_in: int = 3
    """One in so many (object, colour, ground) triples is held out."""

    def key(self) -> str:
        """Folder name: a digest of everything that the scenes depend on."""
        text = json.dumps([FORMAT_VERSION, dataclasses.asdict(self), ONE_LARGE_OBJECT], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def validated_sizes(self) -> dict[str, Bucket]:
        """Prefix of a reading -> size: the first that is trained on, and the first that is not."""
        held_out = {HELD_OUT_SIZE: self.held_out_sizes[0]} if self.held_out_sizes else {}
        return {"": self.sizes[0]} | held_out

    def is_held_out(self, fields: CaptionFields) -> bool:
        key = f"{fields.main_object} {fields.colour} {fields.background}"
        return int(hashlib.sha256(key.encode()).hexdigest(), 16) % self.one_in == 0

    def first_seed(self, size: Bucket) -> int:
        return FIRST_SEED + SEEDS_PER_SIZE * (*self.sizes, *self.held_out_sizes).index(size)

    def render(self, size: Bucket, *, held_out: bool, first_seed: int | None = None) -> Iterator[Scene]:
        """Scenes of one side of the split, without end; from the first seed of the size, if no other is passed."""
        for seed in itertools.count(self.first_seed(size) if first_seed is None else first_seed):
            scene = render(
                seed,
                num_frames=size.num_frames,
                height_px=size.height_px,
                width_px=size.width_px,
                fps=size.fps,
                **ONE_LARGE_OBJECT,
            )
            is_known_pair = (scene.fields.main_object, scene.fields.colour) not in HELD_OUT_PAIRS
            if is_known_pair and self.is_held_out(scene.fields) == held_out:
                yield scene

    def scenes(self, folder: str | Path) -> Scenes:
        """Read from `folder`, rendered and encoded first as far as they are not there; a kill costs at most one part."""
        scenes = Scenes(self, Path(folder) / self.key())
        scenes.folder.mkdir(parents=True, exist_ok=True)
        for size in self.sizes:
            self._write(scenes, "training", size, -(-self.num_training // len(self.sizes)))
        for size in (*self.sizes, *self.held_out_sizes):
            self._write(scenes, "held-out", size, self.num_held_out)
        if not scenes.prompts_path.exists():
            write_json(scenes.prompts_path, self._prompts())
        return scenes

    def _prompts(self) -> list[dict[str, str]]:
        scenes = self.render(self.sizes[0], held_out=True)
        found: dict[str, str] = {}
        for _, scene in zip(range(MAX_SCENES_PER_PROMPT * self.num_prompts), scenes):
            found.setdefault(scene.short_caption, scene.long_caption)
            if len(found) == self.num_prompts:
                break
        return [{"short": short, "long": long} for short, long in found.items()]

    def _write(self, scenes: Scenes, split: str, size: Bucket, number: int) -> None:
        """Render and encode the parts that are missing."""
        first_seed = self.first_seed(size)
        compressor = compressors.load(self.compressor)
        for part in range(-(-number // PART_SCENES)):
            path = scenes.part_path(split, size, part)
            if path.exists():
                first_seed = json.loads(path.read_text())["next_seed"]
                continue
            start, latents, records = time.thread_time(), [], []
            rendered = self.render(size, held_out=split == "held-out", first_seed=first_seed)
            wanted = min(PART_SCENES, number - part * PART_SCENES)
            title = f"render {scenes.folder.name} {path.stem}"
            for scene in tqdm(itertools.islice(rendered, wanted), total=wanted, desc=title, disable=None):
                pixels_BCTHW = to_pixels(torch.from_numpy(scene.frames_THWC)[None])
                latents.append(compressor.encode(pixels_BCTHW)[0].numpy().astype(np.float16))
                records.append({"seed": scene.seed, "short": scene.short_caption, "long": scene.long_caption})
            first_seed = scene.seed + 1
            partial = path.with_suffix(f".{os.getpid()}.npy")
            np.save(partial, np.stack(latents))
            partial.rename(path.with_suffix(".npy"))
            seconds = time.thread_time() - start
            write_json(path, {"next_seed": first_seed, "cpu_seconds": seconds, "records": records})


@dataclass(frozen=True)
class Scenes:
    """The rendered world on disk."""

    world: World
    folder: Path

    def part_path(self, split: str, size: Bucket, part: int) -> Path:
        """Captions and seeds of a part; its latents are beside it."""
        return self.folder / f"{split}-{bucket_name(size)}-{part:03d}.json"

    @property
    def prompts_path(self) -> Path:
        return self.folder / "prompts.json"

    @property
    def cpu_seconds(self) -> float:
        """Of rendering and encoding."""
        parts = self.folder.glob("*f-*x*-*fps-*.json")
        return float(sum(json.loads(path.read_text())["cpu_seconds"] for path in parts))

    def training(self, *, long_share: float = 0.0) -> MappedLatents:
        """Clips to train on.

        Args:
            long_share: fraction of the clips with long captions; a clip that has one keeps it at any larger share.
        """
        return MappedLatents.of([self.folder / self._glob("training", size) for size in self.world.sizes], long_share)

    def held_out(self, size: Bucket, *, long_share: float = 0.0) -> MappedLatents:
        """Held-out clips of a size."""
        return MappedLatents.of([self.folder / self._glob("held-out", size)], long_share)

    def _glob(self, split: str, size: Bucket) -> str:
        return self.part_path(split, size, 0).name.replace("-000.json", "-*.json")

    def videos(self, size: Bucket) -> list[np.ndarray]:
        """The held-out clips of a size as the compressor shows them, uint8 (T, H, W, 3)."""
        compressor, latents = compressors.load(self.world.compressor), self.held_out(size)
        decoded = (compressor.decode(torch.from_numpy(latents.read(n))[None]) for n in range(len(latents.latents)))
        return [to_frames(video_BCTHW)[0] for video_BCTHW in decoded]

    def prompts(self, kind: str = "short") -> list[str]:
        """Captions about held-out triples, all short ones different; `long` ones are of the same scenes."""
        return [prompt[kind] for prompt in json.loads(self.prompts_path.read_text())]


class MappedLatents(MemorySource):
    """A sample source of the loader (`packing.loader.sources.SampleSource`) over the parts of a world."""

    @classmethod
    def of(cls, patterns: list[Path], long_share: float) -> MappedLatents:
        """
        Args:
            patterns: path with a glob as its name, one per size.
        """
        latents: list[np.ndarray] = []
        names: list[str] = []
        captions: list[str] = []
        buckets: list[str] = []
        for pattern in patterns:
            for path in sorted(pattern.parent.glob(pattern.name)):
                records = json.loads(path.read_text())["records"]
                latents += list(np.load(path.with_suffix(".npy"), mmap_mode="r"))
                names += [f"scene-{record['seed']}" for record in records]
                captions += [_caption(record, long_share) for record in records]
                buckets += [path.stem.split("-", 1)[1].rsplit("-", 1)[0]] * len(records)
        return cls(latents, names, captions, buckets=buckets)

    def read(self, index: int) -> np.ndarray:
        return np.asarray(self.latents[index], dtype=np.float32)


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.rename(path)


def _caption(record: dict[str, Any], long_share: float) -> str:
    draw = int(hashlib.sha256(f"caption {record['seed']}".encode()).hexdigest()[:8], 16) / 16**8
    return str(record["long" if draw < long_share else "short"])
