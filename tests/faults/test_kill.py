"""Killed commands that are run again give the same bytes as commands that were never killed.

Processes are killed at seeded random moments: decoders and workers while the driver continues, and sometimes the driver
with everything it started.
"""

import random
import time
from collections import Counter

import pytest
from command_process import Command, hash_files

from recaption.scenes.renderer import SIMPLE, render

NUM_VIDEOS = 48


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(NUM_VIDEOS):
        scene = render(6000 + seed, num_frames=17, height_px=64, width_px=96, fps=8, **SIMPLE)
        scene.write(folder / f"scene-{seed:02d}.mp4")
    return folder


PARTS = ("videos/part-*.parquet", "captions/main/part-*.parquet", "shards/*/*.parquet")


def parts_of(out):
    """Finished parts of all stages: path -> modification time."""
    return {path: path.stat().st_mtime_ns for pattern in PARTS for path in out.glob(pattern)}


def wait_for_parts(command, out, count):
    """Wait until `count` more parts exist."""
    count += len(parts_of(out))
    while len(parts_of(out)) < count:
        assert command.process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)


class RestartableCommand:
    """One command on one run folder, started again after every kill of its driver."""

    def __init__(self, videos, out, verb):
        self.out = out
        self.arguments = [*verb, "--videos", str(videos), "--out", str(out)]
        self.arguments += ["--prepare.part-size", "1", "--num-workers", "2"]

    def start(self):
        return Command(*self.arguments, log=self.out.parent / f"{self.out.name}.log")


TARGETS = ("^ray::PartRunner", "^ray::PartRunner", *["recaption.decoding.worker"] * 3)
"""Kills within the life of one driver: one more of either could all hit one video, which would rightly fail for it."""


def kill_and_restart(command, num_drivers, seed):
    """Kills by target; asserts that no process outlives a driver and that no finished part is written again."""
    rng = random.Random(seed)
    kills = Counter()
    finished = {}
    for is_last in (*[False] * num_drivers, True):
        process = command.start()
        if is_last:
            process.finish()
        else:
            for target in rng.sample(TARGETS, len(TARGETS)):
                wait_for_parts(process, command.out, 1)
                time.sleep(rng.uniform(0, 0.1))
                kills[target] += process.kill_one(target, rng)
            wait_for_parts(process, command.out, 1)
            time.sleep(rng.uniform(0, 0.2))
            process.kill_all()
            kills["driver"] += 1
        assert process.leftover_processes() == []
        assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished part was written again"
        finished |= parts_of(command.out)
    return kills


def test_after_20_kills_the_run_folder_equals_an_uninterrupted_one(videos, tmp_path):
    RestartableCommand(videos, tmp_path / "uninterrupted", ["prepare"]).start().finish()
    kills = kill_and_restart(RestartableCommand(videos, tmp_path / "killed", ["prepare"]), 4, seed=20)
    assert kills.total() >= 20, kills
    assert min(kills.values()) >= 3, kills
    assert hash_files(tmp_path / "killed") == hash_files(tmp_path / "uninterrupted")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_after_kills_in_every_stage_the_run_folder_equals_an_uninterrupted_one(videos, tmp_path):
    verb = ["run", "--stop-after", "shard", "--caption.window-seconds", "1"]
    RestartableCommand(videos, tmp_path / "uninterrupted", verb).start().finish()
    kills = kill_and_restart(RestartableCommand(videos, tmp_path / "killed", verb), 5, seed=21)
    assert kills.total() >= 25, kills
    assert hash_files(tmp_path / "killed") == hash_files(tmp_path / "uninterrupted")
