"""The plans of all epochs: an endless sequence of rows, the same for any number of ranks and workers.

    plans = EpochPlans(num_tokens, PlanSettings(capacity=16384, policy="best_fit"))
    plans.row(123_456)          # (epoch, indices of the samples of that row)
    plans.num_rows              # per epoch, the same in each

Row g of training lies in epoch g // num_rows, whoever reads it. Sets beyond `window_samples` are planned in windows,
each by itself: what is held is the plan of one window (and the last), not of all samples. A window is made of blocks of
neighbours drawn from the whole set, once and for all; in every epoch windows come in another order, and the samples of a
window in other company.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from packing.balance import shuffled
from packing.plan import Plan, PlanSettings, longest_sample, plan_steps
from recaption.errors import UsageError

MAX_GLOBAL_ROWS = 64
BLOCK_SAMPLES = 256
"""Neighbours in the index that stay in one window: they lie in one shard."""


def automatic_global_rows(num_packs: int) -> int:
    """Largest power of two, at most 64, such that rounding the number of packs up to it adds at most 1/16."""
    return next(rows for rows in (64, 32, 16, 8, 4, 2, 1) if rows == 1 or num_packs >= 16 * rows)


class Windows:
    """`windows[i]` holds the indices of the samples of window i; together they are 0 .. num_samples - 1, each once."""

    def __init__(self, num_samples: int, window_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        num_blocks = -(-num_samples // BLOCK_SAMPLES)
        num_windows = min(max(1, num_blocks), -(-num_samples // window_samples)) or 1
        self._blocks = np.arange(num_blocks) if num_windows == 1 else shuffled(num_blocks, seed, 0, "blocks")
        self._edges = num_blocks * np.arange(num_windows + 1) // num_windows

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __getitem__(self, window: int) -> np.ndarray:
        blocks = np.sort(self._blocks[self._edges[window] : self._edges[window + 1]])
        samples = (blocks[:, None] * BLOCK_SAMPLES + np.arange(BLOCK_SAMPLES)).ravel()
        return samples[samples < self.num_samples]


class EpochPlans:
    """The plans depend on the samples and the settings alone, not on the number of ranks that will read them."""

    def __init__(self, num_tokens: np.ndarray, settings: PlanSettings, *, fingerprint: str = "") -> None:
        """
        Args:
            num_tokens: of each sample; may be a memory map.
            fingerprint: stands for the samples themselves; together with lengths and settings it makes `hash`.
        """
        self.num_tokens = np.asarray(num_tokens)
        self.settings = settings
        self.longest = longest_sample(settings.policy, settings.capacity, settings.budget_tokens)
        self.windows = Windows(len(self.num_tokens), settings.window_samples, settings.seed)
        fitting = self.num_tokens[self.num_tokens <= self.longest]
        if not len(fitting):
            raise UsageError(f"none of {len(self.num_tokens)} samples fits into a pack of {self.longest} tokens")
        self.budget_tokens = settings.budget_tokens or int(fitting.max())  # of the set, not of a window
        self._kept: dict[tuple[int, int], Plan] = {}
        self.global_rows = settings.global_rows or self._automatic_global_rows(int(fitting.sum()))
        self.window_rows = np.array([self._num_rows(window) for window in range(len(self.windows))])
        self.num_rows = int(self.window_rows.sum())
        digest = hashlib.sha256(repr((settings, fingerprint)).encode())
        digest.update(self.num_tokens.astype("<i8").tobytes())
        self.hash = digest.hexdigest()[:16]

    @property
    def rejected(self) -> dict[str, np.ndarray]:
        """Reason -> indices of the samples that are in no row of any epoch."""
        too_long = np.flatnonzero(self.num_tokens > self.longest)
        return {"too_long": too_long} if len(too_long) else {}

    def __getitem__(self, epoch: int) -> Plan:
        """A whole epoch in one piece, as large as the set."""
        order = self._order(epoch)
        plans = [self._plan_of(int(window), epoch) for window in order]
        starts = np.cumsum([0] + [len(plan.samples) for plan in plans])
        return dataclasses.replace(
            plans[0],
            samples=np.concatenate([self.windows[w][p.samples] for w, p in zip(order, plans, strict=True)]),
            starts=np.concatenate([[0], *(p.starts[1:] + start for p, start in zip(plans, starts))]),
            row_tokens=np.concatenate([plan.row_tokens for plan in plans]),
            row_flops=np.concatenate([plan.row_flops for plan in plans]),
            num_samples=sum(plan.num_samples for plan in plans),
            rejected=self.rejected,
        )

    def row(self, global_row: int) -> tuple[int, np.ndarray]:
        """Epoch and sample indices of row `global_row` of the endless sequence of epochs."""
        epoch, place = divmod(global_row, self.num_rows)
        order = self._order(epoch)
        edges = np.cumsum(self.window_rows[order])
        nth = int(np.searchsorted(edges, place, side="right"))
        window = int(order[nth])
        place -= int(edges[nth] - self.window_rows[window])
        plan = self._plan_of(window, epoch)
        samples = plan.samples[plan.starts[place] : plan.starts[place + 1]]
        return epoch, self.windows[window][samples]

    def _order(self, epoch: int) -> np.ndarray:
        return shuffled(len(self.windows), self.settings.seed, epoch, "windows")

    def _plan_of(self, window: int, epoch: int) -> Plan:
        plan = self._kept.get((window, epoch))
        if plan is None:
            plan = self._plan(window, epoch, int(self.window_rows[window]))
            self._keep(window, epoch, plan)
        return plan

    def _keep(self, window: int, epoch: int, plan: Plan) -> None:
        """Two at most: a reader that reads ahead has one foot in the next window or epoch."""
        self._kept = dict(list(self._kept.items())[-1:]) | {(window, epoch): plan}

    def _automatic_global_rows(self, sum_tokens: int) -> int:
        """By the packs of one window: each is rounded up by itself."""
        num_windows = len(self.windows)
        if sum_tokens >= num_windows * self.settings.capacity * 16 * MAX_GLOBAL_ROWS:
            return MAX_GLOBAL_ROWS
        num_packs = sum(self._plan(window, 0, None, num_ranks=1).num_packs for window in range(num_windows))
        return automatic_global_rows(num_packs // num_windows)

    def _num_rows(self, window: int) -> int:
        plan = self._plan(window, 0, None)
        if plan.num_repeated_rows:  # an endless sequence needs no repeats: the next epoch fills the step
            return plan.num_packs - plan.num_repeated_rows
        self._keep(window, 0, plan)
        return plan.num_packs

    def _plan(self, window: int, epoch: int, num_rows: int | None, num_ranks: int | None = None) -> Plan:
        settings = self.settings
        return plan_steps(
            self.num_tokens[self.windows[window]],
            num_ranks=num_ranks or self.global_rows,
            capacity=settings.capacity,
            policy=settings.policy,
            pool=settings.pool,
            budget_tokens=self.budget_tokens,
            seed=settings.seed,
            epoch=epoch,
            width=settings.cost_width,
            num_rows=num_rows,
        )
