"""The loader: packs in plan order, for one rank of any number, resumable to the very next batch.

    loader = PackLoader(RunFolder("RUN"), latents="patch", settings=PlanSettings(capacity=4096), rank=0, num_ranks=2)
    for batch in loader:                       # never ends; epoch after epoch, each in its own order
        ...
        state = loader.state_dict()            # {"next_step": 7, "next_row": 14, "plan_hash": "...", ...}

At step s, rank r reads row s * num_ranks + r of one endless sequence of rows. The sequence depends on the samples and
the settings alone, so a state restores on any number of ranks and workers: the rows go on where they stopped.
`PackDataset` is the same for somebody else's DataLoader.
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
from packing.loader.pack_reader import Read, Rows
from packing.loader.sources import Source
from packing.plan.epochs import Beginning
from packing.plan.settings import PlanSettings
from recaption.captions.mixture import CaptionMixtureSettings
from recaption.errors import UsageError
from recaption.run_folder import RunFolder


class PackLoader:
    """Endless iterator over the packs of one rank.

    What is damaged is replaced by the rule of `Rows`. `num_damaged` counts, `damaged` names it.

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
            grid: its `patch` turns latents into tokens.
            blend: which texts the samples show; without it those of the shards.
            prefetch: packs read ahead, per worker where there are any; 0 reads when asked.
            num_workers: processes that read; 0 reads in a thread of this one.
            start_method: of those processes. `fork` starts faster, but not every storage client survives it.

        Raises:
            UsageError: no such latents, latents that do not divide into patches, a rank out of range.
        """
        if not 0 <= rank < num_ranks:
            raise UsageError(f"{rank = } is not one of {num_ranks} ranks")
        if min(num_workers, prefetch) < 0:
            raise UsageError(f"{num_workers = } and {prefetch = } must be 0 or more")
        self.rows = Rows(
            run,
            settings,
            latents=latents,
            patch=(grid or Grid()).patch,
            blend=blend,
            pad_to_capacity=pad_to_capacity,
        )
        self.source = self.rows.source
        self.rank = rank
        self.num_ranks = num_ranks
        self.prefetch = prefetch
        self.num_workers = num_workers
        self.start_method = start_method
        self.damaged: dict[str, str] = {}
        self.num_damaged = 0
        self._beginning: Beginning | None = None
        self.seek(start_step)

    @property
    def next_row(self) -> int:
        """The row that this rank reads next."""
        return self._next_row + self.rank

    @property
    def plan_hash(self) -> str:
        return self.rows.plans.hash

    @property
    def num_rows_per_epoch(self) -> int:
        """Of the first epoch, where the rules of the plan make others longer or shorter."""
        return self.rows.plans.num_rows

    @property
    def rejected(self) -> dict[str, list[str]]:
        """Reason -> clips that are in no pack; where rules change over training, in none of the first epoch."""
        return {reason: [self.source.clip_ids[i] for i in at] for reason, at in self.rows.plans.rejected.items()}

    def seek(self, step: int) -> None:
        """Make `step` the next, counted with today's `num_ranks`. Takes effect at the next `iter()`.

        Where the rules of the plan make epochs unequal, all epochs before it are planned first; `load_state_dict` spares
        that.
        """
        self._next_step = step
        self._next_row = step * self.num_ranks

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from. What lies prefetched does not count as read."""
        state = {
            "next_step": self._next_step,
            "next_row": self._next_row,
            "plan_hash": self.plan_hash,
            "num_damaged": self.num_damaged,
        }
        return state if self._beginning is None else state | {"beginning": list(self._beginning)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, on any number of ranks. Takes effect at the next `iter()`.

        Raises:
            UsageError: `state` belongs to other samples or other settings.
        """
        if state["plan_hash"] != self.plan_hash:
            raise UsageError(
                f"the saved position belongs to plan {state['plan_hash']}, this is plan {self.plan_hash}: "
                "samples, captions, blend, capacity, policy, rules, seed or patch have changed since"
            )
        self._next_step = state["next_step"]
        self._next_row = state["next_row"]
        self.num_damaged = state["num_damaged"]
        self._beginning = state.get("beginning")
        self.rows.plans.begin_at(self._beginning)

    def __iter__(self) -> Iterator[PackedBatch]:
        reading = self._in_workers if self.num_workers else (self._in_a_thread if self.prefetch else self._when_asked)
        for batch, damaged, beginning in reading():
            self._next_step += 1  # read at the moment it is handed over, not when it was fetched
            self._next_row += self.num_ranks
            self.num_damaged += len(damaged)
            self.damaged |= damaged
            self._beginning = beginning
            yield batch

    def _when_asked(self) -> Iterator[Read]:
        while True:
            yield self.rows.read(self.next_row)

    def _in_a_thread(self) -> Iterator[Read]:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="packs") as reader:
            ahead: deque[Future[Read]] = deque()
            next_row = self.next_row
            try:
                while True:
                    while len(ahead) <= self.prefetch:
                        ahead.append(reader.submit(_read, self.rows, next_row))
                        next_row += self.num_ranks
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _in_workers(self) -> Iterator[Read]:
        yield from DataLoader(
            _WorkerRows(self.rows, self.next_row, self.num_ranks),
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=max(1, self.prefetch),
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context=self.start_method,
        )


class PackDataset(IterableDataset[PackedBatch]):
    """The packs of a loader, from where it stands, for any torch DataLoader with any number of workers.

        loader = PackLoader(RunFolder("RUN"), settings=PlanSettings(capacity=4096), start_step=0)
        for batch in DataLoader(PackDataset(loader), batch_size=None, num_workers=4): ...

    Endless. To resume, count the batches and start there. With torchdata's StatefulDataLoader, which keeps the state of
    each worker, the number of workers has to stay.
    """

    def __init__(self, loader: PackLoader) -> None:
        self.rows = loader.rows
        self.num_ranks = loader.num_ranks
        self.first_row = loader.next_row
        self._num_given = 0
        self._beginning: Beginning | None = None

    def __iter__(self) -> Iterator[PackedBatch]:
        for number, row in _rows_of_this_worker(self.first_row, self.num_ranks, self._num_given):
            self._num_given = number + 1
            batch, _, self._beginning = self.rows.read(row)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Of this worker: how many packs it has given since `first_row`."""
        state = {"first_row": self.first_row, "num_given": self._num_given, "plan_hash": self.rows.plans.hash}
        return state if self._beginning is None else state | {"beginning": list(self._beginning)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["plan_hash"] != self.rows.plans.hash:
            raise UsageError(f"the saved position belongs to plan {state['plan_hash']}, this is {self.rows.plans.hash}")
        self.first_row, self._num_given = state["first_row"], state["num_given"]
        self._beginning = state.get("beginning")
        self.rows.plans.begin_at(self._beginning)


class _WorkerRows(IterableDataset[Read]):
    def __init__(self, rows: Rows, first_row: int, num_ranks: int) -> None:
        self.rows, self.first_row, self.num_ranks = rows, first_row, num_ranks

    def __iter__(self) -> Iterator[Read]:
        for _, row in _rows_of_this_worker(self.first_row, self.num_ranks, 0):
            yield self.rows.read(row)


def _rows_of_this_worker(first_row: int, num_ranks: int, num_given: int) -> Iterator[tuple[int, int]]:
    """(number, row): worker w of W has the steps w, w + W, ...; a DataLoader takes from its workers in turn."""
    info = get_worker_info()
    worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
    number = num_given
    while True:
        yield number, first_row + (worker + number * num_workers) * num_ranks
        number += 1


def _read(rows: Rows, row: int) -> Read:
    read = rows.read(row)
    return read._replace(batch=read.batch.pin_memory()) if torch.cuda.is_available() else read
