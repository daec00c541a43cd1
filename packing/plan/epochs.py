"""Plans of all epochs: one endless sequence of packs, the same for any number of ranks and workers.

    plans = EpochPlans(num_tokens, PlanSettings(capacity=16384, policy="best_fit"))
    plans.pack(123_456)         # (epoch, sample indices of that pack)
    plans.num_packs             # per epoch, the same in each

Pack g is in epoch g // num_packs, whichever rank reads it. Where rules (`packing.mixture`) give each epoch other segments,
each has as many packs as it needs, and `WindowOffsets` counts where it starts. Sets beyond `window_samples` are planned in
independent windows, so that memory holds the plans of two windows, not of all samples. A window consists of blocks of
neighbouring samples, chosen at random from the whole set once and for all; every epoch has the windows in another order, and
the samples of a window in other packs. Schedules take effect between windows: a rule is active for the windows that start
while it is, so in a set of four windows `epoch<0.5` is the first two of the first epoch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property

import numpy as np

from packing.mixture.sample_sizes import SampleSizes
from packing.mixture.segments import EpochSegments, Segments
from packing.plan.settings import DEFAULT_COST_MODEL_WIDTH, PlanSettings
from packing.plan.steps import Plan, empty_plan, plan_epoch
from recaption.errors import UsageError
from recaption.rng import random_permutation
from recaption.run_folder import recipe_hash

MAX_GLOBAL_BATCH_PACKS = 64
BLOCK_SAMPLES = 256
"""Neighbours in the index that stay in one window: they are in one shard."""


def default_global_batch_packs(num_packs: int) -> int:
    """Largest power of two, at most 64, such that rounding the number of packs up to it adds at most 1/16."""
    return next(size for size in (64, 32, 16, 8, 4, 2, 1) if size == 1 or num_packs >= 16 * size)


class Windows:
    """`windows[i]` holds the sample indices of window i; together they are 0 .. num_samples - 1, each once."""

    def __init__(self, num_samples: int, window_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        num_blocks = -(-num_samples // BLOCK_SAMPLES)
        num_windows = min(max(1, num_blocks), -(-num_samples // window_samples)) or 1
        self._blocks = np.arange(num_blocks) if num_windows == 1 else random_permutation(num_blocks, seed, 0, "blocks")
        self._edges = num_blocks * np.arange(num_windows + 1) // num_windows

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __getitem__(self, window: int) -> np.ndarray:
        samples = (self._blocks_of(window)[:, None] * BLOCK_SAMPLES + np.arange(BLOCK_SAMPLES)).ravel()
        return samples[samples < self.num_samples]

    def select(self, window: int, indices: np.ndarray) -> np.ndarray:
        """`self[window][indices]` without building the whole window. (Only the last block may be shorter, at its end.)"""
        return self._blocks_of(window)[indices // BLOCK_SAMPLES] * BLOCK_SAMPLES + indices % BLOCK_SAMPLES

    def _blocks_of(self, window: int) -> np.ndarray:
        return np.sort(self._blocks[self._edges[window] : self._edges[window + 1]])


class EpochPlans:
    """The plans depend on the samples and the settings alone, not on the number of ranks that will read them."""

    def __init__(self, sizes: np.ndarray | SampleSizes, settings: PlanSettings, *, fingerprint: str = "") -> None:
        """
        Args:
            sizes: of each sample; token counts alone are enough where no rule needs more. May be a memory map.
            fingerprint: of the samples' contents; part of `hash`, like sizes and settings.

        Raises:
            UsageError: no sample fits, or a rule needs a field that `sizes` lacks.
        """
        self.sizes = sizes if isinstance(sizes, SampleSizes) else SampleSizes(np.asarray(sizes))
        settings = settings.with_cost_model_width(DEFAULT_COST_MODEL_WIDTH)
        self.settings = settings
        self.rules = settings.segment_rules
        self.max_sample_tokens = settings.max_sample_tokens
        self.windows = Windows(len(self.sizes), settings.window_samples, settings.seed)
        self._cached_plans: dict[tuple[int, int], Plan] = {}
        self._offsets = WindowOffsets(self._num_packs_of_nth_window) if self.rules else None
        self.rejected: dict[str, np.ndarray] = {}
        """Reason -> indices of the samples that are in no pack of any epoch; with rules, of the first."""
        accepted = self._first_epoch_tokens() if self.rules else self.num_tokens[self._fits()]
        if not self.rules and len(accepted) < len(self.sizes):
            self.rejected = {"too_long": np.flatnonzero(~self._fits())}
        if not len(accepted) and (self.rejected or not len(self.sizes)):
            raise UsageError(f"none of {len(self.sizes)} samples fits into a pack of {self.max_sample_tokens} tokens")
        self.budget_tokens = settings.budget_tokens or int(accepted.max(initial=1))  # of the set, not of a window
        self.global_batch_packs = settings.global_batch_packs or self._default_global_batch(int(accepted.sum()))
        if not self.rules:
            self.packs_per_window = np.array([self._num_packs(window) for window in range(len(self.windows))])
        self.hash = self._hash(fingerprint)

    @property
    def num_tokens(self) -> np.ndarray:
        """Of each whole sample."""
        return self.sizes.num_tokens

    @cached_property
    def num_packs(self) -> int:
        """Per epoch; with rules epochs differ, and this is the first."""
        if not self.rules:
            return int(self.packs_per_window.sum())
        return sum(self._num_packs_of_nth_window(nth) for nth in range(len(self.windows)))

    def __getitem__(self, epoch: int) -> Plan:
        """The plan of a whole epoch, all windows concatenated; as large as the set."""
        order = self._window_order(epoch)
        plans = [self._window_plan(int(window), epoch) for window in order]
        starts = np.cumsum([0] + [len(plan.samples) for plan in plans])
        segments = Segments.concat(plan.segments for plan in plans if plan.segments is not None) if self.rules else None
        rejected = self.rejected
        by_rule: dict[str, np.ndarray] = {}
        if self.rules:
            rejected = self._merge_windows(order, [plan.rejected for plan in plans])
            by_rule = self._merge_windows(order, [plan.by_rule for plan in plans])
        samples = np.concatenate([self.windows[w][p.samples] for w, p in zip(order, plans, strict=True)])
        return dataclasses.replace(
            plans[0],
            samples=samples,
            starts=np.concatenate([[0], *(p.starts[1:] + start for p, start in zip(plans, starts))]),
            pack_tokens=np.concatenate([plan.pack_tokens for plan in plans]),
            pack_flops=np.concatenate([plan.pack_flops for plan in plans]),
            num_samples=sum(plan.num_samples for plan in plans),
            rejected=rejected,
            segments=segments and dataclasses.replace(segments, sample=samples),
            by_rule=by_rule,
        )

    def _merge_windows(self, windows: np.ndarray, parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Reason -> sample indices in the set, from sample indices in each window."""
        reasons = dict.fromkeys(reason for part in parts for reason in part)
        return {
            reason: np.sort(np.concatenate([self.windows[w][p[reason]] for w, p in zip(windows, parts) if reason in p]))
            for reason in reasons
        }

    def pack(self, pack_index: int) -> tuple[int, np.ndarray]:
        """Epoch and sample indices of pack `pack_index` of the endless sequence of epochs."""
        epoch, segments = self.segments(pack_index)
        return epoch, segments.sample

    def segments(self, pack_index: int) -> tuple[int, Segments]:
        """Epoch and segments of pack `pack_index` of the endless sequence of epochs."""
        epoch, window, index = self._locate(pack_index)
        plan = self._window_plan(window, epoch)
        span = slice(plan.starts[index], plan.starts[index + 1])
        samples = self.windows.select(window, plan.samples[span])
        if plan.segments is None:
            return epoch, Segments.whole(self.sizes, samples)
        return epoch, dataclasses.replace(plan.segments[span], sample=samples)

    def window_offset(self, pack_index: int) -> WindowOffset | None:
        """For `seek` after a resume; None where all epochs have as many packs, so that none is needed."""
        return self._offsets.find(pack_index) if self._offsets else None

    def seek(self, offset: WindowOffset | None) -> None:
        """Count packs from there, without planning what was before; `offset` must be of plans with the same `hash`."""
        if self._offsets and offset is not None:
            self._offsets.seek((int(offset[0]), int(offset[1])))

    def _locate(self, pack_index: int) -> tuple[int, int, int]:
        """(epoch, window, index among the window's packs)."""
        if self._offsets:
            nth_of_training, first_pack = self._offsets.find(pack_index)
            epoch, nth = divmod(nth_of_training, len(self.windows))
            return epoch, int(self._window_order(epoch)[nth]), pack_index - first_pack
        epoch, index = divmod(pack_index, self.num_packs)
        order = self._window_order(epoch)
        edges = np.cumsum(self.packs_per_window[order])
        nth = int(np.searchsorted(edges, index, side="right"))
        window = int(order[nth])
        return epoch, window, index - int(edges[nth] - self.packs_per_window[window])

    def _window_order(self, epoch: int) -> np.ndarray:
        return random_permutation(len(self.windows), self.settings.seed, epoch, "windows")

    def _num_packs_of_nth_window(self, nth_of_training: int) -> int:
        epoch, nth = divmod(nth_of_training, len(self.windows))
        return self._window_plan(int(self._window_order(epoch)[nth]), epoch).num_packs

    def _window_plan(self, window: int, epoch: int) -> Plan:
        plan = self._cached_plans.get((window, epoch))
        if plan is None:
            plan = self._plan_segments(window, epoch) if self.rules else self._plan_samples(window, epoch)
            self._cache_plan(window, epoch, plan)
        return plan

    def _cache_plan(self, window: int, epoch: int, plan: Plan) -> None:
        """Prefetching can straddle two windows: keep two plans."""
        self._cached_plans = dict(list(self._cached_plans.items())[-1:]) | {(window, epoch): plan}

    def _default_global_batch(self, sum_tokens: int) -> int:
        """By the packs of one window, since each window is rounded up separately."""
        num_windows = len(self.windows)
        if sum_tokens >= num_windows * self.settings.capacity * 16 * MAX_GLOBAL_BATCH_PACKS:
            return MAX_GLOBAL_BATCH_PACKS
        plan = self._plan_segments if self.rules else self._plan_samples
        num_packs = sum(plan(window, 0, num_ranks=1).num_packs for window in range(num_windows))
        return default_global_batch_packs(num_packs // num_windows)

    # --- without rules: every sample once and whole, all epochs have as many packs as the first ---------------------------

    def _fits(self) -> np.ndarray:
        return self.num_tokens <= self.max_sample_tokens

    def _num_packs(self, window: int) -> int:
        plan = self._plan(self.num_tokens[self.windows[window]], 0)
        if plan.num_repeated_packs:  # an endless sequence needs no repeats: the next epoch fills the step
            return plan.num_packs - plan.num_repeated_packs
        self._cache_plan(window, 0, plan)
        return plan.num_packs

    def _plan_samples(self, window: int, epoch: int, *, num_ranks: int | None = None) -> Plan:
        num_packs = None if num_ranks else int(self.packs_per_window[window])
        return self._plan(self.num_tokens[self.windows[window]], epoch, num_ranks=num_ranks, num_packs=num_packs)

    # --- with rules: every epoch has its own segments, and as many packs as they need --------------------------------------

    def _first_epoch_tokens(self) -> np.ndarray:
        """Tokens of all segments of the first epoch. Fills `rejected`."""
        self.rules.check(self.sizes)
        tokens, too_long = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for window in range(len(self.windows)):
            sampled = self._sample_segments(window, 0)
            tokens.append(sampled.segments.num_tokens)
            too_long.append(self.windows[window][sampled.too_long])
        if sum(map(len, too_long)):
            self.rejected = {"too_long": np.sort(np.concatenate(too_long))}
        return np.concatenate(tokens)

    def _sample_segments(self, window: int, epoch: int) -> EpochSegments:
        nth = int(np.flatnonzero(self._window_order(epoch) == window)[0])
        return self.rules.sample_segments(
            self.sizes,
            self.windows[window],
            max_tokens=self.max_sample_tokens,
            seed=self.settings.seed,
            epoch=epoch,
            position_epochs=epoch + nth / len(self.windows),
        )

    def _plan_segments(self, window: int, epoch: int, *, num_ranks: int | None = None) -> Plan:
        segments, too_long, by_rule = self._sample_segments(window, epoch)
        plan = self._plan(segments.num_tokens, epoch, num_ranks=num_ranks, equal_epochs=False)
        if plan.num_repeated_packs:
            num_packs = plan.num_packs - plan.num_repeated_packs
            plan = self._plan(segments.num_tokens, epoch, num_ranks=num_ranks, num_packs=num_packs)
        segments = segments[plan.samples]
        return dataclasses.replace(
            plan,
            samples=segments.sample,
            num_samples=len(np.unique(segments.sample)),
            rejected={"too_long": too_long} if len(too_long) else {},
            segments=segments,
            by_rule=by_rule,
        )

    # --- both ------------------------------------------------------------------------------------------------------------

    def _plan(
        self,
        num_tokens: np.ndarray,
        epoch: int,
        *,
        num_ranks: int | None = None,
        num_packs: int | None = None,
        equal_epochs: bool = True,
    ) -> Plan:
        num_ranks = num_ranks or self.global_batch_packs
        if not (num_tokens <= self.max_sample_tokens).any():
            return empty_plan(self.settings, num_ranks=num_ranks, epoch=epoch, num_too_long=len(num_tokens))
        budget_tokens = self.budget_tokens
        if not equal_epochs and not self.settings.budget_tokens:  # a later epoch may have a costlier segment
            budget_tokens = max(budget_tokens, int(num_tokens.max()))
        settings = dataclasses.replace(self.settings, budget_tokens=budget_tokens)
        return plan_epoch(
            num_tokens, settings, num_ranks=num_ranks, epoch=epoch, num_packs=num_packs, equal_epochs=equal_epochs
        )

    def _hash(self, fingerprint: str) -> str:
        digest = hashlib.sha256(recipe_hash([dataclasses.asdict(self.settings), fingerprint]).encode())
        digest.update(self.num_tokens.astype("<i8").tobytes())
        if self.rules:
            digest.update(self.sizes.keys.astype("<u8").tobytes())
            if self.sizes.num_frames is not None:
                digest.update(self.sizes.num_frames.astype("<i8").tobytes())
            if self.sizes.buckets is not None:
                digest.update("\n".join(map(str, self.sizes.buckets)).encode())
        return digest.hexdigest()[:16]


MAX_EMPTY_WINDOWS = 1000
WindowOffset = tuple[int, int]
"""(number of a window, counted through all epochs from the start of training; its first pack)."""


class WindowOffsets:
    """Offsets of (epoch, window) blocks in the global pack sequence when epochs differ in length."""

    def __init__(self, num_packs: Callable[[int], int]) -> None:
        """
        Args:
            num_packs: of a window, by its number counted through all epochs.
        """
        self._num_packs = num_packs
        self.seek((0, 0))

    def seek(self, offset: WindowOffset) -> None:
        """Count from there; to find an earlier pack, counting starts again at the beginning of training."""
        self._first, first_pack = offset
        self._edges = [first_pack]  # of window _first and those after it, as far as they are known

    def find(self, pack_index: int) -> WindowOffset:
        """The window that a pack is in.

        Raises:
            UsageError: `MAX_EMPTY_WINDOWS` windows in a row have no segment.
        """
        if pack_index < self._edges[0]:
            self.seek((0, 0))
        num_empty = 0
        while self._edges[-1] <= pack_index:
            num_packs = self._num_packs(self._first + len(self._edges) - 1)
            num_empty = 0 if num_packs else num_empty + 1
            if num_empty > MAX_EMPTY_WINDOWS:
                raise UsageError("epoch after epoch has no sample: --plan.sampling-weights are 0 for all")
            self._edges.append(self._edges[-1] + num_packs)
        index = bisect_right(self._edges, pack_index) - 1
        return self._first + index, self._edges[index]
