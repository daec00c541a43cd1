"""Overhead of Ray: CPU time of `prepare` on Ray against a plain process pool with the same number of workers.

    python tests/benchmarks/jobs/bench_ray.py --num-clips 220                       # rendered scenes
    python tests/benchmarks/jobs/bench_ray.py --num-clips 220 --videos a.mp4 b.mp4

Sums the CPU seconds of all processes of each side: workers, decoders, driver, and Ray's own (raylet, gcs, agents). The
requirement is a ratio of at most 1.10 beyond 200 clips.
"""

import argparse
import multiprocessing
import sys
import tempfile
from pathlib import Path

from process_tree import cpu_seconds_of

from recaption.scenes.renderer import SIMPLE, render


def plain(folder: str, out: str, num_workers: int, part_size: int) -> None:
    """`prepare` without Ray."""
    from jobs.recipe.input_plan import plan_inputs
    from jobs.recipe.inputs_table import iter_parts
    from jobs.recipe.presets import load_recipe
    from jobs.recipe.run_inputs import write_recipe
    from jobs.recipe.settings import stage_hashes
    from recaption.inputs.paths import find_inputs
    from recaption.ledger.ledger import build_ledger
    from recaption.run_folder import RunFolder

    recipe = load_recipe("quickstart")
    run = RunFolder(out)
    write_recipe(run, recipe)
    with find_inputs([folder]) as found:
        plan_inputs(run, found, part_size)
    parts = [{"part": number} for number, _ in iter_parts(run)]
    settings = (run.uri, recipe.prepare, stage_hashes(recipe)["prepare"])
    context = multiprocessing.get_context("spawn")
    with context.Pool(num_workers, initializer=_start, initargs=settings) as pool:
        for _ in pool.imap_unordered(_prepare, parts):
            pass
        pool.close()
        pool.join()
    build_ledger(run, recipe.filters).summary()


def _start(*settings: object) -> None:
    global worker
    from jobs.prepare.worker import PrepareWorker

    worker = PrepareWorker(*settings)


def _prepare(part: dict) -> dict:
    return worker(part)


def rendered(folder: Path) -> list[str]:
    """Four scenes of 5 s, 720x1280 at 24 frames per second."""
    paths = [folder / f"scene-{seed}.mp4" for seed in range(4)]
    for seed, path in enumerate(paths):
        render(seed, num_frames=120, height_px=720, width_px=1280, fps=24, **SIMPLE).write(path)
    return [str(path) for path in paths]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--videos", nargs="+", help="files; repeated until there are enough; default: rendered scenes")
    parser.add_argument("--num-clips", type=int, default=220)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--part-size", type=int, default=16)
    parser.add_argument("--plain", nargs=2, metavar=("FOLDER", "OUT"), help="internal: one side of the comparison")
    arguments = parser.parse_args()
    if arguments.plain:
        plain(*arguments.plain, arguments.num_workers, arguments.part_size)
        return
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(folder) / "videos"
        videos.mkdir()
        sources = arguments.videos or rendered(Path(folder))
        for i in range(arguments.num_clips):
            source = Path(sources[i % len(sources)]).resolve()
            (videos / f"{i:05d}{source.suffix}").symlink_to(source)
        workers = ["--num-workers", str(arguments.num_workers)]
        base = [sys.executable, __file__, "--videos", "-", *workers, "--part-size", str(arguments.part_size), "--plain"]
        sides = {
            "plain loop": [*base, str(videos), f"{folder}/plain"],
            "Ray": [
                sys.executable,
                "-m",
                "jobs",
                "prepare",
                "--videos",
                str(videos),
                "--out",
                f"{folder}/ray",
                *workers,
                "--prepare.part-size",
                str(arguments.part_size),
                "--no-progress",
            ],
        }
        totals = {}
        for side, command in sides.items():
            by_kind, wall, peak_bytes = cpu_seconds_of(command)
            totals[side] = sum(by_kind.values())
            print(f"{side:<11} {totals[side]:8.1f} CPU-s  {wall:7.1f} s wall, driver {peak_bytes / 1e6:.0f} MB")
            for kind, seconds in sorted(by_kind.items(), key=lambda pair: -pair[1]):
                print(f"    {kind:<20} {seconds:8.2f}")
    print(f"ratio over {arguments.num_clips} inputs: {totals['Ray'] / totals['plain loop']:.3f}")


if __name__ == "__main__":
    main()
