"""Write a dataset of rendered scenes: video files and truth.jsonl with their ground truth."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from recaption.scenes.renderer import render

_FORMATS = (
    # height_px, width_px, fps, num_frames, num_shots, suffix
    (144, 256, Fraction(24), 72, 1, ".mp4"),
    (180, 320, Fraction(30000, 1001), 150, 3, ".mp4"),
    (240, 240, Fraction(25), 100, 2, ".webm"),
    (256, 144, Fraction(30), 90, 1, ".mp4"),
    (192, 256, Fraction(12), 48, 2, ".mp4"),
    (144, 256, Fraction(8), 40, 1, ".webm"),
    (128, 224, Fraction(24), 96, 1, ".mp4"),
    (160, 160, Fraction(15), 60, 1, ".mp4"),
)
"""Sizes, frame rates and lengths that `write_scenes` cycles through."""


def write_scenes(folder: str | Path, num: int, seed: int = 0, **constraints: Any) -> list[Path]:
    """Write `num` varied scenes (mp4 and webm, several sizes, rates, lengths, with and without transitions).

    `constraints` as for `render`. `folder/truth.jsonl` gets one line per file: its name as `file`, and `Scene.truth()`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths, lines = [], []
    for index in range(num):
        height_px, width_px, fps, num_frames, num_shots, suffix = _FORMATS[index % len(_FORMATS)]
        scene = render(
            seed * 100_003 + index,
            num_frames=num_frames,
            height_px=height_px,
            width_px=width_px,
            fps=fps,
            num_shots=num_shots,
            **constraints,
        )
        path = folder / f"scene-{index:04d}{suffix}"
        scene.write(path)
        paths.append(path)
        lines.append(json.dumps({"file": path.name} | scene.truth()))
    (folder / "truth.jsonl").write_text("\n".join(lines) + "\n")
    return paths
