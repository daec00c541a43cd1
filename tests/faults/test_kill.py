"""Commands that are killed lose nothing: run again, they end with the bytes of ones that were never killed.

One run folder goes through its kills at seeded random moments: decoders and workers while the driver goes on, and from
time to time everything at once with the driver.
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

NUM_VIDEOS = 44
MARK = "RECAPTION_FAULT_TEST"
SECONDS_TO_VANISH = 30.0
"""How long what belongs to a killed driver may outlive it: Ray's parts look for one another every few seconds."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(NUM_VIDEOS):
        scene = render(6000 + seed, num_frames=17, height_px=64, width_px=96, fps=8, **SIMPLE)
        scene.write(folder / f"scene-{seed:02d}.mp4")
    return folder


class Command:
    """A verb in a process group of its own; everything it starts can be found by the mark in its environment."""

    def __init__(self, *arguments, log):
        self.mark = uuid.uuid4().hex
        self.log = open(log, "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *arguments, "--json", "--no-progress"],
            env={**os.environ, MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=self.log,
            start_new_session=True,
        )

    def descendants(self, name=""):
        """Process id -> command line of what has the mark and whose command line holds `name`."""
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

    def kill_one(self, name, chance):
        """SIGKILL a process of that name, if one is there; whether it was."""
        pids = list(self.descendants(name))
        if not pids:
            return False
        try:
            os.kill(chance.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def kill_all(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def finish(self):
        """Its JSON object; nothing else may be on its stdout, whatever died meanwhile."""
        out, _ = self.process.communicate()
        assert self.process.returncode == 0
        return json.loads(out)

    def left_behind(self):
        """Command lines of what outlives the driver for too long."""
        deadline = time.monotonic() + SECONDS_TO_VANISH
        while self.descendants() and time.monotonic() < deadline:
            time.sleep(0.2)
        return list(self.descendants().values())


def tree(out):
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file() and "report" not in path.parts  # which says how long it all took
    }


PARTS = ("videos/part-*.parquet", "captions/main/part-*.parquet", "shards/*/*.parquet")


def parts_of(out):
    """Finished parts of all stages: path -> time of its writing."""
    return {path: path.stat().st_mtime_ns for pattern in PARTS for path in out.glob(pattern)}


def wait_for_parts(command, out, count):
    """Until that many parts more are there."""
    count += len(parts_of(out))
    while len(parts_of(out)) < count:
        assert command.process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)


class Chain:
    """One verb on one run folder, started again after every kill of its driver."""

    def __init__(self, videos, out, verb):
        self.out = out
        self.arguments = [*verb, "--videos", str(videos), "--out", str(out)]
        self.arguments += ["--prepare.part-size", "1", "--num-workers", "2"]

    def start(self):
        return Command(*self.arguments, log=self.out.parent / f"{self.out.name}.log")


def kill_and_go_on(chain, kills_within_a_driver, seed):
    """Kills by what was killed; after each driver nothing of it is left, and what was finished is never made again."""
    chance = random.Random(seed)
    kills = Counter()
    finished = {}
    for num_kills in (*kills_within_a_driver, None):
        command = chain.start()
        if num_kills is None:
            command.finish()
        else:
            for _ in range(num_kills):
                wait_for_parts(command, chain.out, chance.randint(1, 2))
                time.sleep(chance.uniform(0, 0.1))
                target = chance.choice(["^ray::_PartRunner", "recaption.decoding.worker", "recaption.decoding.worker"])
                kills[target] += command.kill_one(target, chance)
            wait_for_parts(command, chain.out, 1)
            time.sleep(chance.uniform(0, 0.5))
            command.kill_all()
            kills["driver"] += 1
        assert command.left_behind() == []
        assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished part was made again"
        finished |= parts_of(chain.out)
    return kills


def test_after_20_kills_at_random_moments_the_tree_is_that_of_an_undisturbed_run(videos, tmp_path):
    Chain(videos, tmp_path / "undisturbed", ["prepare"]).start().finish()
    kills = kill_and_go_on(Chain(videos, tmp_path / "killed", ["prepare"]), (8, 7, 4), seed=20)
    assert kills.total() >= 20, kills
    assert min(kills.values()) >= 3, kills
    assert tree(tmp_path / "killed") == tree(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_after_kills_in_every_stage_the_tree_is_that_of_an_undisturbed_run(videos, tmp_path):
    verb = ["run", "--stop-after", "shard", "--caption.window-seconds", "1"]
    Chain(videos, tmp_path / "undisturbed", verb).start().finish()
    kills = kill_and_go_on(Chain(videos, tmp_path / "killed", verb), (8, 7, 4, 4, 1), seed=21)
    assert kills.total() >= 25, kills
    assert tree(tmp_path / "killed") == tree(tmp_path / "undisturbed")
