"""One small run folder for the tests of a file: rendered scenes, a duplicate, and an HTML page named .mp4."""

import json
import shutil

import pytest

from jobs.cli import main
from recaption.scenes.renderer import SIMPLE, render

SHORT_TRAINING = [
    "--train-dit.trainer.num-steps", "6",
    "--train-dit.trainer.checkpoint-every", "3",
    "--train-dit.dit.width", "64",
    "--train-dit.dit.depth", "2",
    "--train-dit.dit.num-heads", "2",
    "--sample.num-steps", "2",
    "--prepare.part-size", "3",
]  # fmt: skip


def command(capsys, *arguments):
    """Exit code and the JSON object of one command."""
    code = main([*arguments, "--json", "--no-progress"])
    out = capsys.readouterr().out
    return code, json.loads(out) if out.strip() else {}


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(6):
        height_px, width_px = ((64, 64), (64, 96), (96, 64))[seed % 3]
        suffix = ".webm" if seed % 2 else ".mp4"
        scene = render(5000 + seed, num_frames=17, height_px=height_px, width_px=width_px, fps=8, **SIMPLE)
        scene.write(folder / f"scene-{seed}{suffix}")
    (folder / "scene-0.txt").write_text("what a person wrote")
    two_shots = render(77, num_frames=40, height_px=72, width_px=128, fps=8, num_shots=2, transition="cut")
    two_shots.write(folder / "two-shots.mp4")
    shutil.copyfile(folder / "scene-0.mp4", folder / "the-same-again.mp4")
    (folder / "page.mp4").write_text("<html>not a video</html>")
    return folder


@pytest.fixture(scope="module")
def finished_run(videos, local_ray, tmp_path_factory):
    """The whole pipeline, run once with two workers."""
    out = tmp_path_factory.mktemp("runs") / "two-workers"
    code = main(
        ["run", "--videos", str(videos), "--out", str(out), "--num-workers", "2", "--no-progress", *SHORT_TRAINING]
    )
    assert code == 1  # page.mp4 is no video
    return out
