"""A recaption command as a process whose descendants can be found and killed, and the files that it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid

MARK = "RECAPTION_FAULT_TEST"
SECONDS_TO_VANISH = 30.0
"""How long processes of a killed driver may outlive it: Ray's processes check for one another every few seconds."""


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
