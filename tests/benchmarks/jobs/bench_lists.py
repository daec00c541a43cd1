"""Time and memory of the driver for a list of many rows: read, group, plan, and the parts that wait.

    python tests/benchmarks/jobs/bench_lists.py --rows 1000000 --format csv [--spans 4] [--shuffled]

Prints seconds and the largest resident size of each step: the list is written by another process, nothing is decoded. The
second `plan` is that of the same list again, which changes nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from pathlib import Path


def write(path: str, num_rows: int, spans_per_video: int, shuffled: bool) -> None:
    numbers = list(range(num_rows))
    if shuffled:
        random.Random(0).shuffle(numbers)
    with open(path, "w", newline="") as file:
        rows = (
            {
                "video": f"videos/{i // spans_per_video:09d}.mp4",
                "start": (i % spans_per_video) * 4.0,
                "end": (i % spans_per_video) * 4.0 + 3.5,
                "caption": f"A person in a red coat number {i} walks along a wide street past parked cars and trees.",
                "aesthetic score": 4.5 + i % 7 / 10,
                "license": "CC BY 4.0",
                "url": f"https://example.org/watch/{i // spans_per_video}",
            }
            for i in numbers
        )
        if path.endswith(".jsonl"):
            file.writelines(json.dumps(row) + "\n" for row in rows)
            return
        writer = None
        for row in rows:
            writer = writer or csv.DictWriter(file, row)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)


def peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def report(name: str, started: tuple[float, float]) -> None:
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    print(f"{name:28} {wall:6.1f} s wall, {cpu:6.1f} s CPU {peak_mb():7.0f} MB", flush=True)


def measure(path: str, out: str, part_size: int) -> None:
    from jobs.prepare.prepare import _open_parts
    from jobs.recipe.input_plan import plan_inputs
    from jobs.recipe.presets import load_recipe
    from jobs.recipe.settings import stage_hashes
    from recaption.inputs.paths import find_inputs
    from recaption.run_folder import RunFolder

    recipe, run = load_recipe("quickstart"), RunFolder(out)
    print(f"after imports {peak_mb():.0f} MB")
    for attempt in ("", " again"):
        started = time.perf_counter(), time.process_time()
        with find_inputs([path]) as found:
            report("read the list" + attempt, started)
            started = time.perf_counter(), time.process_time()
            plan_inputs(run, found, part_size)
        report("plan" + attempt, started)
    started = time.perf_counter(), time.process_time()
    parts, num_parts, _ = _open_parts(run, recipe, stage_hashes(recipe)["prepare"], [], None)
    report(f"{len(parts)} of {num_parts} parts wait", started)
    size = sum(f.stat().st_size for f in Path(out).rglob("*") if f.is_file())
    print(f"run folder {size / 1e6:.0f} MB in {sum(1 for _ in Path(out).rglob('*.parquet'))} files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--spans", type=int, default=4, help="rows of one video")
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv")
    parser.add_argument("--shuffled", action="store_true", help="rows of a video are not neighbours")
    parser.add_argument("--part-size", type=int, default=16)
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="bench-lists-")
    context = multiprocessing.get_context("spawn")
    try:
        path = os.path.join(folder, f"list.{args.format}")
        writer = context.Process(target=write, args=(path, args.rows, args.spans, args.shuffled))
        writer.start()
        writer.join()
        print(f"{args.rows:,} rows, {os.path.getsize(path) / 1e6:.0f} MB, {args.spans} of each video")
        reader = context.Process(target=measure, args=(path, os.path.join(folder, "run"), args.part_size))
        reader.start()
        reader.join()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
