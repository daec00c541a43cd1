"""Sources of training clips for the compressor: rendered scenes, or the shards of a run."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Protocol

import numpy as np

from packing.loader.holdout import held_out_videos, video_of
from packing.shards.read import read_sample
from recaption.errors import UsageError
from recaption.records import Sample, from_table
from recaption.run_folder import RunFolder
from recaption.scenes.splits import held_out_scene, sized_scene
from recaption.video_io.reader import decode_bytes
from train.compressors.settings import CompressorSettings

HELD_OUT_SHARE = 0.05


class ClipSource(Protocol):
    """A source of numbered training clips and held-out clips."""

    num_training: int
    num_held_out: int

    def training_clip(self, number: int) -> np.ndarray:
        """uint8 (T, H, W, 3), at least of the requested length and size. Raises VideoError for a damaged clip."""
        ...

    def held_out_clip(self, number: int) -> np.ndarray: ...


class SceneClips:
    """Rendered scenes of exactly the requested size."""

    def __init__(self, settings: CompressorSettings) -> None:
        self.size = settings.num_frames, settings.height_px, settings.width_px
        self.num_training, self.num_held_out = settings.num_scenes, settings.num_validation_scenes
        self._cached = lru_cache(_num_cached(settings))(self._render)

    def training_clip(self, number: int) -> np.ndarray:
        return self._cached(number)

    def held_out_clip(self, number: int) -> np.ndarray:
        return held_out_scene(number, size=self.size).frames_THWC

    def _render(self, seed: int) -> np.ndarray:
        return sized_scene(seed, size=self.size).frames_THWC


class ShardClips:
    """Clips of a run's shards that are long and large enough; the videos of about one in twenty are held out.

    Raises:
        UsageError: the run has no index, or no clip is large enough.
    """

    def __init__(self, run: RunFolder, settings: CompressorSettings) -> None:
        if not run.exists("index.parquet"):
            raise UsageError(f"{run.uri} has no index.parquet; run `recaption shard --run {run.uri}` first")
        samples = from_table(run.read_table("index.parquet"), Sample)
        large_enough = [
            sample
            for sample in samples
            if sample.num_frames >= settings.num_frames
            and sample.height_px >= settings.height_px
            and sample.width_px >= settings.width_px
        ]
        if not large_enough:
            raise UsageError(
                f"none of the {len(samples)} clips in {run.uri} has {settings.num_frames} frames of "
                f"{settings.width_px}x{settings.height_px} px; use fewer or smaller frames"
            )
        self.run = run
        large_enough.sort(key=lambda sample: hashlib.sha256(sample.clip_id.encode()).digest())
        videos = held_out_videos([video_of(sample.clip_id) for sample in large_enough], HELD_OUT_SHARE)
        held_out = [sample for sample in large_enough if video_of(sample.clip_id) in videos]
        if held_out:
            self.training = [sample for sample in large_enough if video_of(sample.clip_id) not in videos]
        else:  # too few videos: clips of the same ones, and a single clip is both
            held_out = large_enough[: max(1, len(large_enough) // 20)]
            self.training = large_enough[len(held_out) :] or large_enough
        self.held_out = held_out[: settings.num_validation_scenes]
        self.num_held_out = len(self.held_out)
        self.num_training = len(self.training)
        self._cached = lru_cache(_num_cached(settings, max(large_enough, key=_num_bytes)))(self._read)

    def training_clip(self, number: int) -> np.ndarray:
        return self._cached(number)

    def held_out_clip(self, number: int) -> np.ndarray:
        return self._decode(self.held_out[number])

    def _read(self, number: int) -> np.ndarray:
        return self._decode(self.training[number])

    def _decode(self, sample: Sample) -> np.ndarray:
        return decode_bytes(read_sample(self.run, sample)["mp4"]).pixels_THWC


def _num_bytes(sample: Sample) -> int:
    """Decoded RGB bytes."""
    return sample.num_frames * sample.height_px * sample.width_px * 3


def _num_cached(settings: CompressorSettings, largest: Sample | None = None) -> int:
    """Clips that fit `cache_bytes`."""
    per_clip = settings.num_frames * settings.height_px * settings.width_px * 3
    return max(1, settings.cache_bytes // (per_clip if largest is None else _num_bytes(largest)))
