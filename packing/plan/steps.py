"""The packing plan of one epoch: which samples share a pack, and which rank reads which pack at which step.

    plan_packs([5, 4, 3, 3], capacity=8)                      # [array([0, 2]), array([1, 3])]: lengths 5+3 and 4+3
    plan = plan_steps(num_tokens, num_ranks=8, capacity=16384, policy="best_fit")
    plan.fill, plan.rank_efficiency, plan.num_steps
    plan.packs[step * 8 + rank]                               # sample indices of one pack

The plan covers the whole data set and depends on token counts alone, not on ranks or workers at run time: no rank waits for
a pack that another one holds, no sample is lost, and the position in training is one integer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from packing.grid import layer_flops_coefficients, sample_flops
from packing.mixture.segments import Segments
from packing.plan.bin_packing import Packs, best_fit, cost_fit, first_fit, subset_sum
from packing.plan.rank_balance import LengthMix, balanced_order, concat_spans, length_mix, pack_sums, split_packs
from packing.plan.settings import PlanSettings
from recaption.errors import SampleTooLongError, UsageError
from recaption.rng import random_permutation

MAX_RESHUFFLES = 8
"""Later epochs reshuffle until they need no more packs than epoch 0; after this many tries the packs of epoch 0 are used."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One epoch: packs in reading order. Pack `step * num_ranks + rank` is what `rank` reads at `step`."""

    settings: PlanSettings
    num_ranks: int
    epoch: int
    samples: np.ndarray
    """int64: sample indices of all packs, concatenated."""
    starts: np.ndarray
    """int64 (num_packs + 1): where each pack starts in `samples`."""
    pack_tokens: np.ndarray
    """int64 (num_packs)."""
    pack_flops: np.ndarray
    """float64 (num_packs): `grid.sample_flops` summed over the pack."""
    num_samples: int
    """In the plan, without the rejected."""
    rejected: dict[str, np.ndarray]
    """Reason -> indices of the samples that are in no pack."""
    num_repeated_packs: int = 0
    """Packs at the end that are in the plan twice, where packs cannot be split into as many as the ranks need."""
    segments: Segments | None = None
    """The temporal crop of each of `samples`, in the same order; None: each sample is there once and whole."""
    by_rule: dict[str, np.ndarray] = field(default_factory=dict)
    """Effect of the rules -> indices of the samples it applied to; see `segments.EpochSegments`."""

    @cached_property
    def packs(self) -> list[np.ndarray]:
        """Sample indices of each pack."""
        return Packs(self.samples, self.starts).to_list()

    @property
    def policy(self) -> str:
        return self.settings.policy

    @property
    def capacity(self) -> int:
        return self.settings.capacity

    @property
    def num_packs(self) -> int:
        return len(self.starts) - 1

    @property
    def num_steps(self) -> int:
        return self.num_packs // self.num_ranks

    @property
    def fill(self) -> float:
        """Real tokens / (packs x capacity)."""
        return float(self.pack_tokens.sum() / (self.num_packs * self.capacity)) if self.num_packs else 0.0

    @property
    def rank_efficiency(self) -> float:
        """Mean over steps of mean FLOPs / largest FLOPs among the ranks: the fraction of time that ranks do not wait."""
        return self.rank_efficiency_at(self.num_ranks)

    def rank_efficiency_at(self, num_ranks: int) -> float:
        """`rank_efficiency` if `num_ranks` ranks read these packs; an incomplete last step is ignored."""
        num_steps = self.num_packs // num_ranks
        if num_steps == 0:
            return 0.0
        flops = self.pack_flops[: num_steps * num_ranks].reshape(num_steps, num_ranks)
        return float((flops.mean(axis=1) / flops.max(axis=1)).mean())

    def length_mix(self, num_tokens: np.ndarray) -> LengthMix:
        """How far balancing moves the lengths of a step from those of the set: steps of one length would bias gradients.

        Args:
            num_tokens: of all samples, as the plan was made from.
        """
        tokens = np.asarray(num_tokens)[self.samples] if self.segments is None else self.segments.num_tokens
        return length_mix(tokens, self.starts, num_ranks=self.num_ranks, seed=self.settings.seed, epoch=self.epoch)

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 of the packs, the capacity, the number of ranks and the epoch."""
        digest = hashlib.sha256(f"{self.capacity} {self.num_ranks} {self.epoch}".encode())
        digest.update(self.starts.astype("<i8").tobytes())
        digest.update(self.samples.astype("<i8").tobytes())
        for values in self.segments.arrays()[1:] if self.segments else ():
            digest.update(values.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """What `recaption plan --json` prints of it."""
        return {
            "num_samples": self.num_samples,
            "num_packs": self.num_packs,
            "num_steps": self.num_steps,
            "fill": self.fill,
            "rank_efficiency": self.rank_efficiency,
            "rejected": {reason: len(indices) for reason, indices in self.rejected.items()},
            "repeated_rows": self.num_repeated_packs,
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
        policy, pool, budget_tokens: see `PlanSettings`; `width` is its `cost_model_width`.
        seed: shuffle the samples first; None keeps their order.

    Returns:
        One array of sample indices per pack; every sample is in exactly one.

    Raises:
        SampleTooLongError: a sample alone exceeds `capacity`; it is named.
        UsageError: a length below 1, an unknown policy.
    """
    settings = PlanSettings(
        capacity=capacity, policy=policy, pool=pool, budget_tokens=budget_tokens, cost_model_width=width
    )
    tokens = _checked_lengths(num_tokens)
    _refuse_too_long(tokens, settings.max_sample_tokens)
    order = np.arange(len(tokens)) if seed is None else random_permutation(len(tokens), seed, 0, "samples")
    return _pack_samples(tokens, order, settings).to_list()


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
    """`plan_epoch` with its settings as keywords.

    Args:
        policy, pool, budget_tokens, seed: see `PlanSettings`; `width` is its `cost_model_width`.
        too_long: "reject" lists samples above `capacity` under `Plan.rejected["too_long"]`, "raise" raises.
        num_rows, equal_epochs: `num_packs` and `equal_epochs` of `plan_epoch`.

    Raises:
        SampleTooLongError: with too_long="raise", naming the first such sample.
        UsageError: as `plan_epoch`, or a setting is out of range.
    """
    settings = PlanSettings(
        capacity=capacity, policy=policy, pool=pool, budget_tokens=budget_tokens, seed=seed, cost_model_width=width
    )
    if too_long not in ("reject", "raise"):
        raise UsageError(f"{too_long = } must be 'reject' or 'raise'")
    if too_long == "raise":
        _refuse_too_long(_checked_lengths(num_tokens), settings.max_sample_tokens)
    return plan_epoch(
        num_tokens, settings, num_ranks=num_ranks, epoch=epoch, num_packs=num_rows, equal_epochs=equal_epochs
    )


def plan_epoch(
    num_tokens: np.ndarray | Sequence[int],
    settings: PlanSettings,
    *,
    num_ranks: int,
    epoch: int = 0,
    num_packs: int | None = None,
    equal_epochs: bool = True,
) -> Plan:
    """One epoch for `num_ranks` ranks: shuffle all samples, pack them, and order the packs so that no rank waits.

    The number of packs is the same in every epoch and divides by `num_ranks`: missing packs are made by splitting those with
    most samples in two. So every sample is read exactly once per epoch and all ranks read equally many packs. (Only where
    too few packs hold two samples or more, such as 4 samples of full length on 3 ranks, packs are read twice;
    `num_repeated_packs` counts them.) The ranks of one step get packs of about equal FLOPs.

    Args:
        num_tokens: tokens of each sample; those above `settings.max_sample_tokens` are rejected. Rules of the settings
            have been applied already (`epochs.EpochPlans`).
        num_packs: per epoch, where known from another epoch; else epoch 0 is packed to count them.
        equal_epochs: False: as many packs as this epoch needs, where each epoch has other segments.

    Raises:
        UsageError: all samples are too long, `num_packs` is too few, `num_ranks` below 1.
    """
    if num_ranks < 1:
        raise UsageError(f"num_ranks={num_ranks} must be at least 1")
    tokens = _checked_lengths(num_tokens)
    is_accepted = tokens <= settings.max_sample_tokens
    accepted, rejected = np.flatnonzero(is_accepted), np.flatnonzero(~is_accepted)
    if len(accepted) == 0:
        raise UsageError(f"none of {len(tokens)} samples fits into a pack of {settings.capacity} tokens")
    packs, num_packs = _pack_epoch(tokens, accepted, settings, num_ranks, epoch, num_packs, equal_epochs)
    starts, ends = split_packs(packs.starts, num_packs)
    num_repeated = num_packs - len(starts)
    pack_flops = pack_sums(sample_flops(tokens[packs.samples], width=settings.cost_model_width), starts)
    order = balanced_order(pack_flops, num_ranks, settings.seed, epoch)
    order = np.concatenate([order, order[np.arange(num_repeated) % len(order)]])
    samples, starts = concat_spans(packs.samples, starts[order], ends[order])
    return Plan(
        settings=settings,
        num_ranks=num_ranks,
        epoch=epoch,
        samples=samples,
        starts=starts,
        pack_tokens=np.add.reduceat(tokens[samples], starts[:-1]),
        pack_flops=pack_flops[order],
        num_samples=len(accepted),
        rejected={"too_long": rejected} if len(rejected) else {},
        num_repeated_packs=num_repeated,
    )


def empty_plan(settings: PlanSettings, *, num_ranks: int, epoch: int, num_too_long: int) -> Plan:
    """The plan of `num_too_long` samples none of which fits into a pack."""
    empty = np.zeros(0, np.int64)
    return Plan(
        settings=settings,
        num_ranks=num_ranks,
        epoch=epoch,
        samples=empty,
        starts=np.zeros(1, np.int64),
        pack_tokens=empty,
        pack_flops=empty.astype(np.float64),
        num_samples=0,
        rejected={"too_long": np.arange(num_too_long)} if num_too_long else {},
    )


def _checked_lengths(num_tokens: np.ndarray | Sequence[int]) -> np.ndarray:
    """int64. Raises UsageError where they are no whole numbers from 1."""
    tokens = np.asarray(num_tokens)
    if tokens.ndim != 1 or (len(tokens) and not np.issubdtype(tokens.dtype, np.integer)):
        raise UsageError(f"lengths must be one list of whole numbers, not {tokens.dtype} of shape {tokens.shape}")
    if len(tokens) and tokens.min() < 1:
        index = int(tokens.argmin())
        raise UsageError(f"sample {index} has {tokens[index]} tokens; every sample needs at least 1")
    return tokens.astype(np.int64)


def _refuse_too_long(tokens: np.ndarray, max_sample_tokens: int) -> None:
    too_long = np.flatnonzero(tokens > max_sample_tokens)
    if len(too_long):
        raise SampleTooLongError(
            f"sample {too_long[0]} has {tokens[too_long[0]]} tokens, a pack holds {max_sample_tokens} "
            f"({len(too_long)} of {len(tokens)} samples are too long)"
        )


def _pack_epoch(
    tokens: np.ndarray,
    accepted: np.ndarray,
    settings: PlanSettings,
    num_ranks: int,
    epoch: int,
    num_packs: int | None,
    equal_epochs: bool,
) -> tuple[Packs, int]:
    """Packs of the shuffled `accepted` samples, not more than the number of packs per epoch, and that number."""

    def pack_shuffled(of_epoch: int, attempt: int = 0) -> Packs:
        order = random_permutation(len(accepted), settings.seed, of_epoch, f"samples{attempt}")
        return _pack_samples(tokens, accepted[order], settings)

    packs = pack_shuffled(epoch)
    first_epoch = packs if epoch == 0 else None
    if num_packs is None:
        first_epoch = (first_epoch or pack_shuffled(0)) if equal_epochs else packs
        num_packs = -(-first_epoch.num_packs // num_ranks) * num_ranks
    attempt = 0
    while packs.num_packs > num_packs:
        if attempt > MAX_RESHUFFLES:
            raise UsageError(f"{num_packs} packs per epoch are too few: epoch 0 needs {packs.num_packs}")
        attempt += 1
        packs = pack_shuffled(epoch, attempt) if attempt <= MAX_RESHUFFLES else (first_epoch or pack_shuffled(0))
    return packs, num_packs


def _pack_samples(tokens: np.ndarray, order: np.ndarray, settings: PlanSettings) -> Packs:
    """Pack the samples `order`, in this order, by the policy of the settings."""
    lengths = tokens[order].tolist()
    if settings.policy == "first_fit":
        packs = first_fit(lengths, settings.capacity)
    elif settings.policy == "best_fit":
        packs = best_fit(lengths, settings.capacity, settings.pool)
    elif settings.policy == "subset_sum":
        packs = subset_sum(lengths, settings.capacity, settings.pool)
    else:
        width = settings.cost_model_width
        costliest = np.array([settings.budget_tokens or max(lengths, default=1)])
        budget = float(sample_flops(costliest, width=width)[0])
        cost = layer_flops_coefficients(width)
        packs = cost_fit(lengths, settings.capacity, settings.pool, budget=budget, cost=cost)
    return Packs(order[packs.samples], packs.starts)
