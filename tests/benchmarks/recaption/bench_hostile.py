"""Bombs and disguised playlists: what each is refused with, how long it takes, and the peak memory of both processes.

    python tests/benchmarks/recaption/bench_hostile.py [FILE...]

Without files, those of hostile_files.py are written. Exit code 1: the listener was reached, a disguised file decoded to
other frames than its own, or a process took more than `MAX_PARENT_BYTES` or the decoder's own limit.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from hostile_files import write_bombs, write_disguised

from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io import process as decoder_process
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.reader import scan

MAX_PARENT_BYTES = 1_500_000_000
NUM_OWN_FRAMES = 17


def resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Watch:
    """Peak resident bytes of this process and of the decoder since `reset`."""

    def __init__(self) -> None:
        self.reset()
        threading.Thread(target=self._run, daemon=True).start()

    def reset(self) -> None:
        self.parent_bytes = self.child_bytes = 0

    def _run(self) -> None:
        while True:
            self.parent_bytes = max(self.parent_bytes, resident_bytes(os.getpid()))
            self.child_bytes = max(self.child_bytes, resident_bytes(decoder_process.child_pid() or 0))
            time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path)
    arguments = parser.parse_args()
    watch, is_bad = Watch(), False
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        target = Path(name) / "target.mp4"
        render(1, num_frames=NUM_OWN_FRAMES, height_px=64, width_px=96, fps=8, **SIMPLE).write(target)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        disguised = write_disguised(Path(name) / "disguised", target=target, url=url)
        bombs = [] if arguments.paths else sorted(write_bombs(Path(name) / "bombs", intact=target).iterdir())
        for path in arguments.paths or [*sorted(disguised.iterdir()), *bombs]:
            watch.reset()
            started = time.perf_counter()
            video = scan(path).video
            seconds = time.perf_counter() - started
            memory = f"{watch.parent_bytes / 1e9:.2f} and {watch.child_bytes / 1e9:.2f} GB"
            outcome = f"{video.status} {video.reason or ''} {video.num_frames} {video.detail[:70]}"
            print(f"{path.name:22} {path.stat().st_size:>10,} B {seconds:6.1f} s {memory}  {outcome}", flush=True)
            is_bad |= watch.parent_bytes > MAX_PARENT_BYTES or watch.child_bytes > DecodeLimits().max_memory_bytes
            is_own = path.name.startswith("dref") and video.num_frames == NUM_OWN_FRAMES
            is_bad |= path.parent == disguised and video.status == "ok" and not is_own
        try:
            listener.accept()
            print("the listener was reached")
            return 1
        except TimeoutError:
            print("nobody reached the listener")
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
