"""A cascade by typed commands: three latents of one run, three trainings, one sampling."""

from __future__ import annotations

import json
from pathlib import Path

from jobs.cli import main
from recaption.video_io.reader import probe

TRAINING = (
    *("--plan.capacity", "1024", "--train-dit.dit.width", "24", "--train-dit.dit.depth", "1"),
    *("--train-dit.dit.num-heads", "2", "--train-dit.dit.patch", "1", "2", "2", "--train-dit.trainer.device", "cpu"),
)
STAGES = {
    "base": "pixels:stride=8,frame-stride=4",
    "tsr": "pixels:stride=8,frame-stride=2",
    "ssr": "pixels:stride=4,frame-stride=2",
}


def test_base_and_stages_train_resume_and_sample_by_commands(run_copy, command, tmp_path):
    run = run_copy.uri
    for name, compressor in STAGES.items():
        command("encode", "--run", run, "--compressor", compressor)
        stage = [] if name == "base" else ["--stage", name]
        train = ["train", "dit", "--run", run, "--name", name, "--encode.compressor", compressor, *stage, *TRAINING]
        command(*train, "--steps", "1")
        _, again, _ = command(*train, "--steps", "2")
        assert (again["steps"], again["resumed_from"]) == (2, 1)
    checkpoints = [str(Path(run) / "train" / name) for name in STAGES]
    _, sampled, _ = command(
        "sample", "--checkpoint", *checkpoints, "--prompt", "a red circle", "--out", str(tmp_path / "out"),
        "--num-steps", "2", "--expander", "none", "--device", "cpu", "--dynamic-threshold", "99.5",
        "--guidance-oscillation-steps", "1",
    )  # fmt: skip
    listing = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert len(listing["stages"]) == 2
    video = probe(sampled["videos"][0])
    assert (video.width_px, video.height_px) == (listing["width_px"], listing["height_px"])
    assert main(["sample", "--checkpoint", checkpoints[0], checkpoints[2], "--prompt", "x", "--expander", "none"]) == 2


def test_a_student_is_distilled_and_sampled_by_commands(run_copy, command):
    compressor, run = STAGES["base"], run_copy.uri
    command("encode", "--run", run, "--compressor", compressor)
    train = ["train", "dit", "--run", run, "--encode.compressor", compressor, *TRAINING, "--steps", "1"]
    for name, before, distill in (("main", "", ""), ("guided", "main", "guidance"), ("two", "guided", "2")):
        flags = ["--init-from", f"{run}/train/{before}", "--distill", distill] if before else []
        assert command(*train, "--name", name, *flags)[0] == 0
    sample = ("sample", "--prompt", "a red circle", "--expander", "none", "--device", "cpu", "--guidance", "3")
    _, sampled, _ = command(*sample, "--checkpoint", f"{run}/train/two", "--out", f"{run}/out")
    assert json.loads((Path(run) / "out" / "samples.json").read_text())["num_steps"] == 2
    assert Path(sampled["videos"][0]).exists()
    code, _, err = command(*sample, "--checkpoint", f"{run}/train/two", "--num-steps", "3")
    assert (code, "distilled to 2 steps, not 3" in err) == (2, True)
    code, _, err = command(*train, "--name", "x", "--distill", "some")
    assert (code, "number of steps of the student" in err) == (2, True)
