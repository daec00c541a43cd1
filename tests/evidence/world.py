"""The scenes of an experiment: training latents, held-out clips and prompts, rendered and encoded once for all arms.

    scenes = World().scenes("build/evidence/worlds")     # rendered by the first experiment that uses this world
    scenes.training(), scenes.held_out(size), scenes.prompts

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
import shutil
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
FORMAT_VERSION = 1
MAX_SCENES_PER_PROMPT = 4
"""Captions repeat: 300 different ones take 565 scenes."""
HELD_OUT_SIZE = "held_out_size_"
"""Prefix of what is measured at a size that is not trained on."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What is rendered. The same world is rendered once and shared by all experiments with it."""

    sizes: tuple[Bucket, ...] = (Bucket(5, 32, 32, 8),)
    """Sizes that are trained on, in equal numbers; prompts are sampled at the first."""
    held_out_sizes: tuple[Bucket, ...] = ()
    """Sizes that are only validated and sampled at."""
    compressor: str = "patch:48,whitening=0.5"
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

    def render(self, size: Bucket, *, held_out: bool) -> Iterator[Scene]:
        """Scenes of one side of the split, without end."""
        number = (*self.sizes, *self.held_out_sizes).index(size)
        for seed in itertools.count(FIRST_SEED + number * SEEDS_PER_SIZE):
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
        """Read from `folder`, rendered and encoded first if they are not there."""
        final = Path(folder) / self.key()
        if not final.exists():
            partial = final.with_name(f"{final.name}.{os.getpid()}.partial")
            partial.mkdir(parents=True)
            start = time.thread_time()
            for size in dict.fromkeys((*self.sizes, *self.held_out_sizes)):
                if size in self.sizes:
                    self._write(partial, size, "training", -(-self.num_training // len(self.sizes)))
                self._write(partial, size, "held-out", self.num_held_out)
            (partial / "prompts.json").write_text(json.dumps(self._prompts()))
            (partial / "cost.json").write_text(json.dumps({"cpu_seconds": time.thread_time() - start}))
            try:
                partial.rename(final)
            except OSError:  # another experiment was faster
                shutil.rmtree(partial)
        return Scenes(self, final)

    def _prompts(self) -> list[str]:
        scenes = self.render(self.sizes[0], held_out=True)
        captions = (scene.short_caption for scene in itertools.islice(scenes, MAX_SCENES_PER_PROMPT * self.num_prompts))
        return list(itertools.islice(dict.fromkeys(captions), self.num_prompts))

    def _write(self, folder: Path, size: Bucket, split: str, number: int) -> None:
        compressor = compressors.load(self.compressor)
        name = f"{split}-{bucket_name(size)}"
        records: list[dict[str, Any]] = []
        latents: np.ndarray | None = None
        scenes = itertools.islice(self.render(size, held_out=split == "held-out"), number)
        for index, scene in enumerate(tqdm(scenes, total=number, desc=f"render {name}", disable=None)):
            latent = compressor.encode(to_pixels(torch.from_numpy(scene.frames_THWC)[None]))[0].numpy()
            if latents is None:
                latents = np.lib.format.open_memmap(
                    folder / f"{name}.npy", mode="w+", dtype=np.float16, shape=(number, *latent.shape)
                )
            latents[index] = latent
            records.append({"seed": scene.seed, "caption": scene.short_caption})
        assert latents is not None
        latents.flush()
        (folder / f"{name}.json").write_text(json.dumps(records))


@dataclass(frozen=True)
class Scenes:
    """The rendered world on disk."""

    world: World
    folder: Path

    @property
    def cpu_seconds(self) -> float:
        """Of rendering and encoding."""
        cost: float = json.loads((self.folder / "cost.json").read_text())["cpu_seconds"]
        return cost

    def training(self) -> MappedLatents:
        return MappedLatents.of([(self.folder, "training", size) for size in self.world.sizes])

    def held_out(self, size: Bucket) -> MappedLatents:
        return MappedLatents.of([(self.folder, "held-out", size)])

    def videos(self, size: Bucket) -> list[np.ndarray]:
        """The held-out clips of a size as the compressor shows them, uint8 (T, H, W, 3)."""
        compressor, latents = compressors.load(self.world.compressor), self.held_out(size)
        decoded = (compressor.decode(torch.from_numpy(latents.read(n))[None]) for n in range(len(latents.latents)))
        return [to_frames(video_BCTHW)[0] for video_BCTHW in decoded]

    @property
    def prompts(self) -> list[str]:
        """Different captions about held-out triples."""
        prompts: list[str] = json.loads((self.folder / "prompts.json").read_text())
        return prompts


class MappedLatents(MemorySource):
    """A sample source of the loader (`packing.loader.sources.SampleSource`) over the files of a world."""

    @classmethod
    def of(cls, files: list[tuple[Path, str, Bucket]]) -> MappedLatents:
        latents: list[np.ndarray] = []
        names: list[str] = []
        captions: list[str] = []
        buckets: list[str] = []
        for folder, split, size in files:
            stem = f"{split}-{bucket_name(size)}"
            records = json.loads((folder / f"{stem}.json").read_text())
            latents += list(np.load(folder / f"{stem}.npy", mmap_mode="r"))
            names += [f"scene-{record['seed']}" for record in records]
            captions += [record["caption"] for record in records]
            buckets += [bucket_name(size)] * len(records)
        return cls(latents, names, captions, buckets=buckets)

    def read(self, index: int) -> np.ndarray:
        return np.asarray(self.latents[index], dtype=np.float32)
