"""`ray job submit` of a real command to a running cluster with Ray's token authentication."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 180


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def head():
    """(dashboard URL, environment, ray) of a head node started here; other Ray clusters of this machine are not touched."""
    pytest.importorskip("aiohttp_cors", reason="job submission takes ray[default]")
    other_paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and Path(p) != REPOSITORY]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    environment |= {"PYTHONPATH": os.pathsep.join(other_paths)}
    dashboard, sockets = free_port(), tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # socket paths have to be short
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "start", "--head", "--block", "--num-cpus", "2", "--port", str(free_port())]
    command += ["--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(free_port())]
    command += ["--ray-client-server-port", str(free_port()), "--temp-dir", sockets]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{dashboard}", process)
        yield f"http://127.0.0.1:{dashboard}", environment, ray
    finally:
        process.terminate()
        process.wait(timeout=60)
        shutil.rmtree(sockets, ignore_errors=True)


def wait_for(url, process):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (OSError, urllib.error.URLError):
            time.sleep(1)
    raise AssertionError(f"no dashboard at {url} after {START_SECONDS} s")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_submitted_job_prepares_videos(head, tmp_path):
    url, environment, ray = head
    videos, code, out = tmp_path / "videos", tmp_path / "code", tmp_path / "run"
    videos.mkdir()
    for seed in range(3):
        scene = render(9000 + seed, num_frames=17, height_px=64, width_px=96, fps=8, **SIMPLE)
        scene.write(videos / f"scene-{seed}.mp4")
    for package in ("recaption", "packing", "train", "jobs"):
        shutil.copytree(REPOSITORY / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    job = [sys.executable, "-m", "jobs", "prepare", "--address", "auto", "--videos", str(videos), "--out", str(out)]
    submitted = subprocess.run(
        [ray, "job", "submit", "--address", url, "--working-dir", str(code), "--", *job, "--no-progress"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert re.search(r"videos +3 of 3 read", submitted.stdout)
    assert len(RunFolder(str(out)).list("videos/part-*.parquet")) == 1
