from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from jobs.recipe.presets import quickstart
from jobs.report.gallery import Media
from jobs.report.page import write_report
from jobs.report.trainings import MAX_SAMPLED_STEPS, read_training
from recaption.run_folder import RunFolder
from train.engine.metrics import MetricsLog


def write_training(folder: Path, steps: range) -> None:
    """Metrics and sampled videos of a training run that samples at each of these steps."""
    log = MetricsLog(str(folder), from_step=0)
    for step in steps:
        log.write(
            {"step": step, "loss": 1 / step, "tokens_per_second": 800.0, "tflops_per_second": 310.0, "mfu": 0.314}
        )
        for number in range(2):
            pixels_THWC = np.full((3, 8, 16, 3), 10 * step + number, np.uint8)
            log.write_video(f"sample/{number}", pixels_THWC, step=step, fps=8)
    log.close()


def test_page_shows_sampled_videos_and_device_utilisation(tmp_path):
    write_training(tmp_path / "train" / "dit", range(1, 4))
    page = Path(write_report(RunFolder(str(tmp_path)), quickstart().filters)).read_text()
    assert "31.4% of bf16 peak (MFU)" in page
    assert "310 TFLOP/s per device" in page
    links = re.findall(r'<img src="(media/\w+\.gif)"[^>]*alt="Video (\d) sampled after (\d) steps"', page)
    assert [(number, step) for _, number, step in links] == [(n, s) for s in "123" for n in "12"]
    for link, _, _ in links:
        assert (tmp_path / "report" / link).read_bytes().startswith(b"GIF89a")


def test_of_many_steps_an_even_selection_is_shown(tmp_path):
    write_training(tmp_path / "train" / "dit", range(1, 21))
    run = RunFolder(str(tmp_path))
    steps = [shown["step"] for shown in read_training(run, "train/dit/metrics.jsonl", Media(run))["samples"]]
    assert len(steps) == MAX_SAMPLED_STEPS
    assert (steps[0], steps[-1]) == (1, 20)


def test_both_losses_of_a_validation_are_drawn(tmp_path):
    run = RunFolder(str(tmp_path))
    lines = [
        {"step": step, "loss": 1 / step, "val/loss": 2 / step, "val/training_loss": 1.5 / step} for step in (1, 2, 3)
    ]
    run.write_bytes("train/main/metrics.jsonl", "".join(json.dumps(one) + "\n" for one in lines).encode())
    (chart,) = read_training(run, "train/main/metrics.jsonl", None)["charts"]
    labels = [label for label, _ in chart["legend"]]
    assert labels[-2:] == ["validation", "validation's measure on the training's own packs"]
    assert len({style for _, style in chart["legend"]}) == len(labels), "two lines of one colour"
