"""CPU seconds of a command and of all processes it starts, found by a marker in their environment.

Processes are polled ten times a second, so the last moments of a process (under 0.1 s) are missed.
"""

import os
import subprocess
import sys
import time
import uuid

MARK = "RECAPTION_BENCH"
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds_of(command: list[str]) -> tuple[dict[str, float], float, int]:
    """(CPU seconds by kind of process, wall seconds, peak resident bytes of the command's own process)."""
    mark = f"{MARK}={uuid.uuid4().hex}"
    # the mark is a path that does not exist: of all variables, decoders get PYTHONPATH
    environment = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}/{mark}"}
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: dict[int, tuple[str, float]] = {}
    other_pids: set[int] = set()
    peak_bytes = 0
    running = True
    while running:
        running = process.poll() is None
        wall = time.perf_counter() - started
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            if pid not in other_pids:
                _sample_process(pid, mark.encode(), seen, other_pids)
        peak_bytes = max(peak_bytes, _resident_bytes(process.pid))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with code {process.returncode}")
    by_kind: dict[str, float] = {}
    for kind, seconds in seen.values():
        by_kind[kind] = by_kind.get(kind, 0.0) + seconds
    return by_kind, wall, peak_bytes


def _sample_process(pid: int, mark: bytes, seen: dict[int, tuple[str, float]], other_pids: set[int]) -> None:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if mark not in file.read():
                if time.time() - os.stat(f"/proc/{pid}").st_ctime > 5:  # younger ones may not have exec'd yet
                    other_pids.add(pid)
                return
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return
    seen[pid] = (_kind(b" ".join(words).decode(errors="replace")), (int(fields[11]) + int(fields[12])) / TICKS)


def _kind(command_line: str) -> str:
    names = {
        "recaption.decoding.worker": "decoders",
        "ray::PartRunner": "workers",
        "ray::": "other Ray workers",
        "default_worker.py": "other Ray workers",
        "raylet/raylet": "raylet",
        "gcs_server": "gcs",
        "multiprocessing": "workers",
    }
    if "/ray/" in command_line and "raylet/raylet" not in command_line and "gcs_server" not in command_line:
        return "other Ray workers" if "default_worker" in command_line else "Ray agents"
    return next((kind for part, kind in names.items() if part in command_line), "driver")


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")), 0)
    except OSError:
        return 0
