"""Padding, CPU seconds, rank efficiency and length mix of the packing policies, against those of other trainers.

    python tests/benchmarks/packing/bench_plan.py                   # 100,000 samples; 1,000,000 for 1,024 ranks
    python tests/benchmarks/packing/bench_plan.py --large 10000000  # time and memory of planning a large set

Lengths: short side 144/240/360/480 (fractions .15/.25/.30/.30), aspect 16:9 .6, 9:16 .15, 4:3 .1, 1:1 .1, 21:9 .05, both
sides +-12 %, 30 % images, else 2 to 9 latent frames; tokens = frames x H/16 x W/16; those above 16,384 are left out.

Fill: real tokens / (packs x capacity). Rank efficiency: mean over steps of mean / largest FLOPs among the ranks, of a
layer of width 1152. Length mix: distance of a step's sample lengths from those of the set (rank_balance.LengthMix).
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from packing_baselines import buckets, decreasing_flush, first_fit_flush, fixed_count, next_fit

from packing.grid import sample_flops
from packing.mixture.sample_sizes import SampleSizes
from packing.plan.bin_packing import best_fit, first_fit, subset_sum
from packing.plan.epochs import EpochPlans
from packing.plan.settings import PlanSettings
from packing.plan.steps import Plan, plan_steps

CAPACITY = 16_384
WIDTH = 1152


def random_sizes(num_samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and latent frames of each sample."""
    rng = np.random.default_rng(seed)
    short = rng.choice([144, 240, 360, 480], num_samples, p=[0.15, 0.25, 0.30, 0.30])
    aspect = rng.choice([16 / 9, 9 / 16, 4 / 3, 1.0, 21 / 9], num_samples, p=[0.6, 0.15, 0.1, 0.1, 0.05])
    width = np.where(aspect >= 1, short * aspect, short) * rng.uniform(0.88, 1.12, num_samples)
    height = np.where(aspect >= 1, short, short / aspect) * rng.uniform(0.88, 1.12, num_samples)
    frames = np.where(rng.random(num_samples) < 0.3, 1, rng.integers(2, 10, num_samples))
    tokens = frames * np.maximum(1, height // 16).astype(int) * np.maximum(1, width // 16).astype(int)
    return tokens[tokens <= CAPACITY], frames[tokens <= CAPACITY]


def random_lengths(num_samples: int, seed: int = 0) -> np.ndarray:
    return random_sizes(num_samples, seed)[0]


def padding(tokens: np.ndarray) -> None:
    """Packs of all policies over the same lengths in the same order; the median of three runs."""
    lengths = tokens.tolist()
    sides: dict[str, Callable[[], int]] = {
        "next-fit": lambda: len(next_fit(lengths, CAPACITY)),
        "first fit, 8 bins, flush (Grain)": lambda: len(first_fit_flush(lengths, CAPACITY)),
        "decreasing, buffer 64, flush (Energon)": lambda: len(decreasing_flush(lengths, CAPACITY)),
        "first_fit": lambda: len(first_fit(lengths, CAPACITY)[1]) - 1,
        **{
            f"best_fit, pool {pool}": lambda pool=pool: len(best_fit(lengths, CAPACITY, pool)[1]) - 1
            for pool in (16, 64)
        },
        "subset_sum, pool 64": lambda: len(subset_sum(lengths, CAPACITY, 64)[1]) - 1,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    num_packs: dict[str, int] = {}
    for _ in range(3):
        for name, side in sides.items():
            started = time.process_time()
            num_packs[name] = side()
            seconds[name].append(time.process_time() - started)
    print(f"{'':<40}padding   CPU s")
    for name in sides:
        padding_fraction = 1 - tokens.sum() / (num_packs[name] * CAPACITY)
        print(f"{name:<40}{padding_fraction:8.3%}{sorted(seconds[name])[1]:8.3f}")


def efficiency(packs: Sequence[Sequence[int]], tokens: np.ndarray, num_ranks: int) -> float:
    flops = sample_flops(tokens, width=WIDTH)
    pack_flops = np.array([flops[list(pack)].sum() for pack in packs])
    pack_flops = pack_flops[np.random.default_rng(0).permutation(len(pack_flops))]
    steps = pack_flops[: len(pack_flops) // num_ranks * num_ranks].reshape(-1, num_ranks)
    return float((steps.mean(axis=1) / steps.max(axis=1)).mean()) if len(steps) else float("nan")


def ranks(sets: dict[int, np.ndarray]) -> None:
    print(f"\n{'':<40}" + "".join(f"{n:>8} ranks{'fill':>7}{'length mix':>11}(chance)" for n in sets))
    columns: dict[str, list[str]] = {}
    for num_ranks, tokens in sets.items():
        lengths = tokens.tolist()
        samples, starts = first_fit(lengths, CAPACITY)
        others = {
            "first_fit, random order": np.split(samples, starts[1:-1]),
            "fixed count of 5": fixed_count(len(lengths), 5),
            "buckets (Open-Sora)": buckets(lengths, CAPACITY),
        }
        for name, packs in others.items():
            fill = sum(int(tokens[list(pack)].sum()) for pack in packs) / (len(packs) * CAPACITY)
            fill_text = f"{fill:7.3f}" if name != "fixed count of 5" else f"{'-':>7}"
            columns.setdefault(name, []).append(f"{efficiency(packs, tokens, num_ranks):14.3f}{fill_text}{'':>19}")
        for policy, capacity in (("first_fit", CAPACITY), ("best_fit", CAPACITY), ("flops", 2 * CAPACITY)):
            plan = plan_steps(tokens, num_ranks=num_ranks, capacity=capacity, policy=policy, pool=128)
            mix = plan.length_mix(tokens)
            columns.setdefault(f"{policy}, capacity {capacity}", []).append(
                f"{plan.rank_efficiency:14.3f}{plan.fill:7.3f}{mix.per_step:10.3f}{mix.random_baseline:9.3f}"
            )
    for name, values in columns.items():
        print(f"{name:<40}" + "".join(values))


RULES: dict[str, dict[str, Any]] = {
    "every sample whole": {},
    "split": {"too_long": "split"},
    "temporal crops of 4 frames": {"max_latent_frames": ("4",)},
    "weights and curriculum": {"sampling_weights": ("images=2", "videos=0.7", "tokens>8000=0..1@epoch<4")},
    "tokens dropped, Beta(4, 2)": {"token_keep_rate": ("beta(4,2)",)},
}
RULES["all four"] = {name: value for rules in RULES.values() for name, value in rules.items()}


def settings_with(rules: dict[str, Any], capacity: int) -> PlanSettings:
    return PlanSettings(capacity=capacity, policy="best_fit", **rules)


def rules(num_samples: int) -> None:
    """Time, fill and balance of epochs with mixture rules; at a capacity for which some samples are too long."""
    tokens, frames = random_sizes(num_samples)
    capacity = CAPACITY // 2
    seconds: dict[str, list[float]] = {name: [] for name in RULES}
    plans: dict[str, tuple[Plan, Plan]] = {}
    for _ in range(3):
        for name, chosen in RULES.items():
            started = time.process_time()
            plans_of_rules = EpochPlans(SampleSizes(tokens, num_frames=frames), settings_with(chosen, capacity))
            first, second = plans_of_rules[0], plans_of_rules[1]
            seconds[name].append((time.process_time() - started) / 2)
            plans[name] = first, second
    print(
        f"\n{'capacity ' + str(capacity):<32}CPU s/epoch  rejected  segments of 2 epochs        tokens    fill  64 ranks"
    )
    for name, (first, second) in plans.items():
        print(
            f"{name:<32}{sorted(seconds[name])[1]:11.3f}{sum(map(len, first.rejected.values())):10,}"
            f"{len(first.samples):12,}{len(second.samples):10,}{first.pack_tokens.sum():14,}"
            f"{first.fill:8.3f}{first.rank_efficiency_at(64):10.3f}"
        )


def large(num_samples: int) -> None:
    tokens, frames = random_sizes(num_samples)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    plans = EpochPlans(tokens, settings_with({}, CAPACITY))
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{len(tokens):,} samples in {plans.num_packs:,} packs of {len(plans.windows)} windows: {seconds:.1f} CPU-s, ",
        end="",
    )
    print(f"peak {peak / 1e6:.2f} GB, {before / 1e6:.2f} GB of it before planning")
    started = time.process_time()
    plans = EpochPlans(SampleSizes(tokens, num_frames=frames), settings_with(RULES["all four"], CAPACITY))
    num_packs = plans.num_packs
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"all rules: {num_packs:,} packs in the first epoch, {seconds:.1f} CPU-s, peak {peak / 1e6:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-samples", type=int, default=100_000)
    parser.add_argument("--large", type=int, help="only plan a set of so many samples")
    arguments = parser.parse_args()
    if arguments.large:
        large(arguments.large)
        return
    tokens = random_lengths(arguments.num_samples)
    print(f"{len(tokens)} samples, mean {tokens.mean():.0f}, median {np.median(tokens):.0f}, capacity {CAPACITY}\n")
    padding(tokens)
    ranks({8: tokens, 64: tokens, 1024: random_lengths(10 * arguments.num_samples)})
    rules(arguments.num_samples)


if __name__ == "__main__":
    main()
