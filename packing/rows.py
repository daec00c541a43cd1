"""Rows of the plan as packs: sources of samples, and what reads one row of them, in whatever process.

    rows = Rows(RunFolder("RUN"), PlanSettings(capacity=4096), latents="patch", patch=(1, 2, 2))
    batch, damaged = rows.read(123)          # row 123 of the endless sequence; clip_id -> why, where something was damaged

What a row holds depends on its number, the samples and the settings alone.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from packing.batch import PackedBatch, pack
from packing.epochs import EpochPlans
from packing.grid import Shape3, patch_shape
from packing.plan import PlanSettings
from packing.reader import read_latent
from packing.shards import LatentSample
from packing.texts import read_blend
from recaption.blend import BlendSettings
from recaption.errors import ErrorBudgetError, UsageError, VideoError
from recaption.records import from_table
from recaption.run_folder import RunFolder

MAX_STAND_INS = 64
"""So many damaged samples in a row are no longer single damage: something is wrong with the storage."""


class Source(Protocol):
    """Where samples come from: their sizes and captions at once, their latents one by one."""

    @property
    def clip_ids(self) -> Sequence[str]: ...

    @property
    def captions(self) -> Sequence[str]: ...

    def caption(self, index: int, epoch: int) -> str:
        """The text that a sample shows in an epoch."""
        ...

    @property
    def latent_shapes(self) -> Sequence[Shape3]:
        """(frames, rows, columns) of each latent."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the samples do."""
        ...

    def read(self, index: int) -> np.ndarray:
        """latent_CTHW, writable. Raises VideoError where this sample is damaged. Called from several threads."""
        ...


class LatentShards:
    """The latents under RUN/latents/<name>, by ranged reads; texts from the shards, or blended (recaption/blend.py)."""

    def __init__(self, run: RunFolder, name: str, *, blend: BlendSettings | None = None) -> None:
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
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(f"{row.clip_id} {row.sha256} {row.caption}\n".encode())
        self.blend = read_blend(run, self.rows, blend) if blend else None
        if self.blend:
            digest.update(self.blend.fingerprint.encode())
        self.fingerprint = digest.hexdigest()[:16]
        self._checked = bytearray(len(self.rows))

    def caption(self, index: int, epoch: int) -> str:
        return self.blend.text(index, epoch) if self.blend else self.captions[index]

    def read(self, index: int) -> np.ndarray:
        """The first time in each process the sha256 is compared; every time place, size and shape are."""
        latent = read_latent(self.run, self.rows[index], check=not self._checked[index])
        self._checked[index] = 1
        return latent


class MemorySource:
    """Latents that are already here, each (C, t, h, w)."""

    def __init__(self, latents: Sequence[np.ndarray], clip_ids: Sequence[str], captions: Sequence[str]) -> None:
        self.latents = latents
        self.clip_ids = clip_ids
        self.captions = captions
        self.latent_shapes = [(x.shape[1], x.shape[2], x.shape[3]) for x in latents]
        digest = hashlib.sha256(repr((list(clip_ids), list(captions))).encode())
        for latent in latents:
            digest.update(np.ascontiguousarray(latent).tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def caption(self, index: int, epoch: int) -> str:
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
        self.source = LatentShards(run, latents, blend=blend) if isinstance(run, RunFolder) else run
        self.settings = settings
        self.patch = patch
        self.pad_to_capacity = pad_to_capacity
        shapes = [patch_shape(shape, patch) for shape in self.source.latent_shapes]
        num_tokens = np.array(shapes, dtype=np.int64).reshape(-1, 3).prod(axis=1)
        self.plans = EpochPlans(num_tokens, settings, fingerprint=f"{self.source.fingerprint} {patch}")
        self._lock = threading.Lock()
        self._finite = bytearray(len(num_tokens))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def read(self, row: int) -> tuple[PackedBatch, dict[str, str]]:
        """The pack of one row, and what was damaged in it: clip_id -> why. May be called from several threads."""
        with self._lock:
            epoch, samples = self.plans.row(row)
        damaged: dict[str, str] = {}
        latents = {int(i): latent for i in samples if (latent := self._read_sample(int(i), damaged)) is not None}
        if not latents:
            latents = self._stand_in(int(samples[0]), damaged)
        batch = pack(
            list(latents.values()),
            clip_ids=[self.source.clip_ids[i] for i in latents],
            captions=[self.source.caption(i, epoch) for i in latents],
            capacity=self.settings.capacity,
            patch=self.patch,
            pad_to_capacity=self.pad_to_capacity,
            dtype=torch.float32,
            epoch=epoch,
            row=row,
        )
        return batch, damaged

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

    def _stand_in(self, index: int, damaged: dict[str, str]) -> dict[int, torch.Tensor]:
        """The first readable sample after `index` in the index, from the start again at its end."""
        num_samples = len(self.source.clip_ids)
        for step in range(1, min(MAX_STAND_INS, num_samples)):
            other = (index + step) % num_samples
            if self.plans.num_tokens[other] > self.settings.capacity:
                continue
            latent = self._read_sample(other, damaged)
            if latent is not None:
                return {other: latent}
        raise ErrorBudgetError(f"{len(damaged)} damaged samples in a row; the last: {list(damaged.values())[-1]}")
