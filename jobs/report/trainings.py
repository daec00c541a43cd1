"""Training runs for the report page: loss curves, throughput and videos sampled during training.

read_training(run, "train/dit/metrics.jsonl", media)["charts"]
"""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.report.charts import Series, line, number, smooth
from jobs.report.gallery import Media
from recaption.run_folder import RunFolder

STEP = re.compile(r"step-(\d+)")
FIRST_MEASURES = ("cider_d", "bleu_4", "rouge_l", "retrieval/text", "accuracy/mean")
"""Captioner metrics that are drawn first, of some thirty."""
LOSS_LINES = {
    "val/loss": ("validation", "second"),
    "val/training_loss": ("validation's measure on the training's own packs", "third"),
}
"""Label and colour."""
MAX_MEASURES = 5
MAX_SAMPLED_STEPS = 6
MAX_SAMPLES_PER_STEP = 8


def read_training(run: RunFolder, name: str, media: Media) -> dict[str, Any]:
    """Curves of the metrics.jsonl `name` and videos sampled during training; an incomplete last line is skipped."""
    rows = []
    for text in run.read_bytes(name).decode(errors="replace").splitlines():
        try:
            row = json.loads(text)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    losses = _series(rows, "loss")
    last = losses[1][-max(len(losses[1]) // 20, 1) :]
    lines = [Series("each logged step", "faint", *losses), Series("mean", "accent", losses[0], smooth(losses[1]))]
    others = sorted({key for row in rows for key in row if key.startswith("val/")})
    lines += [_loss_line(rows, key) for key in others if key.endswith("loss")]
    legend = [(one.label, one.style) for one in lines]
    charts = [{"title": "Loss", "note": "by step", "svg": line(lines, label="Loss"), "legend": legend}]
    measures = sorted(others, key=lambda key: (key.removeprefix("val/") not in FIRST_MEASURES, key))
    for key in [key for key in measures if not key.endswith("loss")][:MAX_MEASURES]:
        one = [Series(key, "accent", *_series(rows, key))]
        charts.append(
            {
                "title": key.removeprefix("val/").replace("_", " ").capitalize(),
                "note": "held out, by step",
                "svg": line(one, label=key),
                "legend": [],
            }
        )
    named = []
    for key, title, form in (
        ("tokens_per_second", "tokens / s", number),
        ("fill", "fill of packs", "{:.1%}".format),
        ("data_wait_share", "waiting for data", "{:.1%}".format),
        ("tflops_per_second", "TFLOP/s per device", number),
        ("mfu", "of bf16 peak (MFU)", "{:.1%}".format),
    ):
        values = _series(rows, key)[1]
        if values:
            named.append((title, form(float(np.median(values)))))
    return {
        "name": name.split("/")[1],
        "steps": rows[-1]["step"] if rows else 0,
        "loss": math.fsum(last) / len(last) if last else None,
        "charts": charts,
        "named": named,
        "samples": _samples(run, posixpath.dirname(name), media),
    }


def _loss_line(rows: Sequence[dict[str, Any]], key: str) -> Series:
    label, style = LOSS_LINES.get(key, (key, "accent"))
    return Series(label, style, *_series(rows, key))


def _samples(run: RunFolder, folder: str, media: Media) -> list[dict[str, Any]]:
    """Links to the animations sampled at up to `MAX_SAMPLED_STEPS` steps, evenly spaced."""
    of_steps: dict[int, list[str]] = defaultdict(list)
    for path in run.list(f"{folder}/samples/*/*.gif"):
        step = STEP.fullmatch(posixpath.basename(posixpath.dirname(path)))
        if step:
            of_steps[int(step.group(1))].append(path)
    steps = sorted(of_steps)
    chosen = np.linspace(0, len(steps) - 1, min(MAX_SAMPLED_STEPS, len(steps))).round().astype(int)
    return [
        {
            "step": steps[i],
            "links": [
                media.add(run.read_bytes(path), "gif") for path in sorted(of_steps[steps[i]])[:MAX_SAMPLES_PER_STEP]
            ],
        }
        for i in chosen
    ]


def _series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the rows with a finite number under `key`."""
    found = [
        (float(row["step"]), float(row[key]))
        for row in rows
        if isinstance(row.get(key), int | float) and math.isfinite(row[key])
    ]
    return [step for step, _ in found], [value for _, value in found]
