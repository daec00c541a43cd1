"""The plans of all epochs: an endless sequence of rows, the same for any number of ranks and workers.

    plans = EpochPlans(num_tokens, PlanSettings(capacity=16384, policy="best_fit"))
    plans.row(123_456)          # (epoch, indices of the samples of that row)
    plans.num_rows              # per epoch, the same in each

Row g of training lies in epoch g // num_rows, whoever reads it; where rules (`excerpts`) make epochs unequal, each has the
rows it needs, and where one begins is counted (`stretches`). Sets beyond `window_samples` are planned in windows,
each by itself: what is held is the plan of one window (and the last), not of all samples. A window is made of blocks of
neighbours drawn from the whole set, once and for all; in every epoch windows come in another order, and the samples of a
window in other company. Rules that change over training do so between windows: one holds for the windows that start while
it does, so in a set of four windows `epoch<0.5` is the first two of the first epoch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property

import numpy as np

from packing.mixture.rng import shuffled
from packing.mixture.sample_sizes import SampleSizes
from packing.mixture.segments import Drawn, Excerpts
from packing.plan.settings import PlanSettings, longest_sample
from packing.plan.steps import Plan, empty_plan, plan_steps
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
        samples = (self._blocks_of(window)[:, None] * BLOCK_SAMPLES + np.arange(BLOCK_SAMPLES)).ravel()
        return samples[samples < self.num_samples]

    def at(self, window: int, places: np.ndarray) -> np.ndarray:
        """`self[window][places]` without making all of a window. (What the last block lacks is at its end.)"""
        return self._blocks_of(window)[places // BLOCK_SAMPLES] * BLOCK_SAMPLES + places % BLOCK_SAMPLES

    def _blocks_of(self, window: int) -> np.ndarray:
        return np.sort(self._blocks[self._edges[window] : self._edges[window + 1]])


class EpochPlans:
    """The plans depend on the samples and the settings alone, not on the number of ranks that will read them."""

    def __init__(self, sizes: np.ndarray | SampleSizes, settings: PlanSettings, *, fingerprint: str = "") -> None:
        """
        Args:
            sizes: of each sample; token counts alone are enough where no rule asks for more. May be a memory map.
            fingerprint: stands for the samples themselves; together with sizes and settings it makes `hash`.

        Raises:
            UsageError: no sample fits, or a rule asks for what `sizes` does not hold.
        """
        self.sizes = sizes if isinstance(sizes, SampleSizes) else SampleSizes(np.asarray(sizes))
        self.settings = settings
        self.rules = settings.excerpt_rules
        self.longest = longest_sample(settings.policy, settings.capacity, settings.budget_tokens)
        self.windows = Windows(len(self.sizes), settings.window_samples, settings.seed)
        self._kept: dict[tuple[int, int], Plan] = {}
        self._stretches = Stretches(self._num_rows_of_stretch) if self.rules else None
        self.rejected: dict[str, np.ndarray] = {}
        """Reason -> indices of the samples that are in no row of any epoch; with rules, of the first."""
        shown = self._first_excerpts() if self.rules else self.num_tokens[self.num_tokens <= self.longest]
        if not self.rules and len(shown) < len(self.sizes):
            self.rejected = {"too_long": np.flatnonzero(self.num_tokens > self.longest)}
        if not len(shown) and (self.rejected or not len(self.sizes)):
            raise UsageError(f"none of {len(self.sizes)} samples fits into a pack of {self.longest} tokens")
        self.budget_tokens = settings.budget_tokens or int(shown.max(initial=1))  # of the set, not of a window
        self.global_rows = settings.global_rows or self._automatic_global_rows(int(shown.sum()))
        if not self.rules:
            self.window_rows = np.array([self._num_rows(window) for window in range(len(self.windows))])
        self.hash = self._hash(fingerprint)

    @property
    def num_tokens(self) -> np.ndarray:
        """Of each whole sample."""
        return self.sizes.num_tokens

    @cached_property
    def num_rows(self) -> int:
        """Per epoch; with rules epochs differ, and this is the first."""
        if not self.rules:
            return int(self.window_rows.sum())
        return sum(self._num_rows_of_stretch(stretch) for stretch in range(len(self.windows)))

    def __getitem__(self, epoch: int) -> Plan:
        """A whole epoch in one piece, as large as the set."""
        order = self._order(epoch)
        plans = [self._plan_of(int(window), epoch) for window in order]
        starts = np.cumsum([0] + [len(plan.samples) for plan in plans])
        excerpts = Excerpts.joined(plan.excerpts for plan in plans if plan.excerpts is not None) if self.rules else None
        rejected = self.rejected
        by_rule: dict[str, np.ndarray] = {}
        if self.rules:
            rejected = self._of_windows(order, [plan.rejected for plan in plans])
            by_rule = self._of_windows(order, [plan.by_rule for plan in plans])
        samples = np.concatenate([self.windows[w][p.samples] for w, p in zip(order, plans, strict=True)])
        return dataclasses.replace(
            plans[0],
            samples=samples,
            starts=np.concatenate([[0], *(p.starts[1:] + start for p, start in zip(plans, starts))]),
            row_tokens=np.concatenate([plan.row_tokens for plan in plans]),
            row_flops=np.concatenate([plan.row_flops for plan in plans]),
            num_samples=sum(plan.num_samples for plan in plans),
            rejected=rejected,
            excerpts=excerpts and dataclasses.replace(excerpts, sample=samples),
            by_rule=by_rule,
        )

    def _of_windows(self, windows: np.ndarray, named: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Reason -> indices of samples in the set, from places in each window."""
        reasons = dict.fromkeys(reason for places in named for reason in places)
        return {
            reason: np.sort(np.concatenate([self.windows[w][p[reason]] for w, p in zip(windows, named) if reason in p]))
            for reason in reasons
        }

    def row(self, global_row: int) -> tuple[int, np.ndarray]:
        """Epoch and sample indices of row `global_row` of the endless sequence of epochs."""
        epoch, excerpts = self.excerpts(global_row)
        return epoch, excerpts.sample

    def excerpts(self, global_row: int) -> tuple[int, Excerpts]:
        """Epoch of row `global_row`, and what it shows of which samples."""
        epoch, window, place = self._find(global_row)
        plan = self._plan_of(window, epoch)
        span = slice(plan.starts[place], plan.starts[place + 1])
        samples = self.windows.at(window, plan.samples[span])
        if plan.excerpts is None:
            return epoch, Excerpts.whole(self.sizes, samples)
        return epoch, dataclasses.replace(plan.excerpts[span], sample=samples)

    def beginning(self, global_row: int) -> Beginning | None:
        """What a saved state has to carry for `begin_at`; None where rows are counted without it."""
        return self._stretches.find(global_row) if self._stretches else None

    def begin_at(self, beginning: Beginning | None) -> None:
        """Count rows from there, without planning what was before; only for a state with the same `hash`."""
        if self._stretches and beginning is not None:
            self._stretches.begin_at((int(beginning[0]), int(beginning[1])))

    def _find(self, global_row: int) -> tuple[int, int, int]:
        """(epoch, window, place among the window's rows)."""
        if self._stretches:
            stretch, first_row = self._stretches.find(global_row)
            epoch, nth = divmod(stretch, len(self.windows))
            return epoch, int(self._order(epoch)[nth]), global_row - first_row
        epoch, place = divmod(global_row, self.num_rows)
        order = self._order(epoch)
        edges = np.cumsum(self.window_rows[order])
        nth = int(np.searchsorted(edges, place, side="right"))
        window = int(order[nth])
        return epoch, window, place - int(edges[nth] - self.window_rows[window])

    def _order(self, epoch: int) -> np.ndarray:
        return shuffled(len(self.windows), self.settings.seed, epoch, "windows")

    def _num_rows_of_stretch(self, stretch: int) -> int:
        epoch, nth = divmod(stretch, len(self.windows))
        return self._plan_of(int(self._order(epoch)[nth]), epoch).num_packs

    def _plan_of(self, window: int, epoch: int) -> Plan:
        plan = self._kept.get((window, epoch))
        if plan is None:
            plan = self._plan_excerpts(window, epoch) if self.rules else self._plan_samples(window, epoch)
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
        plan = self._plan_excerpts if self.rules else self._plan_samples
        num_packs = sum(plan(window, 0, num_ranks=1).num_packs for window in range(num_windows))
        return automatic_global_rows(num_packs // num_windows)

    # --- every sample once and whole: all epochs have as many rows as the first ------------------------------------------

    def _num_rows(self, window: int) -> int:
        plan = self._plan(self.num_tokens[self.windows[window]], 0)
        if plan.num_repeated_rows:  # an endless sequence needs no repeats: the next epoch fills the step
            return plan.num_packs - plan.num_repeated_rows
        self._keep(window, 0, plan)
        return plan.num_packs

    def _plan_samples(self, window: int, epoch: int, *, num_ranks: int | None = None) -> Plan:
        num_rows = None if num_ranks else int(self.window_rows[window])
        return self._plan(self.num_tokens[self.windows[window]], epoch, num_ranks=num_ranks, num_rows=num_rows)

    # --- excerpts by rules: an epoch has the rows that it needs ----------------------------------------------------------

    def _first_excerpts(self) -> np.ndarray:
        """Tokens of all excerpts of the first epoch. Fills `rejected`."""
        self.rules.check(self.sizes)
        tokens, too_long = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for window in range(len(self.windows)):
            drawn = self._draw(window, 0)
            tokens.append(drawn.excerpts.num_tokens)
            too_long.append(self.windows[window][drawn.too_long])
        if sum(map(len, too_long)):
            self.rejected = {"too_long": np.sort(np.concatenate(too_long))}
        return np.concatenate(tokens)

    def _draw(self, window: int, epoch: int) -> Drawn:
        nth = int(np.flatnonzero(self._order(epoch) == window)[0])
        return self.rules.draw(
            self.sizes,
            self.windows[window],
            longest=self.longest,
            seed=self.settings.seed,
            epoch=epoch,
            position=epoch + nth / len(self.windows),
        )

    def _plan_excerpts(self, window: int, epoch: int, *, num_ranks: int | None = None) -> Plan:
        excerpts, too_long, by_rule = self._draw(window, epoch)
        plan = self._plan(excerpts.num_tokens, epoch, num_ranks=num_ranks, equal_epochs=False)
        if plan.num_repeated_rows:
            num_rows = plan.num_packs - plan.num_repeated_rows
            plan = self._plan(excerpts.num_tokens, epoch, num_ranks=num_ranks, num_rows=num_rows)
        excerpts = excerpts[plan.samples]
        return dataclasses.replace(
            plan,
            samples=excerpts.sample,
            num_samples=len(np.unique(excerpts.sample)),
            rejected={"too_long": too_long} if len(too_long) else {},
            excerpts=excerpts,
            by_rule=by_rule,
        )

    # --- both ------------------------------------------------------------------------------------------------------------

    def _plan(
        self,
        num_tokens: np.ndarray,
        epoch: int,
        *,
        num_ranks: int | None = None,
        num_rows: int | None = None,
        equal_epochs: bool = True,
    ) -> Plan:
        settings = self.settings
        num_ranks = num_ranks or self.global_rows
        if not (num_tokens <= self.longest).any():
            return empty_plan(settings, num_ranks=num_ranks, epoch=epoch, num_too_long=len(num_tokens))
        budget_tokens = self.budget_tokens
        if not equal_epochs and not settings.budget_tokens:  # a later epoch may show a dearer one
            budget_tokens = max(budget_tokens, int(num_tokens.max()))
        return plan_steps(
            num_tokens,
            num_ranks=num_ranks,
            capacity=settings.capacity,
            policy=settings.policy,
            pool=settings.pool,
            budget_tokens=budget_tokens,
            seed=settings.seed,
            epoch=epoch,
            width=settings.cost_width,
            num_rows=num_rows,
            equal_epochs=equal_epochs,
        )

    def _hash(self, fingerprint: str) -> str:
        digest = hashlib.sha256(repr((self.settings, fingerprint)).encode())
        digest.update(self.num_tokens.astype("<i8").tobytes())
        if self.rules:
            settings = self.settings
            digest.update(repr((settings.too_long, settings.max_frames, settings.mix, settings.keep)).encode())
            digest.update(self.sizes.keys.astype("<u8").tobytes())
            if self.sizes.num_frames is not None:
                digest.update(self.sizes.num_frames.astype("<i8").tobytes())
            if self.sizes.buckets is not None:
                digest.update("\n".join(map(str, self.sizes.buckets)).encode())
        return digest.hexdigest()[:16]


MAX_EMPTY_STRETCHES = 1000


Beginning = tuple[int, int]
"""(number of a stretch, its first row)."""


class Stretches:
    def __init__(self, num_rows: Callable[[int], int]) -> None:
        """
        Args:
            num_rows: of a stretch, by its number.
        """
        self._num_rows = num_rows
        self.begin_at((0, 0))

    def begin_at(self, beginning: Beginning) -> None:
        """Count from there; rows before it are counted from the beginning of training."""
        self._first, first_row = beginning
        self._edges = [first_row]  # of stretch _first and those after it, as far as they are known

    def find(self, row: int) -> Beginning:
        """The stretch that a row lies in.

        Raises:
            UsageError: stretch after stretch shows nothing.
        """
        if row < self._edges[0]:
            self.begin_at((0, 0))
        num_empty = 0
        while self._edges[-1] <= row:
            num_rows = self._num_rows(self._first + len(self._edges) - 1)
            num_empty = 0 if num_rows else num_empty + 1
            if num_empty > MAX_EMPTY_STRETCHES:
                raise UsageError("epoch after epoch shows no sample: the weights of the mix leave none")
            self._edges.append(self._edges[-1] + num_rows)
        place = bisect_right(self._edges, row) - 1
        return self._first + place, self._edges[place]
