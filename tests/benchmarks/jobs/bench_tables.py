"""Cost of a run as tables and of a takedown: CPU time and memory per clip of `open_run` and of `--remove` of one video.

python tests/benchmarks/jobs/bench_tables.py 60000
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_verify import write_run

from jobs.recipe.presets import quickstart
from jobs.recipe.run_inputs import write_recipe
from jobs.remove.remove import remove
from recaption import open_run
from recaption.run_folder import RunFolder

TABLES = ("clips", "scores", "captions", "samples", "videos")


def main(num_clips: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(f"{folder}/run")
        write_run(run, num_clips)
        write_recipe(run, quickstart())
        for name in (*TABLES, "remove"):
            command = [sys.executable, __file__, "--measure", name, folder]
            seconds, num_bytes = map(float, subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split())
            print(f"{name:<10}{1e6 * seconds / num_clips:>8.0f} µs/clip{num_bytes / num_clips:>8.0f} bytes/clip")


def measure(name: str, folder: str) -> None:
    """CPU seconds of one call, and the peak memory that it adds."""
    run = open_run(f"{folder}/run")
    video = Path(folder, "takedown.txt")
    video.write_text(run.folder.read_table("videos/part-00000.parquet")["video_id"][0].as_py())
    before, started = _peak_bytes(), time.process_time()
    if name == "remove":
        assert remove(run.folder, quickstart(), str(video))["removed"]["samples"] == 10
    else:
        assert len(getattr(run, name)())
    print(time.process_time() - started, _peak_bytes() - before)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 60_000)
