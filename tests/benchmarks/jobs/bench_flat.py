"""CPU time of `prepare` per input as the number of inputs grows, on tiny distinct videos.

    python tests/benchmarks/jobs/bench_flat.py 100 1000 10000

Without the duplicate search: ten thousand scenes on eight backgrounds are near duplicates of each other, and it is
measured by bench_duplicates.py. A run has fixed costs (Python, Ray: about 15 CPU-s), so the cost per input is that of the
additional inputs of each size over the size before. Driver: CPU seconds per input and peak resident size of the command.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from process_tree import cpu_seconds_of

from recaption.scenes.renderer import SIMPLE, render


def write_videos(folder: Path, count: int) -> None:
    """Rendered scenes of 17 frames, 64x64."""
    folder.mkdir()
    for seed in range(count):
        scene = render(seed, num_frames=17, height_px=64, width_px=64, fps=8, **SIMPLE)
        scene.write(folder / f"{seed:06d}.mp4")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", type=int, default=[100, 1000])
    parser.add_argument("--num-workers", type=int, default=2)
    arguments = parser.parse_args()
    print("   inputs   CPU-s all   each more   CPU-s driver   each more   driver MB   wall s")
    before = None
    for size in sorted(arguments.sizes):
        with tempfile.TemporaryDirectory() as folder:
            write_videos(Path(folder) / "videos", size)
            command = [
                sys.executable,
                "-m",
                "jobs",
                "prepare",
                "--videos",
                f"{folder}/videos",
                "--out",
                f"{folder}/run",
                "--prepare.duplicates.no-perceptual",
            ]
            by_kind, wall, peak_bytes = cpu_seconds_of(
                [*command, "--num-workers", str(arguments.num_workers), "--no-progress"]
            )
        total, driver = sum(by_kind.values()), by_kind["driver"]
        each = [""] * 2
        if before is not None:
            each = [
                f"{(now - then) / (size - before[0]) * 1000:.1f} ms" for now, then in zip((total, driver), before[1:])
            ]
        row = f"{size:9,} {total:11.1f} {each[0]:>11} {driver:14.1f} {each[1]:>11} {peak_bytes / 1e6:11.0f} {wall:8.0f}"
        print(row, flush=True)
        before = (size, total, driver)


if __name__ == "__main__":
    main()
