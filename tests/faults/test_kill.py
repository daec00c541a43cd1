"""Killed commands that are run again give the same bytes as commands that were never killed.

Processes are killed at seeded random moments: decoders and workers while the driver continues, and sometimes the driver
with everything it started.
"""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter

import pytest

from recaption.scenes.renderer import SIMPLE, render

NUM_VIDEOS = 48
MARK = "RECAPTION_FAULT_TEST"
SECONDS_TO_VANISH = 30.0
"""How long processes of a killed driver may outlive it: Ray's processes check for one another every few seconds."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(NUM_VIDEOS):
        scene = render(6000 + seed, num_frames=17, height_px=64, width_px=96, fps=8, **SIMPLE)
        scene.write(folder / f"scene-{seed:02d}.mp4")
    return folder


class Command:
    """A recaption command in its own process group; its descendants are found by a mark in their environment.

    The mark is a path that does not exist: of all variables, decoders get PYTHONPATH.
    """

    def __init__(self, *arguments, log):
        self.mark = uuid.uuid4().hex
        self.log = open(log, "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *arguments, "--json", "--no-progress"],
            env={**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}/{MARK}={self.mark}"},
            stdout=subprocess.PIPE,
            stderr=self.log,
            start_new_session=True,
        )

    def descendants(self, name=""):
        """Process id -> command line of the processes that have the mark and match the pattern `name`."""
        found = {}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    is_ours = f"{MARK}={self.mark}".encode() in file.read()
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    command_line = file.read().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if is_ours and re.search(name, command_line):
                found[pid] = command_line
        return found

    def kill_one(self, name, rng):
        """SIGKILL a random process of that name; False where there is none."""
        pids = list(self.descendants(name))
        if not pids:
            return False
        try:
            os.kill(rng.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def kill_all(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def finish(self):
        """The JSON object on its stdout, which must have nothing else, whatever was killed meanwhile."""
        out, _ = self.process.communicate()
        assert self.process.returncode == 0
        return json.loads(out)

    def leftover_processes(self):
        """Command lines of processes that outlive the driver by `SECONDS_TO_VANISH`."""
        deadline = time.monotonic() + SECONDS_TO_VANISH
        while self.descendants() and time.monotonic() < deadline:
            time.sleep(0.2)
        return list(self.descendants().values())


def hash_files(out):
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file() and "report" not in path.parts  # has the run times
    }


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
