"""Padding and CPU seconds of the packing policies beside next-fit, and rank efficiency, on one synthetic length set.

    python tests/benchmarks/bench_plan.py [num_samples]

Lengths: short side 144/240/360/480 (shares .15/.25/.30/.30), aspect 16:9 .6, 9:16 .15, 4:3 .1, 1:1 .1, 21:9 .05, both
sides +-12 %, 30 % images, else 2 to 9 latent frames; tokens = frames x H/16 x W/16; those above 16,384 are left out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from packing.plan import plan_packs, plan_steps

CAPACITY = 16_384


def draw_lengths(num_samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    short = rng.choice([144, 240, 360, 480], num_samples, p=[0.15, 0.25, 0.30, 0.30])
    aspect = rng.choice([16 / 9, 9 / 16, 4 / 3, 1.0, 21 / 9], num_samples, p=[0.6, 0.15, 0.1, 0.1, 0.05])
    width = np.where(aspect >= 1, short * aspect, short) * rng.uniform(0.88, 1.12, num_samples)
    height = np.where(aspect >= 1, short, short / aspect) * rng.uniform(0.88, 1.12, num_samples)
    frames = np.where(rng.random(num_samples) < 0.3, 1, rng.integers(2, 10, num_samples))
    tokens = frames * np.maximum(1, height // 16).astype(int) * np.maximum(1, width // 16).astype(int)
    return tokens[tokens <= CAPACITY]


def next_fit(num_tokens: np.ndarray) -> int:
    """The baseline: close the row at the first sample that does not fit. Returns the number of rows."""
    rows, room = 0, 0
    for length in num_tokens.tolist():
        if length > room:
            rows, room = rows + 1, CAPACITY
        room -= length
    return rows


def report(name: str, count_rows: Callable[[], int], total_tokens: int) -> None:
    seconds = []
    for _ in range(3):
        start = time.process_time()
        rows = count_rows()
        seconds.append(time.process_time() - start)
    padding = 1 - total_tokens / (rows * CAPACITY)
    print(f"{name:28s} padding {100 * padding:7.3f} %   CPU {sorted(seconds)[1]:.3f} s")


def main() -> None:
    tokens = draw_lengths(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
    total = int(tokens.sum())
    print(f"{len(tokens)} samples, mean {tokens.mean():.0f}, median {np.median(tokens):.0f}, capacity {CAPACITY}")
    report("next-fit", lambda: next_fit(tokens), total)
    report("first_fit", lambda: len(plan_packs(tokens, capacity=CAPACITY)), total)
    for pool in (16, 64, 256):
        report(
            f"best_fit, pool {pool}",
            lambda pool=pool: len(plan_packs(tokens, capacity=CAPACITY, policy="best_fit", pool=pool)),
            total,
        )
    for num_ranks in (8, 64, 1024):
        start = time.process_time()
        plan = plan_steps(tokens, num_ranks=num_ranks, capacity=CAPACITY, policy="best_fit")
        print(
            f"plan_steps, {num_ranks:4d} ranks: fill {plan.fill:.4f}, rank efficiency {plan.rank_efficiency:.4f}, "
            f"{plan.num_steps} steps, CPU {time.process_time() - start:.3f} s"
        )


if __name__ == "__main__":
    main()
