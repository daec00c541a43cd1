"""The decoder child stays light and keeps to itself: no heavy package, no keys, nothing imported after its start."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recaption import decoding
from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io import process as decoder_process
from recaption.video_io.reader import probe, read_frames, scan

HEAVY = {"torch", "ray", "pyarrow", "fsspec", "transformers", "cv2", "pandas"}
LIST_MODULES = """
import json, sys
from recaption.decoding import worker
worker.import_everything()
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture
def fresh_child():
    decoder_process.close()
    yield
    decoder_process.close()


def test_the_child_imports_no_heavy_package():
    listed = subprocess.run([sys.executable, "-P", "-c", LIST_MODULES], capture_output=True, check=True)
    modules = set(json.loads(listed.stdout))
    assert {"av", "numpy", "recaption.decoding.video_file"} <= modules, "the list is not the child's"
    assert not HEAVY & modules


def test_the_child_imports_nothing_inside_functions():
    """Once confined it cannot: such an import would fail at the first file that needs it."""
    late = []
    for path in Path(decoding.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                imports = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
                late += [f"{path.name}:{node.lineno}" for node in imports]
    assert not late


def test_the_child_has_no_keys_of_this_process_and_decodes(fresh_child, monkeypatch, tmp_path):
    monkeypatch.setenv("RECAPTION_API_KEY", "planted-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    video = tmp_path / "scene.mp4"
    render(1, num_frames=9, height_px=64, width_px=96, fps=8, **SIMPLE).write(video)
    assert probe(video).num_frames == 9
    assert scan(video).video.num_frames == 9
    assert read_frames(video, [8, 0], short_side_px=32).pixels_THWC.shape == (2, 32, 48, 3)
    environment = Path(f"/proc/{decoder_process.child_pid()}/environ").read_bytes()
    assert b"PYTHONPATH=" in environment
    assert b"planted" not in environment


def test_what_the_kernel_says_of_the_child_agrees_with_the_report(fresh_child):
    report = decoder_process.confinement_report()
    pid = decoder_process.child_pid()
    status = Path(f"/proc/{pid}/status").read_text()
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert not report["no new privileges"]
    assert "NoNewPrivs:\t1" in status
    assert (not report["seccomp"]) == ("Seccomp:\t2" in status)
    assert not report["no core dumps"]
    assert "Max core file size        0                    0" in limits
    assert ("CapEff:\t0000000000000000" in status) == (not report["no capabilities"])
    is_elsewhere = os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    assert is_elsewhere == (not report["network namespace"])


def test_the_child_holds_no_other_file_of_this_process(fresh_child, tmp_path):
    video = tmp_path / "scene.mp4"
    render(1, num_frames=9, height_px=64, width_px=96, fps=8, **SIMPLE).write(video)
    with open(tmp_path / "private", "w") as private:
        os.set_inheritable(private.fileno(), True)
        assert probe(video).num_frames == 9
        folder = f"/proc/{decoder_process.child_pid()}/fd"
        private_id = os.fstat(private.fileno())
        opened = [os.stat(f"{folder}/{descriptor}") for descriptor in os.listdir(folder)]
    assert not [status for status in opened if os.path.samestat(status, private_id)]


def test_the_child_ends_when_this_process_closes_its_socket(fresh_child):
    child = decoder_process._decoder().running_child()
    child.requests.close()
    assert child.process.wait(timeout=60) == 0
