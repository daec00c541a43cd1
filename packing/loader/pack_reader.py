"""Reads the packs of the plan by their index, in any thread or process.

    reader = PackReader(RunFolder("RUN"), PlanSettings(capacity=4096), latents="patch", patch=(1, 2, 2))
    batch, damaged, _ = reader.read(123)     # pack 123 of the endless sequence; damaged: clip_id -> why

The content of a pack depends on its index, the samples and the settings alone.
"""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import numpy as np
import torch

from packing.grid import Shape3, token_shape_of_latent
from packing.loader.batch import PackedBatch, pack, rng_key
from packing.loader.sources import LatentShards, SampleSource
from packing.mixture.sample_sizes import SampleSizes
from packing.mixture.segments import Segment
from packing.mixture.token_dropping import sample_kept_tokens
from packing.plan.epochs import EpochPlans, WindowOffset
from packing.plan.settings import PlanSettings
from recaption.captions.mixture import CaptionMixtureSettings
from recaption.errors import ErrorBudgetError, UsageError, VideoError
from recaption.run_folder import RunFolder

MAX_REPLACEMENTS = 64
"""This many damaged samples in a row are no single damage: something is wrong with the storage."""


class ReadPack(NamedTuple):
    """What `PackReader.read` returns."""

    batch: PackedBatch
    damaged: dict[str, str]
    """clip_id -> why."""
    window_offset: WindowOffset | None
    """Of the pack (`EpochPlans.window_offset`): saved with the loader's state."""


class PackReader:
    """Pack index -> pack.

    A damaged sample is left out of its pack; a pack that would be empty gets the next readable sample of the index instead
    (a neighbour in the same bucket, where there is one). This depends only on which samples are damaged, so it is the same
    after a resume.
    """

    def __init__(
        self,
        run: RunFolder | SampleSource,
        settings: PlanSettings,
        *,
        latents: str = "patch",
        patch: Shape3 = (1, 1, 1),
        blend: CaptionMixtureSettings | None = None,
        pad_to_capacity: bool = False,
    ) -> None:
        """
        Args:
            run: a run folder, whose RUN/latents/<latents> is read, or any other source of samples.
            patch: latent (frames, rows, columns) per token.
            blend: the caption mixture; None: the captions in the shards.

        Raises:
            UsageError: no such latents, latents that do not divide into patches, a caption set that does not exist.
        """
        if blend is not None and not isinstance(run, RunFolder):
            raise UsageError("blend settings need a run folder, whose caption sets they read")
        if isinstance(run, RunFolder):
            run = LatentShards(run, latents, blend=blend, window_captions=settings.segment_rules.crops_in_time)
        self.source: SampleSource = run
        self.settings = settings
        self.patch = patch
        self.pad_to_capacity = pad_to_capacity
        shapes = [token_shape_of_latent(shape, patch) for shape in self.source.latent_shapes]
        sizes = SampleSizes(
            np.array(shapes, dtype=np.int64).reshape(-1, 3).prod(axis=1),
            num_frames=np.array([shape[0] for shape in self.source.latent_shapes], dtype=np.int64),
            buckets=self.source.buckets,
            clip_ids=self.source.clip_ids,
            patch_frames=patch[0],
        )
        self.plans = EpochPlans(sizes, settings, fingerprint=f"{self.source.fingerprint} {patch}")
        self._lock = threading.Lock()
        self._is_finite = bytearray(len(sizes))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def read(self, pack_index: int) -> ReadPack:
        """Read one pack. Thread-safe."""
        with self._lock:
            epoch, segments = self.plans.segments(pack_index)
            window_offset = self.plans.window_offset(pack_index)
        damaged: dict[str, str] = {}
        planned = segments.to_list()
        latents = {i: self._read_sample(i, damaged) for i in dict.fromkeys(segment.sample for segment in planned)}
        readable = [(segment, latent) for segment in planned if (latent := latents[segment.sample]) is not None]
        if not readable:
            readable = [self._replacement_sample(planned[0].sample, damaged)]
        clip_ids = [self.source.clip_ids[segment.sample] for segment, _ in readable]
        rng_keys = [rng_key(clip_id, segment.occurrence) for clip_id, (segment, _) in zip(clip_ids, readable)]
        crops = [_crop_frames(latent, segment) for segment, latent in readable]
        batch = pack(
            crops,
            clip_ids=clip_ids,
            captions=[self._caption(segment, epoch) for segment, _ in readable],
            capacity=self.settings.capacity,
            patch=self.patch,
            pad_to_capacity=self.pad_to_capacity,
            dtype=torch.float32,
            epoch=epoch,
            pack_index=pack_index,
            first_frames=[segment.first_frame for segment, _ in readable],
            kept_token_indices=[
                self._kept_token_indices(segment, crop, key, epoch)
                for (segment, _), crop, key in zip(readable, crops, rng_keys)
            ],
            rng_keys=rng_keys,
        )
        return ReadPack(batch, damaged, window_offset)

    def _caption(self, segment: Segment, epoch: int) -> str:
        num_frames = self.source.latent_shapes[segment.sample][0]
        is_whole_and_first = segment.occurrence == 0 and segment.num_frames == num_frames
        return self.source.caption(segment.sample, epoch, *(() if is_whole_and_first else (segment,)))

    def _kept_token_indices(self, segment: Segment, crop: torch.Tensor, key: str, epoch: int) -> np.ndarray | None:
        """None where all tokens are kept."""
        if not self.plans.rules.token_keep_rate:
            return None
        num_tokens = crop[0].numel() // math.prod(self.patch)
        if segment.num_tokens == num_tokens:
            return None
        return sample_kept_tokens(num_tokens, segment.num_tokens, key, seed=self.settings.seed, epoch=epoch)

    def _read_sample(self, index: int, damaged: dict[str, str]) -> torch.Tensor | None:
        """The latent, or None where it is damaged, which is added to `damaged`."""
        try:
            latent = torch.from_numpy(self.source.read(index))
            # one value that is not finite makes the sum not finite
            if not self._is_finite[index] and not latent.sum(dtype=torch.float32).isfinite():
                raise VideoError("unreadable", "the latent holds values that are not finite")
            self._is_finite[index] = 1
        except VideoError as error:
            damaged[self.source.clip_ids[index]] = str(error)
            return None
        return latent

    def _replacement_sample(self, index: int, damaged: dict[str, str]) -> tuple[Segment, torch.Tensor]:
        """The first readable sample after `index`, wrapping around at the end of the index.

        Whole where it fits into a pack, else cropped to its first frames, where the rules crop in time.
        """
        num_samples = len(self.source.clip_ids)
        for step in range(1, min(MAX_REPLACEMENTS, num_samples)):
            other = (index + step) % num_samples
            token_frames = self.source.latent_shapes[other][0] // self.patch[0]
            num_tokens = int(self.plans.num_tokens[other])
            if num_tokens > self.settings.capacity:
                tokens_per_frame = num_tokens // token_frames
                is_cropped = self.plans.rules.crops_in_time
                token_frames = self.settings.capacity // tokens_per_frame if is_cropped else 0
                num_tokens = token_frames * tokens_per_frame
            if not token_frames:
                continue
            latent = self._read_sample(other, damaged)
            if latent is not None:
                return Segment(other, 0, token_frames * self.patch[0], num_tokens, 0), latent
        raise ErrorBudgetError(f"{len(damaged)} damaged samples in a row; the last: {list(damaged.values())[-1]}")


def _crop_frames(latent_CTHW: torch.Tensor, segment: Segment) -> torch.Tensor:
    """The frames of the latent that are in the segment."""
    if segment.num_frames == latent_CTHW.shape[1]:
        return latent_CTHW
    return latent_CTHW[:, segment.first_frame : segment.first_frame + segment.num_frames].contiguous()
