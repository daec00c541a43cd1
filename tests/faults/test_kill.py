"""A command that is killed loses nothing: run again, it ends with the bytes of one that was never killed."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest

from recaption.scenes import SIMPLE, render

NUM_VIDEOS = 8


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(NUM_VIDEOS):
        scene = render(6000 + seed, num_frames=17, height_px=64, width_px=96, fps=8, **SIMPLE)
        scene.write(folder / f"scene-{seed}.mp4")
    return folder


def prepare(videos, out):
    arguments = [
        "prepare",
        "--videos",
        str(videos),
        "--out",
        str(out),
        "--prepare.part-size",
        "1",
        "--num-workers",
        "1",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *arguments, "--no-progress"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def tree(out):
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file()
    }


def test_a_killed_run_ends_with_the_same_bytes_and_keeps_its_finished_parts(videos, tmp_path):
    assert prepare(videos, tmp_path / "undisturbed").wait() == 0
    out = tmp_path / "killed"
    killed = prepare(videos, out)
    deadline = time.monotonic() + 120
    while len(list(out.glob("videos/part-*.parquet"))) < 2:
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)  # driver, workers and decoders at once
    killed.wait()
    time.sleep(1.0)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("videos/part-*.parquet")}
    (out / "clips" / "part-00099.parquet.0123abcd.tmp").write_bytes(b"half a file")
    assert prepare(videos, out).wait() == 0
    assert tree(out) == tree(tmp_path / "undisturbed")
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())
