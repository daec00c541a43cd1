"""Videos with labelled shot boundaries, and the score of a detector on them; for tests and benchmarks."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from recaption.scenes.renderer import Scene, render
from tests.stand_ins.fingerprints import downscaled

__all__ = ["FIXTURES", "count_hits", "downscaled", "exposed_scene", "f1", "varied_scene"]

FIXTURES = Path(os.environ.get("RECAPTION_FIXTURES", Path(__file__).parents[3] / "shared/fixtures"))


def varied_scene(seed: int, index: int) -> tuple[Scene, float]:
    """Scene `index` of an endless series: 8, 24 and 30 fps; cuts, fades, dissolves, none, mixed; 3 to 8 seconds."""
    rng = np.random.default_rng([seed, index, 77])
    fps = (8, 24, 30)[index % 3]
    kind = ("cut", "fade", "dissolve", "none", None)[index // 3 % 5]
    seconds = rng.uniform(3, 8)
    num_shots = int(rng.integers(2, 5))
    num_shots = 1 if kind == "none" else max(2, min(num_shots, int(seconds / 1.3)))
    height_px, width_px = ((96, 170), (96, 96), (170, 96), (108, 192))[int(rng.integers(4))]
    scene = render(
        seed * 100_000 + index,
        num_frames=int(seconds * fps),
        height_px=height_px,
        width_px=width_px,
        fps=fps,
        num_shots=num_shots,
        transition=None if kind == "none" else kind,
    )
    return scene, float(fps)


def exposed_scene(index: int) -> tuple[np.ndarray, float]:
    """A single shot whose exposure changes by up to 16 times within 0.2 to 1.5 s, clipping to white; and its fps."""
    rng = np.random.default_rng([index, 5])
    fps = (24, 30)[index % 2]
    num_frames = int(fps * rng.uniform(3, 6))
    frames = render(900_000 + index, num_frames=num_frames, height_px=96, width_px=170, fps=fps).frames_THWC
    gains = sorted(rng.uniform(0.25, 4, 2), reverse=bool(index % 3))
    start = int(num_frames * 0.3)
    end = min(num_frames - 2, start + int(fps * rng.uniform(0.2, 1.5)))
    gain = np.interp(np.arange(num_frames), [start, end], gains)[:, None, None, None]
    return (np.clip((frames / 255.0) ** 2.2 * gain, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8), float(fps)


def count_hits(found: list[int], scene: Scene) -> Counter[str]:
    """Count hits and false positives: hard cuts match within 1 frame, gradual transitions within their span and 2 frames."""
    counts: Counter[str] = Counter()
    unmatched = set(found)
    for transition in scene.transitions:
        kind = "hard" if transition.kind == "cut" else "gradual"
        slack = 1 if kind == "hard" else 2
        low, high = transition.start_frame - slack, transition.end_frame + slack
        near = [frame for frame in unmatched if low <= frame <= high]
        counts[kind] += 1
        if near:
            counts[kind + "_hit"] += 1
            unmatched.discard(min(near, key=lambda frame: abs(frame - transition.cut_frame)))
    counts["false"] += len(unmatched)
    return counts


def f1(hits: int, truth: int, false: int) -> float:
    return 2 * hits / max(2 * hits + (truth - hits) + false, 1)
