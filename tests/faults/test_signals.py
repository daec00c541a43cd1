"""SIGTERM and Ctrl-C in every stage: one sentence, no process, no temporary file, no session of Ray left."""

import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from command_process import Command

from jobs.cli import main
from recaption.scenes.renderer import SIMPLE, render

NUM_VIDEOS = 16
STAGES = {
    "prepare": (["prepare", "--videos", "{videos}", "--out", "{run}"], "videos/part-*.parquet"),
    "caption": (["caption", "--run", "{run}"], "captions/main/part-*.parquet"),
    "shard": (["shard", "--run", "{run}"], "shards/*/*.parquet"),
    "encode": (["encode", "--run", "{run}"], "latents/*/*/*.parquet"),
    "train": (["train", "dit", "--run", "{run}", "--steps", "100000"], "train/main/metrics.jsonl"),
}
"""Stage -> (command, files that show that it works)."""
SETTINGS = ["--prepare.part-size", "1", "--shard.buckets.max-samples-per-shard", "1"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(NUM_VIDEOS):
        scene = render(6500 + seed, num_frames=17, height_px=64, width_px=96, fps=8, **SIMPLE)
        scene.write(folder / f"scene-{seed:02d}.mp4")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("signals") / "run"


@pytest.fixture(scope="module")
def temporary_folder():
    """Where the commands keep the sessions of their Ray: a path short enough for sockets."""
    path = tempfile.mkdtemp(prefix="s-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", path)
        yield Path(path)
    shutil.rmtree(path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_in_a_stage_is_one_sentence_and_leaves_nothing(videos, run, temporary_folder, tmp_path, stage, number):
    arguments, pattern = STAGES[stage]
    arguments = [argument.format(videos=videos, run=run) for argument in arguments]
    if stage == "prepare":
        arguments += SETTINGS
    if stage == "train":
        arguments += ["--train-dit.dit.width", "64", "--train-dit.dit.depth", "2", "--train-dit.dit.num-heads", "2"]
    before = len(list(run.glob(pattern)))
    command = Command(*arguments, "--num-workers", "1", log=tmp_path / "log")
    deadline = time.monotonic() + 300
    while len(list(run.glob(pattern))) <= before and time.monotonic() < deadline:
        assert command.process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.02)
    command.process.send_signal(number)
    out, _ = command.process.communicate(timeout=120)
    error = (tmp_path / "log").read_text()
    code, word = (143, "stopped by SIGTERM") if number == signal.SIGTERM else (2, "interrupted")
    if stage != "train":
        assert error == f"recaption: {word}: finished parts are safe, run the same command again to go on\n"
    assert command.process.returncode == code
    assert out == b""
    assert "Traceback" not in error
    assert "SIGTERM received" not in error
    assert command.leftover_processes() == []
    assert list(run.rglob("*.tmp")) == list(run.rglob("*.lock")) == []
    assert list(temporary_folder.glob("recaption-ray-*")) == []
    if number == signal.SIGINT:  # goes on where it was stopped, for the next stage
        if stage == "train":
            return
        assert main([*arguments, "--num-workers", "2", "--no-progress"]) == 0
