"""A run with what an export has to tell apart: whole mp4s, parts of a video, another container, a side text."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.caption.caption import caption
from jobs.export.export import export
from jobs.export.settings import ExportSettings
from jobs.prepare.prepare import prepare
from jobs.recipe.presets import quickstart
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io.writer import write_video

CLIP_COLUMNS = pa.schema([("clip_id", pa.string()), ("uri", pa.string())])
NUM_WHOLE = 4
"""Videos of one clip each, in mp4."""


@pytest.fixture(scope="session")
def export_videos(tmp_path_factory) -> Path:
    """Four whole mp4s of 17 frames at 8 fps, one of two shots at 30000/1001, one of odd size, one webm."""
    folder = tmp_path_factory.mktemp("export-videos")

    def scene(seed: int, num_frames: int, height_px: int = 64, width_px: int = 96):
        return render(7000 + seed, num_frames=num_frames, height_px=height_px, width_px=width_px, fps=8, **SIMPLE)

    for seed in range(NUM_WHOLE):
        scene(seed, 17).write(folder / f"whole-{seed}.mp4")
    shots = np.concatenate([scene(20 + seed, 45).frames_THWC for seed in range(2)])
    write_video(folder / "two-shots.mp4", shots, fps=30000 / 1001, crf=4)
    odd = scene(30, 17, 66, 98).frames_THWC[:, :65, :97]
    write_video(folder / "odd.mp4", odd, fps=8, pixel_format="yuv444p", crf=4)
    scene(31, 17).write(folder / "other.webm")
    return folder


@pytest.fixture(scope="session")
def export_recipe():
    recipe = quickstart()
    buckets = dataclasses.replace(recipe.shard.buckets, max_samples_per_shard=3)
    filters = dataclasses.replace(recipe.filters, max_duplicate_similarity=None)
    prepared = dataclasses.replace(recipe.prepare, part_size=4, max_clip_seconds=4.0)
    return dataclasses.replace(
        recipe, prepare=prepared, filters=filters, shard=dataclasses.replace(recipe.shard, buckets=buckets)
    )


@pytest.fixture(scope="session")
def export_run(export_videos, export_recipe, in_process, tmp_path_factory) -> RunFolder:
    """Prepared and captioned; only the video whose clip is the last by id has a side text."""
    run = RunFolder(str(tmp_path_factory.mktemp("export") / "run"))
    prepare([str(export_videos)], run.uri, export_recipe, in_process)
    clips = run.read_parts(run.list("clips/part-*.parquet"), CLIP_COLUMNS).sort_by("clip_id").to_pylist()
    Path(clips[-1]["uri"]).with_suffix(".txt").write_text("the text that came with it\n")
    caption(run, export_recipe, "main", in_process)
    return run


@pytest.fixture
def exported(export_run, export_recipe, in_process):
    """`exported(out, "folder", fit=True)`: the summary of that export."""

    def run_export(out, layout: str, *, recipe=None, run=None, cluster=None, dry_run=False, **settings):
        return export(
            run or export_run,
            recipe or export_recipe,
            ExportSettings(to=layout, **settings),
            str(out),
            cluster or in_process,
            dry_run=dry_run,
        )

    return run_export
