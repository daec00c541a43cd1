"""`recaption train dit` on the command line."""

import json
from pathlib import Path

SHORT = [
    "--train-dit.dit.width", "32", "--train-dit.dit.depth", "1", "--train-dit.dit.num-heads", "2", "--steps", "2",
    "--train-dit.dit.validation-packs", "1", "--train-dit.trainer.device", "cpu",
]  # fmt: skip


def test_images_first_then_video_are_two_commands(run_copy, command):
    train = ("train", "dit", "--run", run_copy.uri, *SHORT)
    code, images, err = command(*train, "--name", "images", "--plan.max-latent-frames", "1")
    assert (code, images["steps"]) == (0, 2), err
    start = ("--init-from", run_copy.path("train", "images"))
    code, video, err = command(*train, "--name", "video", *start)
    assert (code, video["steps"]) == (0, 2), err
    config = json.loads((Path(video["checkpoint"]) / "config.json").read_text())
    assert config["init_from"]["step"] == 2
    assert config["plan"]["max_latent_frames"] == []
    code, _, err = command(*train, "--name", "wider", *start, "--train-dit.dit.width", "64")
    assert code == 2
    assert "backbone width 32 there, 64 here" in err
