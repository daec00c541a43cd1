"""Clips that a compressor is trained on: rendered scenes, or the shards of a run."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Protocol

import numpy as np

from packing.shards.read import read_sample
from recaption.errors import UsageError
from recaption.records import Sample, from_table
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import render
from recaption.video_io.reader import decode_bytes
from train.compressors.settings import FIRST_HELD_OUT_SCENE, SCENE_FPS, CompressorSettings


class ClipSource(Protocol):
    """Numbered clips; the last few are held out."""

    num_training: int
    num_held_out: int

    def training_clip(self, number: int) -> np.ndarray:
        """uint8 (T, H, W, 3), at least as long and large as asked for. Raises VideoError where it is damaged."""
        ...

    def held_out_clip(self, number: int) -> np.ndarray: ...


class SceneClips:
    """Rendered scenes of exactly the size asked for."""

    def __init__(self, settings: CompressorSettings) -> None:
        self.settings = settings
        self.num_training, self.num_held_out = settings.num_scenes, settings.num_validation_scenes
        self._cached = lru_cache(_num_cached(settings))(self._render)

    def training_clip(self, number: int) -> np.ndarray:
        return self._cached(number)

    def held_out_clip(self, number: int) -> np.ndarray:
        return self._render(FIRST_HELD_OUT_SCENE + number)

    def _render(self, seed: int) -> np.ndarray:
        wanted = self.settings
        scene = render(
            seed, num_frames=wanted.num_frames, height_px=wanted.height_px, width_px=wanted.width_px, fps=SCENE_FPS
        )
        return scene.frames_THWC


class ShardClips:
    """Clips of a run's shards that are long and large enough; about one in twenty is held out.

    Raises:
        UsageError: the run has no index, or no clip fits.
    """

    def __init__(self, run: RunFolder, settings: CompressorSettings) -> None:
        if not run.exists("index.parquet"):
            raise UsageError(f"{run.uri} has no index.parquet; run `recaption shard --run {run.uri}` first")
        everything = from_table(run.read_table("index.parquet"), Sample)
        fitting = [
            row
            for row in everything
            if row.num_frames >= settings.num_frames
            and row.height_px >= settings.height_px
            and row.width_px >= settings.width_px
        ]
        if not fitting:
            raise UsageError(
                f"none of the {len(everything)} clips in {run.uri} has {settings.num_frames} frames of "
                f"{settings.width_px}x{settings.height_px} px; ask for fewer or smaller frames"
            )
        self.run = run
        fitting.sort(key=lambda row: hashlib.sha256(row.clip_id.encode()).digest())
        self.num_held_out = min(settings.num_validation_scenes, max(1, len(fitting) // 20))
        self.held_out = fitting[: self.num_held_out]
        self.training = fitting[self.num_held_out :] or fitting  # one clip alone is both
        self.num_training = len(self.training)
        self._cached = lru_cache(_num_cached(settings, max(fitting, key=_num_bytes)))(self._read)

    def training_clip(self, number: int) -> np.ndarray:
        return self._cached(number)

    def held_out_clip(self, number: int) -> np.ndarray:
        return self._decode(self.held_out[number])

    def _read(self, number: int) -> np.ndarray:
        return self._decode(self.training[number])

    def _decode(self, row: Sample) -> np.ndarray:
        return decode_bytes(read_sample(self.run, row)["mp4"]).pixels_THWC


def _num_bytes(row: Sample) -> int:
    return row.num_frames * row.height_px * row.width_px * 3


def _num_cached(settings: CompressorSettings, largest: Sample | None = None) -> int:
    per_clip = settings.num_frames * settings.height_px * settings.width_px * 3
    return max(1, settings.cache_bytes // (per_clip if largest is None else _num_bytes(largest)))
