"""The packing plan: which samples share a pack, and which rank reads which pack at which step.

    plan_packs([5, 4, 3, 3], capacity=8)                      # [array([0, 2]), array([1, 3])]: lengths 5+3 and 4+3
    plan = plan_steps(num_tokens, num_ranks=8, capacity=16384, policy="best_fit")
    plan.fill, plan.rank_efficiency, plan.num_steps
    plan.rows[step * 8 + rank]                                # sample indices of one pack

Computed once for the whole data set from token counts alone, so nothing depends on who reads what when: no rank waits
for rows that another has, no sample is lost, and a position in training is one integer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from packing.grid import layer_cost, sample_flops
from packing.mixture.rng import shuffled
from packing.mixture.segments import Excerpts
from packing.plan.bin_packing import best_fit, cost_fit, first_fit, subset_sum
from packing.plan.rank_balance import SizeMix, balanced_order, gathered, row_sums, size_mix, split_packs
from packing.plan.settings import PlanSettings, check_policy, longest_sample
from recaption.errors import SampleTooLongError, UsageError

MAX_REPACKS = 8
"""Later epochs shuffle until they need no more rows than the first one; after this many tries its packs are used."""


class Packs(NamedTuple):
    """Packs laid end to end: pack i is `samples[starts[i] : starts[i + 1]]`."""

    samples: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:  # type: ignore[override]
        return len(self.starts) - 1

    def split(self) -> list[np.ndarray]:
        edges = self.starts.tolist()
        return [self.samples[start:end] for start, end in pairwise(edges)]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One epoch: rows in reading order. Row `step * num_ranks + rank` is what `rank` reads at `step`."""

    samples: np.ndarray
    """int64: sample indices of all rows laid end to end."""
    starts: np.ndarray
    """int64 (num_rows + 1): where each row starts in `samples`."""
    row_tokens: np.ndarray
    """int64 (num_rows)."""
    row_flops: np.ndarray
    """float64 (num_rows): `grid.sample_flops` summed over the row."""
    num_samples: int
    """Planned, without the rejected."""
    num_ranks: int
    capacity: int
    policy: str
    pool: int
    seed: int
    epoch: int
    rejected: dict[str, np.ndarray]
    """Reason -> indices of the samples that are in no row."""
    num_repeated_rows: int
    """Rows at the end that are in the plan twice, where packs cannot be split into as many rows as the ranks need."""
    excerpts: Excerpts | None = None
    """What is shown of each of `samples`, in the same order; None: each sample is there once and whole."""
    by_rule: dict[str, np.ndarray] = field(default_factory=dict)
    """What rules did -> indices of the samples they did it to; see `excerpts.Drawn`."""

    @cached_property
    def rows(self) -> list[np.ndarray]:
        return Packs(self.samples, self.starts).split()

    @property
    def num_packs(self) -> int:
        return len(self.starts) - 1

    @property
    def num_steps(self) -> int:
        return self.num_packs // self.num_ranks

    @property
    def fill(self) -> float:
        """Real tokens / (rows x capacity)."""
        return float(self.row_tokens.sum() / (self.num_packs * self.capacity)) if self.num_packs else 0.0

    @property
    def rank_efficiency(self) -> float:
        """Mean over steps of mean FLOPs / largest FLOPs among the ranks: the share of time no rank waits."""
        return self.rank_efficiency_at(self.num_ranks)

    def rank_efficiency_at(self, num_ranks: int) -> float:
        """`rank_efficiency` if `num_ranks` ranks read these rows; an incomplete last step is left aside."""
        num_steps = self.num_packs // num_ranks
        if num_steps == 0:
            return 0.0
        flops = self.row_flops[: num_steps * num_ranks].reshape(num_steps, num_ranks)
        return float((flops.mean(axis=1) / flops.max(axis=1)).mean())

    def size_mix(self, num_tokens: np.ndarray) -> SizeMix:
        """What balancing does to the mix of sizes inside a step: steps of one size only would bias each gradient.

        Args:
            num_tokens: of all samples, as the plan was made from.
        """
        tokens = np.asarray(num_tokens)[self.samples] if self.excerpts is None else self.excerpts.num_tokens
        return size_mix(tokens, self.starts, num_ranks=self.num_ranks, seed=self.seed, epoch=self.epoch)

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 of the rows and what they were made with."""
        digest = hashlib.sha256(f"{self.capacity} {self.num_ranks} {self.epoch}".encode())
        digest.update(self.starts.astype("<i8").tobytes())
        digest.update(self.samples.astype("<i8").tobytes())
        for values in self.excerpts.arrays()[1:] if self.excerpts else ():
            digest.update(values.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """What `recaption plan --json` prints, but for the time it took."""
        return {
            "num_samples": self.num_samples,
            "num_packs": self.num_packs,
            "num_steps": self.num_steps,
            "fill": self.fill,
            "rank_efficiency": self.rank_efficiency,
            "rejected": {reason: len(indices) for reason, indices in self.rejected.items()},
            "repeated_rows": self.num_repeated_rows,
            "policy": self.policy,
            "num_ranks": self.num_ranks,
            "capacity": self.capacity,
            "hash": self.hash,
        }


def plan_packs(
    num_tokens: np.ndarray | Sequence[int],
    *,
    capacity: int,
    policy: str = "first_fit",
    pool: int = 64,
    budget_tokens: int = 0,
    width: int = 1152,
    seed: int | None = None,
) -> list[np.ndarray]:
    """Choose which samples share a pack so that little of `capacity` is padding.

    Lengths [5, 4, 3, 3] with capacity 8 give packs of 5+3 and 4+3 tokens: fill 1.0 and 0.875.

    Args:
        num_tokens: tokens of each sample.
        budget_tokens, width: what a pack may cost under the policy `flops`, see `PlanSettings`.
        seed: shuffle the samples first; None takes them as they come.

    Returns:
        One array of sample indices per pack; every sample is in exactly one.

    Raises:
        SampleTooLongError: a sample alone exceeds `capacity`; it is named.
        UsageError: a length below 1, an unknown policy.
    """
    check_policy(policy, capacity, pool)
    tokens = _checked_lengths(num_tokens)
    _reject(tokens, longest_sample(policy, capacity, budget_tokens), "raise")
    order = np.arange(len(tokens)) if seed is None else shuffled(len(tokens), seed, 0, "samples")
    return _packs(tokens, order, capacity, policy, pool, budget_tokens, width).split()


def plan_steps(
    num_tokens: np.ndarray | Sequence[int],
    *,
    num_ranks: int,
    capacity: int,
    policy: str = "first_fit",
    pool: int = 64,
    budget_tokens: int = 0,
    seed: int = 0,
    epoch: int = 0,
    width: int = 1152,
    too_long: str = "reject",
    num_rows: int | None = None,
    equal_epochs: bool = True,
) -> Plan:
    """One epoch for `num_ranks` ranks: shuffle all samples, pack them, and lay the packs out so that nobody waits.

    The number of rows is the same in every epoch and divides by `num_ranks`: the rows that lack for it are made by
    splitting the packs with most samples in two. So every sample is read exactly once per epoch and all ranks read
    equally many rows. (Only where too few packs hold two samples or more, such as 4 samples of full length on 3 ranks,
    rows are read twice; `num_repeated_rows` says how many.)
    The ranks of one step get packs of about equal FLOPs.

    Args:
        budget_tokens: what a pack may cost under the policy `flops`, see `PlanSettings`.
        width: model width of the cost model (attention weighs less in wide models).
        too_long: "reject" lists samples above `capacity` under `Plan.rejected["too_long"]`, "raise" raises.
        num_rows: rows per epoch where the caller knows them from another epoch; else they are planned from epoch 0.
        equal_epochs: False: as many rows as this epoch's own packs need, where other epochs have other samples.

    Raises:
        SampleTooLongError: with too_long="raise", naming the first such sample.
        UsageError: nothing is left to plan, or a setting is out of range.
    """
    check_policy(policy, capacity, pool)
    if num_ranks < 1:
        raise UsageError(f"num_ranks={num_ranks} must be at least 1")
    tokens = _checked_lengths(num_tokens)
    rejected = _reject(tokens, longest_sample(policy, capacity, budget_tokens), too_long)
    kept = np.setdiff1d(np.arange(len(tokens)), rejected, assume_unique=True)
    if len(kept) == 0:
        raise UsageError(f"none of {len(tokens)} samples fits into a pack of {capacity} tokens")

    def pack(of_epoch: int, attempt: int = 0) -> Packs:
        order = kept[shuffled(len(kept), seed, of_epoch, f"samples{attempt}")]
        return _packs(tokens, order, capacity, policy, pool, budget_tokens, width)

    packs = pack(epoch)
    first_epoch = packs if epoch == 0 else None
    if num_rows is None:
        first_epoch = (first_epoch or pack(0)) if equal_epochs else packs
        num_rows = -(-len(first_epoch) // num_ranks) * num_ranks
    attempt = 0
    while len(packs) > num_rows:
        if attempt > MAX_REPACKS:
            raise UsageError(f"{num_rows = } is too few: epoch 0 needs {len(packs)}")
        attempt += 1
        packs = pack(epoch, attempt) if attempt <= MAX_REPACKS else (first_epoch or pack(0))
    starts, ends = split_packs(packs.starts, num_rows)
    num_repeated = num_rows - len(starts)
    row_flops = row_sums(sample_flops(tokens[packs.samples], width=width), starts)
    order = balanced_order(row_flops, num_ranks, seed, epoch)
    order = np.concatenate([order, order[np.arange(num_repeated) % len(order)]])
    samples, row_starts = gathered(packs.samples, starts[order], ends[order])
    return Plan(
        samples=samples,
        starts=row_starts,
        row_tokens=np.add.reduceat(tokens[samples], row_starts[:-1]),
        row_flops=row_flops[order],
        num_samples=len(kept),
        num_ranks=num_ranks,
        capacity=capacity,
        policy=policy,
        pool=pool,
        seed=seed,
        epoch=epoch,
        rejected={"too_long": rejected} if len(rejected) else {},
        num_repeated_rows=num_repeated,
    )


# --- parts of a plan ------------------------------------------------------------------------------------------------


def _checked_lengths(num_tokens: np.ndarray | Sequence[int]) -> np.ndarray:
    tokens = np.asarray(num_tokens)
    if tokens.ndim != 1 or (len(tokens) and not np.issubdtype(tokens.dtype, np.integer)):
        raise UsageError(f"lengths must be one row of whole numbers, not {tokens.dtype} of shape {tokens.shape}")
    if len(tokens) and tokens.min() < 1:
        index = int(tokens.argmin())
        raise UsageError(f"sample {index} has {tokens[index]} tokens; every sample needs at least 1")
    return tokens.astype(np.int64)


def _reject(tokens: np.ndarray, capacity: int, too_long: str) -> np.ndarray:
    if too_long not in ("reject", "raise"):
        raise UsageError(f"{too_long = } must be 'reject' or 'raise'")
    rejected = np.flatnonzero(tokens > capacity)
    if len(rejected) and too_long == "raise":
        raise SampleTooLongError(
            f"sample {rejected[0]} has {tokens[rejected[0]]} tokens, a pack holds {capacity} "
            f"({len(rejected)} of {len(tokens)} samples are too long)"
        )
    return rejected


def empty_plan(settings: PlanSettings, *, num_ranks: int, epoch: int, num_too_long: int) -> Plan:
    """Of samples none of which fits."""
    none = np.zeros(0, np.int64)
    return Plan(
        samples=none,
        starts=np.zeros(1, np.int64),
        row_tokens=none,
        row_flops=none.astype(np.float64),
        num_samples=0,
        num_ranks=num_ranks,
        capacity=settings.capacity,
        policy=settings.policy,
        pool=settings.pool,
        seed=settings.seed,
        epoch=epoch,
        rejected={"too_long": np.arange(num_too_long)} if num_too_long else {},
        num_repeated_rows=0,
    )


def _packs(
    tokens: np.ndarray, order: np.ndarray, capacity: int, policy: str, pool: int, budget_tokens: int, width: int
) -> Packs:
    lengths = tokens[order].tolist()
    if policy == "first_fit":
        places, starts = first_fit(lengths, capacity)
    elif policy == "best_fit":
        places, starts = best_fit(lengths, capacity, pool)
    elif policy == "subset_sum":
        places, starts = subset_sum(lengths, capacity, pool)
    else:
        dearest = np.array([budget_tokens or max(lengths, default=1)])
        budget = float(sample_flops(dearest, width=width)[0])
        places, starts = cost_fit(lengths, capacity, pool, budget=budget, cost=layer_cost(width))
    return Packs(order[places], starts)
