"""Overhead of decoding in a child process: the same scans in the child and in this process.

    python tests/benchmarks/recaption/bench_isolation.py FILE_OR_FOLDER... [--repeats 3]

CPU seconds of this process and of the child, interleaved file by file; the child is already running, as it is after the
first file of a job. Every file gives the same frames on both sides.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path

import numpy as np
from bench_frame_accuracy import files_in

from jobs.cluster.throughput import cpu_seconds
from recaption.decoding.messages import ScanRequest, encode_request
from recaption.decoding.worker import serve_request
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.reader import scan

REQUEST = encode_request(ScanRequest(small_px=48, detail_px=256, detail_every_seconds=0.5))


def isolated(path: Path) -> tuple[float, bytes]:
    before = cpu_seconds()
    found = scan(path)
    spent = cpu_seconds() - before
    return spent, found.small.pixels_THWC.tobytes() + found.detail.pixels_THWC.tobytes()


def in_process(path: Path) -> tuple[float, bytes]:
    """The child's own code, called directly: frames are passed as arrays, nothing is copied through a pipe."""
    before = cpu_seconds()
    blocks: dict[str, list[np.ndarray]] = {"small": [], "detail": []}

    def send(header: dict, payload: bytes | memoryview = b"") -> None:
        if header["kind"] == "frames":
            blocks[header["stream"]].append(np.frombuffer(payload, np.uint8))

    limits = dataclasses.asdict(DecodeLimits(max_memory_bytes=16 << 30))
    with open(path, "rb") as file:
        serve_request(REQUEST | {"limits": limits}, file, send)
    joined = [np.concatenate(parts).tobytes() if parts else b"" for parts in blocks.values()]
    return cpu_seconds() - before, b"".join(joined)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    files = files_in(arguments.paths)
    scan(files[0])
    totals: dict[str, list[float]] = {"isolated": [], "in process": []}
    for _ in range(arguments.repeats):
        sums = dict.fromkeys(totals, 0.0)
        for path in files:
            spent, frames = isolated(path)
            sums["isolated"] += spent
            spent, same = in_process(path)
            sums["in process"] += spent
            assert frames == same, path
        for side, seconds in sums.items():
            totals[side].append(seconds)
    medians = {side: statistics.median(values) for side, values in totals.items()}
    print(
        f"{len(files)} files, median of {arguments.repeats}: "
        + ", ".join(f"{s} {v:.2f} CPU-s" for s, v in medians.items())
    )
    print(f"isolation costs {medians['isolated'] / medians['in process'] - 1:+.1%}")


if __name__ == "__main__":
    main()
