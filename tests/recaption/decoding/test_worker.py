"""The decoder child stays light: it starts fast and small because it imports none of the heavy packages."""

from __future__ import annotations

import json
import os

import pytest

from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io import process as decoder_process
from recaption.video_io.reader import probe, read_frames, scan

HEAVY = {"torch", "ray", "pyarrow", "fsspec", "transformers", "cv2", "pandas"}

WRITE_MODULES_AT_EXIT = """
import atexit, json, os, sys

def write_modules():
    with open(os.environ["MODULES_FILE"], "w") as file:
        json.dump(sorted(sys.modules), file)

atexit.register(write_modules)
"""


@pytest.fixture
def modules_file(tmp_path, monkeypatch):
    """Where the next child, started as always, lists its modules when it ends: sitecustomize runs in it at start."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WRITE_MODULES_AT_EXIT)
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("MODULES_FILE", str(tmp_path / "modules.json"))
    decoder_process.close()
    yield tmp_path / "modules.json"
    decoder_process.close()


def test_the_child_imports_no_heavy_package_even_after_decoding(modules_file, tmp_path):
    video = tmp_path / "scene.mp4"
    render(1, num_frames=9, height_px=64, width_px=96, fps=8, **SIMPLE).write(video)
    assert probe(video).num_frames == 9
    assert scan(video).video.num_frames == 9
    assert read_frames(video, [8, 0], short_side_px=32).pixels_THWC.shape == (2, 32, 48, 3)
    child = decoder_process._decoder().child
    assert child is not None
    child.requests.close()  # the child ends by itself, in order
    assert child.process.wait(timeout=60) == 0
    modules = set(json.loads(modules_file.read_text()))
    assert {"av", "numpy", "recaption.decoding.video_file"} <= modules, "the list is not the child's"
    assert not HEAVY & modules
