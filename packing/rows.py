"""Rows of the plan as packs: sources of samples, and what reads one row of them, in whatever process.

    rows = Rows(RunFolder("RUN"), PlanSettings(capacity=4096), latents="patch", patch=(1, 2, 2))
    batch, damaged, _ = rows.read(123)       # row 123 of the endless sequence; clip_id -> why, where something was damaged

What a row holds depends on its number, the samples and the settings alone.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from packing.batch import PackedBatch, draw_id, pack
from packing.epochs import EpochPlans
from packing.excerpts import Excerpt
from packing.grid import Shape3, patch_shape
from packing.plan import PlanSettings
from packing.reader import read_latent
from packing.shards import LatentSample
from packing.sizes import SampleSizes
from packing.stretches import Beginning
from packing.texts import read_blend
from packing.token_dropping import kept_tokens
from recaption.blend import BlendSettings
from recaption.errors import ErrorBudgetError, UsageError, VideoError
from recaption.records import from_table
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


class Source(Protocol):
    """Where samples come from: their sizes and captions at once, their latents one by one."""

    @property
    def clip_ids(self) -> Sequence[str]: ...

    @property
    def captions(self) -> Sequence[str]: ...

    def caption(self, index: int, epoch: int, excerpt: Excerpt | None = None) -> str:
        """The text that a sample shows in an epoch.

        Args:
            excerpt: what is shown of it, where that is not the whole sample, or not for the first time in the epoch.
        """
        ...

    @property
    def latent_shapes(self) -> Sequence[Shape3]:
        """(frames, rows, columns) of each latent."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the samples do."""
        ...

    @property
    def buckets(self) -> Sequence[str] | None:
        """Name of each sample's bucket, where there are buckets."""
        ...

    def read(self, index: int) -> np.ndarray:
        """latent_CTHW, writable. Raises VideoError where this sample is damaged. Called from several threads."""
        ...


class LatentShards:
    """The latents under RUN/latents/<name>, by ranged reads; texts from the shards, or blended (recaption/blend.py)."""

    def __init__(
        self, run: RunFolder, name: str, *, blend: BlendSettings | None = None, window_texts: bool = False
    ) -> None:
        """
        Args:
            window_texts: samples are shown in parts, each with the caption of its own window where there is one.
        """
        index = f"latents/{name}/index.parquet"
        if not run.exists(index):
            raise UsageError(f"{run.uri} has no {index}; run `recaption encode` first")
        self.run = run
        self.rows = from_table(run.read_table(index), LatentSample)
        if not self.rows:
            raise UsageError(f"{index} of {run.uri} lists no samples")
        self.clip_ids = [row.clip_id for row in self.rows]
        self.captions = [row.caption for row in self.rows]
        self.latent_shapes = [(row.latent_frames, row.latent_height, row.latent_width) for row in self.rows]
        self.buckets: Sequence[str] | None = [row.bucket for row in self.rows]
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(f"{row.clip_id} {row.sha256} {row.caption}\n".encode())
        self.blend = read_blend(run, self.rows, blend, window_texts=window_texts) if blend else None
        if self.blend:
            digest.update(self.blend.fingerprint.encode())
        self.fingerprint = digest.hexdigest()[:16]
        self._checked = bytearray(len(self.rows))

    def caption(self, index: int, epoch: int, excerpt: Excerpt | None = None) -> str:
        if self.blend is None or excerpt is None:
            return self.blend.text(index, epoch) if self.blend else self.captions[index]
        return self.blend.text(index, epoch, number=excerpt.number, seconds=_seconds(self.rows[index], excerpt))

    def read(self, index: int) -> np.ndarray:
        """The first time in each process the sha256 is compared; every time place, size and shape are."""
        latent = read_latent(self.run, self.rows[index], check=not self._checked[index])
        self._checked[index] = 1
        return latent


def _seconds(row: LatentSample, excerpt: Excerpt) -> tuple[float, float]:
    """Since the start of the sample; its first latent frame is one frame of video, the others are equally many each."""
    stride = (row.num_frames - 1) / max(1, row.latent_frames - 1)
    end = excerpt.first_frame + (excerpt.num_frames or row.latent_frames)
    first, last = (1 + (frame - 1) * stride if frame else 0.0 for frame in (excerpt.first_frame, end))
    return first / row.fps, last / row.fps


class MemorySource:
    """Latents that are already here, each (C, t, h, w)."""

    def __init__(
        self,
        latents: Sequence[np.ndarray],
        clip_ids: Sequence[str],
        captions: Sequence[str],
        *,
        buckets: Sequence[str] | None = None,
    ) -> None:
        self.latents = latents
        self.buckets = buckets
        self.clip_ids = clip_ids
        self.captions = captions
        self.latent_shapes = [(x.shape[1], x.shape[2], x.shape[3]) for x in latents]
        digest = hashlib.sha256(repr((list(clip_ids), list(captions))).encode())
        for latent in latents:
            digest.update(np.ascontiguousarray(latent).tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def caption(self, index: int, epoch: int, excerpt: Excerpt | None = None) -> str:
        return self.captions[index]

    def read(self, index: int) -> np.ndarray:
        return np.asarray(self.latents[index])


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
        blend: BlendSettings | None = None,
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
