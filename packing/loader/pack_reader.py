"""Rows of the plan as packs: sources of samples, and what reads one row of them, in whatever process.

    rows = Rows(RunFolder("RUN"), PlanSettings(capacity=4096), latents="patch", patch=(1, 2, 2))
    batch, damaged, _ = rows.read(123)       # row 123 of the endless sequence; clip_id -> why, where something was damaged

What a row holds depends on its number, the samples and the settings alone.
"""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import numpy as np
import torch

from packing.grid import Shape3, patch_shape
from packing.loader.batch import PackedBatch, draw_id, pack
from packing.loader.sources import LatentShards, Source
from packing.mixture.sample_sizes import SampleSizes
from packing.mixture.segments import Excerpt
from packing.mixture.token_dropping import kept_tokens
from packing.plan.epochs import Beginning, EpochPlans
from packing.plan.settings import PlanSettings
from recaption.captions.mixture import CaptionMixtureSettings
from recaption.errors import ErrorBudgetError, UsageError, VideoError
from recaption.run_folder import RunFolder

MAX_STAND_INS = 64
"""So many damaged samples in a row are no longer single damage: something is wrong with the storage."""


class Read(NamedTuple):
    """One row, read."""

    batch: PackedBatch
    damaged: dict[str, str]
    """clip_id -> why."""
    beginning: Beginning | None
    """Of the stretch that the row lies in (`EpochPlans.beginning`)."""


class Rows:
    """Row number -> pack.

    A sample that turns out damaged is left out of its pack; a pack that would be empty gets the next readable sample of
    the index instead (a neighbour in the same bucket, where there is one). Which samples are damaged is all this
    depends on, so it is the same after a resume.
    """

    def __init__(
        self,
        run: RunFolder | Source,
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
            patch: turns latents into tokens.
            blend: which texts the samples show; without it those of the shards.

        Raises:
            UsageError: no such latents, latents that do not divide into patches, a blend of texts that are not there.
        """
        if blend is not None and not isinstance(run, RunFolder):
            raise UsageError("blend settings need a run folder, whose caption sets they read")
        if isinstance(run, RunFolder):
            run = LatentShards(run, latents, blend=blend, window_texts=settings.excerpt_rules.cuts)
        self.source: Source = run
        self.settings = settings
        self.patch = patch
        self.pad_to_capacity = pad_to_capacity
        shapes = [patch_shape(shape, patch) for shape in self.source.latent_shapes]
        sizes = SampleSizes(
            np.array(shapes, dtype=np.int64).reshape(-1, 3).prod(axis=1),
            num_frames=np.array([shape[0] for shape in self.source.latent_shapes], dtype=np.int64),
            buckets=self.source.buckets,
            clip_ids=self.source.clip_ids,
            patch_frames=patch[0],
        )
        self.plans = EpochPlans(sizes, settings, fingerprint=f"{self.source.fingerprint} {patch}")
        self._lock = threading.Lock()
        self._finite = bytearray(len(sizes))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def read(self, row: int) -> Read:
        """The pack of one row. May be called from several threads."""
        with self._lock:
            epoch, excerpts = self.plans.excerpts(row)
            beginning = self.plans.beginning(row)
        damaged: dict[str, str] = {}
        planned = excerpts.each()
        latents = {i: self._read_sample(i, damaged) for i in dict.fromkeys(excerpt.sample for excerpt in planned)}
        shown = [(excerpt, latent) for excerpt in planned if (latent := latents[excerpt.sample]) is not None]
        if not shown:
            shown = [self._stand_in(planned[0].sample, damaged)]
        clip_ids = [self.source.clip_ids[excerpt.sample] for excerpt, _ in shown]
        draw_ids = [draw_id(clip_id, excerpt.number) for clip_id, (excerpt, _) in zip(clip_ids, shown)]
        parts = [_part(latent, excerpt) for excerpt, latent in shown]
        batch = pack(
            parts,
            clip_ids=clip_ids,
            captions=[self._caption(excerpt, epoch) for excerpt, _ in shown],
            capacity=self.settings.capacity,
            patch=self.patch,
            pad_to_capacity=self.pad_to_capacity,
            dtype=torch.float32,
            epoch=epoch,
            row=row,
            first_frames=[excerpt.first_frame for excerpt, _ in shown],
            kept=[self._kept(excerpt, part, name, epoch) for (excerpt, _), part, name in zip(shown, parts, draw_ids)],
            draw_ids=draw_ids,
        )
        return Read(batch, damaged, beginning)

    def _caption(self, excerpt: Excerpt, epoch: int) -> str:
        is_plain = excerpt.number == 0 and excerpt.num_frames == self.source.latent_shapes[excerpt.sample][0]
        return self.source.caption(excerpt.sample, epoch, *(() if is_plain else (excerpt,)))

    def _kept(self, excerpt: Excerpt, part: torch.Tensor, name: str, epoch: int) -> np.ndarray | None:
        if not self.plans.rules.keep:
            return None
        num_tokens = part[0].numel() // math.prod(self.patch)
        if excerpt.num_tokens == num_tokens:
            return None
        return kept_tokens(num_tokens, excerpt.num_tokens, name, seed=self.settings.seed, epoch=epoch)

    def _read_sample(self, index: int, damaged: dict[str, str]) -> torch.Tensor | None:
        try:
            latent = torch.from_numpy(self.source.read(index))
            if (
                not self._finite[index] and not latent.sum(dtype=torch.float32).isfinite()
            ):  # one that is not spoils the sum
                raise VideoError("unreadable", "the latent holds values that are not finite")
            self._finite[index] = 1
        except VideoError as error:
            damaged[self.source.clip_ids[index]] = str(error)
            return None
        return latent

    def _stand_in(self, index: int, damaged: dict[str, str]) -> tuple[Excerpt, torch.Tensor]:
        """The first readable sample after `index` in the index, from the start again at its end: whole where it fits
        into a pack, else the frames from its start that do, where samples may be cut."""
        num_samples = len(self.source.clip_ids)
        for step in range(1, min(MAX_STAND_INS, num_samples)):
            other = (index + step) % num_samples
            units = self.source.latent_shapes[other][0] // self.patch[0]
            num_tokens = int(self.plans.num_tokens[other])
            if num_tokens > self.settings.capacity:
                of_frame = num_tokens // units
                units = self.settings.capacity // of_frame if self.plans.rules.cuts else 0
                num_tokens = units * of_frame
            if not units:
                continue
            latent = self._read_sample(other, damaged)
            if latent is not None:
                return Excerpt(other, 0, units * self.patch[0], num_tokens, 0), latent
        raise ErrorBudgetError(f"{len(damaged)} damaged samples in a row; the last: {list(damaged.values())[-1]}")


def _part(latent_CTHW: torch.Tensor, excerpt: Excerpt) -> torch.Tensor:
    """The frames of a latent that an excerpt shows."""
    if excerpt.num_frames == latent_CTHW.shape[1]:
        return latent_CTHW
    return latent_CTHW[:, excerpt.first_frame : excerpt.first_frame + excerpt.num_frames].contiguous()
