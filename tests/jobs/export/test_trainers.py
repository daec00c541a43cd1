"""Exports read by the dataset code of trainers themselves, each in an environment of its own, without its model.

    RECAPTION_TRAINERS=checkouts RECAPTION_TRAINERS_PYTHON=env/bin/python pytest -m slow tests/jobs/export/test_trainers.py

checkouts/ has a folder per trainer (`musubi-tuner`, ...); a trainer that is not there is skipped. docs/export.md says which
versions were read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trainer_readers

from recaption.run_folder import RunFolder

LAYOUT = {
    "automodel": "automodel",
    "ltx-trainer": "ltx",
    "musubi-tuner": "folder",
    "diffusion-pipe": "folder",
    "finetrainers": "folder",
    "diffsynth": "diffsynth",
    "fastvideo": "fastvideo",
    "cosmos-predict2": "cosmos",
}
IN_CHECKOUT = {"musubi-tuner": ("src",), "ltx-trainer": ("packages/ltx-trainer/src", "packages/ltx-trainer/scripts")}
"""Folders that imports start from."""
WINDOW = 9


@pytest.mark.slow
@pytest.mark.parametrize("trainer", trainer_readers.READERS)
def test_a_trainer_reads_every_clip_with_its_text(exported, tmp_path, trainer):
    """Clips are fitted to 8 frames per second and 4k+1 frames; cosmos-predict2 takes a window of each."""
    place = Path(os.environ.get("RECAPTION_TRAINERS", "/nowhere"), trainer)
    if not place.is_dir():
        pytest.skip(f"no checkout of {trainer} in RECAPTION_TRAINERS")
    is_window = LAYOUT[trainer] == "cosmos"
    out = tmp_path / "out"
    model = "ltx" if LAYOUT[trainer] == "ltx" else "wan2.1"
    exported(out, LAYOUT[trainer], fit=True, model=model, fps=8, max_frames=WINDOW if is_window else 17)
    rows = RunFolder(str(out)).read_table("clips.parquet").to_pylist()
    folders = [str(place / folder) for folder in IN_CHECKOUT.get(trainer, ("",))]
    done = subprocess.run(
        [os.environ.get("RECAPTION_TRAINERS_PYTHON", sys.executable), trainer_readers.__file__, trainer, str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = sorted(map(tuple, json.loads(done.stdout.splitlines()[-1])))
    assert {row["num_frames"] for row in rows} == ({12, 17} if is_window else {9, 17})
    assert found == [
        (r["clip_id"], r["caption"], WINDOW if is_window else r["num_frames"], r["height_px"], r["width_px"])
        for r in rows
    ]
