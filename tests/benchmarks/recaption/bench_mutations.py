"""Decoding of damaged files: seeded mutations of intact files, each read with all limits.

    python tests/benchmarks/recaption/bench_mutations.py --count 500 FILE_OR_FOLDER...

Every mutated file must either fail with a reason or give the frames that `ffmpeg` decodes from the same bytes. A hang, a
crash of this process or wrong frames give exit code 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_frame_accuracy import Outcome, check, files_in, print_outcomes
from tqdm import tqdm

from recaption.video_io.frames import DecodeLimits

LIMITS = DecodeLimits(max_wall_seconds=60.0, max_memory_bytes=2 << 30)
HANG_SECONDS = 400.0
"""Longer than all timeouts of a short file together."""

Mutation = Callable[[bytearray, np.random.Generator], bytearray]


def bit_flips(payload: bytearray, rng: np.random.Generator) -> bytearray:
    for _ in range(int(rng.integers(1, 65))):
        payload[int(rng.integers(len(payload)))] ^= 1 << int(rng.integers(8))
    return payload


def truncation(payload: bytearray, rng: np.random.Generator) -> bytearray:
    return payload[: int(rng.integers(1, len(payload)))]


def header_edit(payload: bytearray, rng: np.random.Generator) -> bytearray:
    """Bytes of the first or last 4 KiB replaced: tables of mp4, headers of the others."""
    start = 0 if rng.random() < 0.5 else max(0, len(payload) - 4096)
    for _ in range(int(rng.integers(1, 17))):
        payload[start + int(rng.integers(min(4096, len(payload))))] = int(rng.integers(256))
    return payload


def _span(payload: bytearray, rng: np.random.Generator) -> tuple[int, int]:
    start = int(rng.integers(len(payload)))
    return start, min(len(payload), start + int(rng.integers(64, 8193)))


def zeroed_block(payload: bytearray, rng: np.random.Generator) -> bytearray:
    start, end = _span(payload, rng)
    payload[start:end] = bytes(end - start)
    return payload


def deleted_block(payload: bytearray, rng: np.random.Generator) -> bytearray:
    start, end = _span(payload, rng)
    del payload[start:end]
    return payload


def duplicated_block(payload: bytearray, rng: np.random.Generator) -> bytearray:
    start, end = _span(payload, rng)
    payload[start:start] = payload[start:end]
    return payload


MUTATIONS: tuple[Mutation, ...] = (bit_flips, truncation, header_edit, zeroed_block, deleted_block, duplicated_block)


def mutate(payload: bytes, index: int, seed: int) -> tuple[str, bytes]:
    """(kind, bytes) of mutation `index`: the same for the same arguments everywhere."""
    rng = np.random.default_rng([seed, index])
    mutation = MUTATIONS[index % len(MUTATIONS)]
    return mutation.__name__, bytes(mutation(bytearray(payload), rng))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-bytes", type=int, default=600_000, help="larger files are not mutated")
    arguments = parser.parse_args()
    files = [file for file in files_in(arguments.paths) if file.stat().st_size <= arguments.max_bytes]
    outcomes: dict[str, Outcome] = {}
    slowest, kinds = 0.0, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for index in tqdm(range(arguments.count), file=sys.stderr):
            source = files[index % len(files)]
            kind, payload = mutate(source.read_bytes(), index, arguments.seed)
            kinds[kind] += 1
            mutated = Path(folder) / f"mutated{source.suffix}"
            mutated.write_bytes(payload)
            started = time.perf_counter()
            outcomes[f"{index} {kind} {source.name}"] = check(mutated, LIMITS, index)
            slowest = max(slowest, time.perf_counter() - started)
    print(f"{arguments.count} mutations of {len(files)} files, seed {arguments.seed}: {dict(kinds)}")
    num_wrong = print_outcomes(outcomes)
    print(f"slowest file {slowest:.1f} s")
    return 1 if num_wrong or slowest > HANG_SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
