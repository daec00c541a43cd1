"""Latents of rendered scenes in memory, for benchmarks that train a transformer.

latents = Latents.of(scenes, bucket, compressor_spec)          # scenes: any iterable of rendered ones
task = latents.task(DitTask, DitSettings(...), capacity=768)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from packing.buckets import Bucket
from packing.plan.settings import PlanSettings
from recaption.records import CaptionFields
from recaption.scenes.renderer import SIMPLE, Scene, render
from tests.stand_ins.memory_source import MemorySource
from train.compressors.pixels import to_pixels
from train.compressors.registry import load
from train.generator.settings import DitSettings
from train.generator.task import DitTask

ONE_LARGE_OBJECT: dict[str, Any] = {
    **SIMPLE,
    "size": "large",
    "background": ("sand", "grass", "road"),
    "action": ("moves left", "moves right", "stays still"),
}
"""Arguments of `recaption.scenes.render` for scenes that a small transformer learns within an hour of one core."""


def one_large_object(seed: int, bucket: Bucket, *, num_frames: int | None = None) -> Scene:
    """A scene of the bucket's size, and of its length unless `num_frames` is passed."""
    return render(
        seed,
        num_frames=num_frames or bucket.num_frames,
        height_px=bucket.height_px,
        width_px=bucket.width_px,
        fps=bucket.fps,
        **ONE_LARGE_OBJECT,
    )


SomeTask = TypeVar("SomeTask", bound=DitTask)


@dataclass
class Latents:
    """Latents of scenes of one bucket, with captions and caption fields."""

    bucket: Bucket
    compressor: str
    arrays: list[np.ndarray] = field(default_factory=list)
    clip_ids: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    fields: list[CaptionFields] = field(default_factory=list)

    @classmethod
    def of(cls, scenes: Iterable[Scene], bucket: Bucket, compressor: str) -> Latents:
        """Encode all scenes; their captions are the short ones."""
        latents, encoder = cls(bucket, compressor), load(compressor)
        for scene in scenes:
            pixels_BTHWC = torch.from_numpy(scene.frames_THWC)[None]
            latents.arrays.append(encoder.encode(to_pixels(pixels_BTHWC))[0].numpy())
            latents.clip_ids.append(f"scene-{scene.seed}")
            latents.captions.append(scene.short_caption)
            latents.fields.append(scene.fields)
        return latents

    def task(self, cls: type[SomeTask], settings: DitSettings, *, capacity: int) -> SomeTask:
        return cls(
            MemorySource(self.arrays, self.clip_ids, self.captions),
            settings,
            PlanSettings(capacity=capacity, cost_model_width=settings.width),
            compressor=self.compressor,
            buckets=[self.bucket],
        )
