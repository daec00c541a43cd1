"""Compatibility with Megatron Energon: its own commands prepare and lint the shards, its own loader reads them.

Needs the extra `energon-test`; skipped without it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from packing.buckets import bucket_name, parse_bucket
from packing.shards.index import build_index, build_latents_index
from packing.shards.plan import ShardClip
from packing.shards.samples import latent_entry, video_entry
from packing.shards.write import write_latents_shard, write_shard
from recaption.records import Sample, from_table
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render

try:
    HAS_ENERGON = importlib.util.find_spec("megatron.energon") is not None
except ModuleNotFoundError:
    HAS_ENERGON = False
pytestmark = [
    pytest.mark.skipif(not HAS_ENERGON, reason="megatron-energon is not installed"),
    pytest.mark.timeout(900),  # five processes that import it
]

COMMAND = "import sys; from megatron.energon.cli.main import main; sys.argv[0] = 'energon'; main()"
LOADER = """
import json, sys
from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, basic_sample_keys, get_savable_loader
from megatron.energon import get_val_dataset, stateless

@stateless
def cook(sample):
    numbers = sample["npy"] * sample["scale.npy"][0].reshape(-1, 1, 1, 1) + sample["scale.npy"][1].reshape(-1, 1, 1, 1)
    return dict(**basic_sample_keys(sample), mean=float(numbers.mean()), caption=sample["json"]["caption"])

class Encoder(DefaultTaskEncoder):
    cookers = [Cooker(cook)]

    def batch(self, samples):
        return samples

workers = WorkerConfig(rank=0, world_size=1, num_workers=0)
dataset = get_val_dataset(sys.argv[1], split_part="train", worker_config=workers, batch_size=1, task_encoder=Encoder())
found = [s for batch in get_savable_loader(dataset) for s in batch]
print(json.dumps([[s["__key__"].rpartition("/")[2], s["caption"], s["mean"]] for s in found]))
"""


def energon(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, env=os.environ, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """Two buckets, two shards each of two clips."""
    folder = tmp_path_factory.mktemp("run")
    run = RunFolder(str(folder))
    for number, (height_px, width_px) in enumerate(((32, 64), (64, 32))):
        bucket = parse_bucket(f"9f-{height_px}x{width_px}-8fps")
        scene = render(number, num_frames=9, height_px=height_px, width_px=width_px, fps=8, **SIMPLE)
        scene.write(folder / "scene.mp4")
        for shard in range(2):
            clips = [
                ShardClip(
                    clip_id=f"{number:016x}-{10 * shard + i:07d}-0000009", uri="scene.mp4", start_frame=0, end_frame=9,
                    start_seconds=0.0, end_seconds=9 / 8, width_px=width_px, height_px=height_px, caption=f"text {i}",
                )
                for i in range(2)
            ]  # fmt: skip
            mp4 = (folder / "scene.mp4").read_bytes()
            entries = [video_entry(clip, bucket, mp4, num_latent_tokens=96) for clip in clips]
            write_shard(run, f"shards/{bucket_name(bucket)}/{shard:06d}", entries, plan_hash="p")
    rows = from_table(build_index(run), Sample)
    for shard in sorted({row.shard for row in rows}):
        entries = [
            latent_entry(
                row, np.random.default_rng(i).standard_normal((4, 3, 4, 8)) + i, num_latent_tokens=96, dtype="int8"
            )
            for i, row in enumerate(rows)
            if row.shard == shard
        ]
        write_latents_shard(
            run, f"latents/patch/{shard.removeprefix('shards/').removesuffix('.tar')}", entries, plan_hash="p"
        )
    build_latents_index(run, "patch")
    (folder / "scene.mp4").unlink()
    return run


PREPARE = ("--non-interactive", "--split-ratio", "1,0,0", "--num-workers", "1", "--no-progress")


@pytest.mark.parametrize(
    ("folder", "fields"),
    [("shards", {"image": "mp4", "caption": "txt"}), ("latents/patch", {"image": "npy", "caption": "json[caption]"})],
)
def test_energon_prepares_and_lints_shards_of_all_buckets_at_once(run, folder, fields):
    place = run.path(folder)
    before = {name: run.read_bytes(name) for name in run.list(f"{folder}/*/*.tar")}
    sample = ("--sample-type", "CaptioningSample", "--field-map", json.dumps(fields), "--force-overwrite")
    assert "Found 4 tar files" in energon("prepare", *PREPARE, *sample, place)
    info = json.loads((Path(place) / ".nv-meta" / ".info.json").read_text())
    assert list(info["shard_counts"].values()) == [2, 2, 2, 2]
    energon("lint", "--split-parts", "train", place)
    assert {name: run.read_bytes(name) for name in run.list(f"{folder}/*/*.tar")} == before


def test_energon_loader_reads_int8_latents_as_they_were_written(run):
    place = run.path("latents/patch")
    energon("prepare", *PREPARE, "--sample-type", "CrudeWebdataset", "--force-overwrite", place)
    done = subprocess.run([sys.executable, "-c", LOADER, place], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = sorted(json.loads(done.stdout.splitlines()[-1]))
    rows = from_table(run.read_table("index.parquet"), Sample)
    assert [key for key, _, _ in found] == [row.clip_id for row in rows]
    assert [caption for _, caption, _ in found] == [row.caption for row in rows]
    assert [round(mean) for _, _, mean in found] == [*range(8)]
