"""The data loader: packs in plan order for one of any number of ranks, resumable at exactly the next batch.

    loader = PackLoader(RunFolder("RUN"), latents="patch", settings=PlanSettings(capacity=4096), rank=0, num_ranks=2)
    for batch in loader:                       # never ends; epoch after epoch, each in its own order
        ...
        state = loader.state_dict()            # {"next_step": 7, "next_pack": 14, "plan_hash": "...", ...}

At step s, rank r reads pack s * num_ranks + r of one endless sequence of packs. The sequence depends on the samples and the
settings alone, so a state restores on any number of ranks and workers and continues with the next pack.
`PackDataset` wraps the loader for any other torch DataLoader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from packing.grid import Grid
from packing.loader.batch import PackedBatch
from packing.loader.pack_reader import PackReader, ReadPack
from packing.loader.sources import SampleSource
from packing.plan.epochs import WindowOffset
from packing.plan.settings import PlanSettings
from recaption.captions.mixture import CaptionMixtureSettings
from recaption.errors import UsageError
from recaption.run_folder import RunFolder


class PackLoader:
    """Endless iterator over the packs of one rank.

    Damaged samples are left out or replaced as in `PackReader`; `num_damaged` counts them, `damaged` names them.

    The last packs of an epoch and the first of the next may share a step where `num_ranks` does not divide the number of
    packs; every sample is still read exactly once per epoch.
    """

    def __init__(
        self,
        run: RunFolder | SampleSource,
        *,
        settings: PlanSettings,
        latents: str = "patch",
        grid: Grid | None = None,
        blend: CaptionMixtureSettings | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        start_step: int = 0,
        pad_to_capacity: bool = False,
        prefetch: int = 2,
        num_workers: int = 0,
        start_method: str = "spawn",
    ) -> None:
        """
        Args:
            run: a run folder, whose RUN/latents/<latents> is read, or any other source of samples.
            grid: its `patch` is the latent (frames, rows, columns) per token.
            blend: the caption mixture; None: the captions in the shards.
            prefetch: packs read ahead, per worker where there are any; 0 reads on demand.
            num_workers: worker processes; 0 reads in a thread of this process.
            start_method: of the worker processes. `fork` starts faster, but not every storage client survives it.

        Raises:
            UsageError: no such latents, latents that do not divide into patches, a rank out of range.
        """
        if not 0 <= rank < num_ranks:
            raise UsageError(f"{rank = } is not one of {num_ranks} ranks")
        if min(num_workers, prefetch) < 0:
            raise UsageError(f"{num_workers = } and {prefetch = } must be 0 or more")
        self.reader = PackReader(
            run, settings, latents=latents, patch=(grid or Grid()).patch, blend=blend, pad_to_capacity=pad_to_capacity
        )
        self.source = self.reader.source
        self.rank = rank
        self.num_ranks = num_ranks
        self.prefetch = prefetch
        self.num_workers = num_workers
        self.start_method = start_method
        self.damaged: dict[str, str] = {}
        self.num_damaged = 0
        self._window_offset: WindowOffset | None = None
        self.seek(start_step)

    @property
    def next_pack(self) -> int:
        """Index of the pack that this rank reads next."""
        return self._next_pack + self.rank

    @property
    def plan_hash(self) -> str:
        return self.reader.plans.hash

    @property
    def num_packs_per_epoch(self) -> int:
        """Of the first epoch; where the plan has rules, other epochs may have more or fewer."""
        return self.reader.plans.num_packs

    @property
    def rejected(self) -> dict[str, list[str]]:
        """Reason -> clips that are in no pack; where the plan has rules, in none of the first epoch."""
        rejected = self.reader.plans.rejected
        return {reason: [self.source.clip_ids[i] for i in indices] for reason, indices in rejected.items()}

    def seek(self, step: int) -> None:
        """Continue at `step`, counted with the current `num_ranks`. Takes effect at the next `iter()`.

        Where the plan has rules, all epochs before it are planned first, which `load_state_dict` avoids.
        """
        self._next_step = step
        self._next_pack = step * self.num_ranks

    def state_dict(self) -> dict[str, Any]:
        """Position of the next batch. Prefetched batches do not count as read."""
        state = {
            "next_step": self._next_step,
            "next_pack": self._next_pack,
            "plan_hash": self.plan_hash,
            "num_damaged": self.num_damaged,
        }
        return state if self._window_offset is None else state | {"window_offset": list(self._window_offset)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, on any number of ranks. Takes effect at the next `iter()`.

        Raises:
            UsageError: `state` belongs to other samples or other settings.
        """
        if state["plan_hash"] != self.plan_hash:
            raise UsageError(
                f"the saved position belongs to plan {state['plan_hash']}, this is plan {self.plan_hash}: "
                "samples, captions, blend, capacity, policy, rules, seed or patch have changed since"
            )
        self._next_step = state["next_step"]
        self._next_pack = state["next_pack"]
        self.num_damaged = state["num_damaged"]
        self._window_offset = state.get("window_offset")
        self.reader.plans.seek(self._window_offset)

    def __iter__(self) -> Iterator[PackedBatch]:
        if self.num_workers:
            packs = self._read_in_workers()
        else:
            packs = self._prefetch_in_thread() if self.prefetch else self._read_on_demand()
        for batch, damaged, window_offset in packs:
            self._next_step += 1  # counts as read when it is yielded, not when it is prefetched
            self._next_pack += self.num_ranks
            self.num_damaged += len(damaged)
            self.damaged |= damaged
            self._window_offset = window_offset
            yield batch

    def _read_on_demand(self) -> Iterator[ReadPack]:
        while True:
            yield self.reader.read(self.next_pack)

    def _prefetch_in_thread(self) -> Iterator[ReadPack]:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="packs") as executor:
            prefetched: deque[Future[ReadPack]] = deque()
            next_pack = self.next_pack
            try:
                while True:
                    while len(prefetched) <= self.prefetch:
                        prefetched.append(executor.submit(_read_pinned, self.reader, next_pack))
                        next_pack += self.num_ranks
                    yield prefetched.popleft().result()
            finally:
                for future in prefetched:
                    future.cancel()

    def _read_in_workers(self) -> Iterator[ReadPack]:
        yield from DataLoader(
            _WorkerPacks(self.reader, self.next_pack, self.num_ranks),
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=max(1, self.prefetch),
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context=self.start_method,
        )


class PackDataset(IterableDataset[PackedBatch]):
    """The packs of a `PackLoader` from its current position, for any torch DataLoader with any number of workers.

        loader = PackLoader(RunFolder("RUN"), settings=PlanSettings(capacity=4096), start_step=0)
        for batch in DataLoader(PackDataset(loader), batch_size=None, num_workers=4): ...

    Endless. To resume, count the batches and pass `start_step`. With torchdata's StatefulDataLoader, which keeps the state
    of each worker, the number of workers must stay the same.
    """

    def __init__(self, loader: PackLoader) -> None:
        self.reader = loader.reader
        self.num_ranks = loader.num_ranks
        self.first_pack = loader.next_pack
        self._num_yielded = 0
        self._window_offset: WindowOffset | None = None

    def __iter__(self) -> Iterator[PackedBatch]:
        for number, pack_index in _pack_indices_of_worker(self.first_pack, self.num_ranks, self._num_yielded):
            self._num_yielded = number + 1
            batch, _, self._window_offset = self.reader.read(pack_index)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Of this worker: how many packs it has yielded since `first_pack`."""
        state = {"first_pack": self.first_pack, "num_yielded": self._num_yielded, "plan_hash": self.reader.plans.hash}
        return state if self._window_offset is None else state | {"window_offset": list(self._window_offset)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        plan_hash = self.reader.plans.hash
        if state["plan_hash"] != plan_hash:
            raise UsageError(f"the saved position belongs to plan {state['plan_hash']}, this is {plan_hash}")
        self.first_pack, self._num_yielded = state["first_pack"], state["num_yielded"]
        self._window_offset = state.get("window_offset")
        self.reader.plans.seek(self._window_offset)


class _WorkerPacks(IterableDataset[ReadPack]):
    """What the worker processes of a `PackLoader` iterate."""

    def __init__(self, reader: PackReader, first_pack: int, num_ranks: int) -> None:
        self.reader, self.first_pack, self.num_ranks = reader, first_pack, num_ranks

    def __iter__(self) -> Iterator[ReadPack]:
        for _, pack_index in _pack_indices_of_worker(self.first_pack, self.num_ranks, 0):
            yield self.reader.read(pack_index)


def _pack_indices_of_worker(first_pack: int, num_ranks: int, num_yielded: int) -> Iterator[tuple[int, int]]:
    """(number, pack index): worker w of W has the steps w, w + W, ...; a DataLoader takes from its workers in turn."""
    info = get_worker_info()
    worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
    number = num_yielded
    while True:
        yield number, first_pack + (worker + number * num_workers) * num_ranks
        number += 1


def _read_pinned(reader: PackReader, pack_index: int) -> ReadPack:
    """Read a pack, into page-locked memory where there is a GPU."""
    read = reader.read(pack_index)
    return read._replace(batch=read.batch.pin_memory()) if torch.cuda.is_available() else read
