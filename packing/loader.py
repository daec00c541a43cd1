"""The loader: packs in plan order, for one rank of any number, resumable to the very next batch.

    loader = PackLoader(RunFolder("RUN"), latents="patch", settings=PlanSettings(capacity=4096), rank=0, num_ranks=2)
    for batch in loader:                       # never ends; epoch after epoch, each in its own order
        ...
        state = loader.state_dict()            # {"next_step": 7, "next_row": 14, "plan_hash": "...", ...}

At step s, rank r reads row s * num_ranks + r of one endless sequence of rows. The sequence depends on the samples and
the settings alone, so a state restores on any number of ranks: the rows go on where they stopped.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch

from packing.batch import PackedBatch, pack
from packing.epochs import EpochPlans
from packing.grid import Grid, Shape3, patch_shape
from packing.plan import PlanSettings
from packing.reader import read_latent
from packing.shards import LatentSample
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

    @property
    def latent_shapes(self) -> Sequence[Shape3]:
        """(frames, rows, columns) of each latent."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the samples do."""
        ...

    def read(self, index: int) -> np.ndarray:
        """latent_CTHW. Raises VideoError where this sample is damaged. Called from several threads."""
        ...


class LatentShards:
    """The latents under RUN/latents/<name>, by ranged reads."""

    def __init__(self, run: RunFolder, name: str) -> None:
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
        self.fingerprint = digest.hexdigest()[:16]

    def read(self, index: int) -> np.ndarray:
        return read_latent(self.run, self.rows[index])


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

    def read(self, index: int) -> np.ndarray:
        return np.asarray(self.latents[index])


def _source(run: RunFolder | Source, latents: str) -> Source:
    return LatentShards(run, latents) if isinstance(run, RunFolder) else run


class PackLoader:
    """Endless iterator over the packs of one rank.

    A sample that turns out damaged is left out of its pack; a pack that would be empty gets the next readable sample of
    the index instead (a neighbour in the same bucket, where there is one). Which samples are damaged is all this
    depends on, so it is the same after a resume. `num_damaged` counts, `damaged` names them.

    The last rows of an epoch and the first of the next may share a step where `num_ranks` does not divide the number of
    rows; every sample still comes exactly once per epoch.
    """

    def __init__(
        self,
        run: RunFolder | Source,
        *,
        settings: PlanSettings,
        latents: str = "patch",
        grid: Grid | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        start_step: int = 0,
        pad_to_capacity: bool = False,
        prefetch: int = 2,
    ) -> None:
        """
        Args:
            run: a run folder, whose RUN/latents/<latents> is read, or any other source of samples.
            grid: its `patch` turns latents into tokens.
            prefetch: packs read ahead by a background thread; 0 reads when asked.

        Raises:
            UsageError: no such latents, latents that do not divide into patches, a rank out of range.
        """
        if not 0 <= rank < num_ranks:
            raise UsageError(f"{rank = } is not one of {num_ranks} ranks")
        self.source = _source(run, latents)
        self.patch = (grid or Grid()).patch
        self.settings = settings
        self.rank = rank
        self.num_ranks = num_ranks
        self.pad_to_capacity = pad_to_capacity
        self.prefetch = prefetch
        shapes = [patch_shape(shape, self.patch) for shape in self.source.latent_shapes]
        num_tokens = np.array(shapes, dtype=np.int64).reshape(-1, 3).prod(axis=1)
        self.plans = EpochPlans(num_tokens, settings, fingerprint=f"{self.source.fingerprint} {self.patch}")
        self.damaged: dict[str, str] = {}
        self.num_damaged = 0
        self._lock = threading.Lock()
        self.seek(start_step)

    @property
    def plan_hash(self) -> str:
        return self.plans.hash

    @property
    def num_rows_per_epoch(self) -> int:
        return self.plans.num_rows

    @property
    def rejected(self) -> dict[str, list[str]]:
        """Reason -> clips that are in no pack."""
        return {reason: [self.source.clip_ids[i] for i in at] for reason, at in self.plans.rejected.items()}

    def seek(self, step: int) -> None:
        """Make `step` the next, counted with today's `num_ranks`. Takes effect at the next `iter()`."""
        self._next_step = step
        self._next_row = step * self.num_ranks

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from. What lies prefetched does not count as read."""
        return {
            "next_step": self._next_step,
            "next_row": self._next_row,
            "plan_hash": self.plan_hash,
            "num_damaged": self.num_damaged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, on any number of ranks. Takes effect at the next `iter()`.

        Raises:
            UsageError: `state` belongs to other samples or other settings.
        """
        if state["plan_hash"] != self.plan_hash:
            raise UsageError(
                f"the saved position belongs to plan {state['plan_hash']}, this is plan {self.plan_hash}: "
                "samples, capacity, policy, seed or patch have changed since"
            )
        self._next_step = state["next_step"]
        self._next_row = state["next_row"]
        self.num_damaged = state["num_damaged"]

    def __iter__(self) -> Iterator[PackedBatch]:
        if self.prefetch == 0:
            while True:
                yield self._deliver(self._read_row(self._next_row + self.rank))
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="packs") as reader:
            ahead: deque[Future[tuple[PackedBatch, dict[str, str]]]] = deque()
            next_row = self._next_row + self.rank
            try:
                while True:
                    while len(ahead) <= self.prefetch:
                        ahead.append(reader.submit(self._read_row, next_row))
                        next_row += self.num_ranks
                    yield self._deliver(ahead.popleft().result())
            finally:
                for future in ahead:
                    future.cancel()

    def _deliver(self, result: tuple[PackedBatch, dict[str, str]]) -> PackedBatch:
        """Count a batch as read at the moment it is handed over."""
        batch, damaged = result
        self._next_step += 1
        self._next_row += self.num_ranks
        self.num_damaged += len(damaged)
        self.damaged |= damaged
        return batch

    def _read_row(self, row: int) -> tuple[PackedBatch, dict[str, str]]:
        """The pack of one row, and what was damaged in it: clip_id -> why."""
        with self._lock:
            epoch, samples = self.plans.row(row)
        damaged: dict[str, str] = {}
        latents = {int(i): latent for i in samples if (latent := self._read_sample(int(i), damaged)) is not None}
        if not latents:
            latents = self._stand_in(int(samples[0]), damaged)
        batch = pack(
            list(latents.values()),
            clip_ids=[self.source.clip_ids[i] for i in latents],
            captions=[self.source.captions[i] for i in latents],
            capacity=self.settings.capacity,
            patch=self.patch,
            pad_to_capacity=self.pad_to_capacity,
            epoch=epoch,
            row=row,
        )
        return batch, damaged

    def _read_sample(self, index: int, damaged: dict[str, str]) -> torch.Tensor | None:
        try:
            latent = self.source.read(index)
            if not np.isfinite(latent).all():
                raise VideoError("unreadable", "the latent holds values that are not finite")
        except VideoError as error:
            damaged[self.source.clip_ids[index]] = str(error)
            return None
        return torch.from_numpy(latent.astype(np.float32))

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
