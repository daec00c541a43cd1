from __future__ import annotations

import dataclasses
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from packing.buckets import Bucket
from packing.shards.index import build_index, build_latents_index
from packing.shards.plan import ShardClip
from packing.shards.read import read_latent, read_sample
from packing.shards.samples import LatentSample, latent_entry, video_entry
from packing.shards.write import write_latents_shard, write_shard
from recaption.errors import VideoError
from recaption.records import Sample, from_table
from recaption.run_folder import RunFolder

BUCKET = Bucket(9, 64, 112, 8)
SHARD = "shards/9f-64x112-8fps/000000"


def fill(run: RunFolder, num_clips: int = 4) -> list[Sample]:
    made = []
    for number in range(num_clips):
        clip = ShardClip(
            clip_id=f"{number:016x}-0000000-0000048",
            uri="",
            start_frame=0,
            end_frame=48,
            start_seconds=0,
            end_seconds=2,
            width_px=112,
            height_px=64,
            caption=f"Clip {number}.",
        )
        mp4 = np.random.default_rng(number).bytes(3000)
        made.append(video_entry(clip, BUCKET, mp4, num_latent_tokens=1))
    write_shard(run, SHARD, made, plan_hash="p")
    return from_table(build_index(run), Sample)


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def damage(run: RunFolder, offset: int, payload: bytes) -> None:
    tar = bytearray(run.read_bytes(f"{SHARD}.tar"))
    tar[offset : offset + len(payload)] = payload
    run.write_bytes(f"{SHARD}.tar", bytes(tar))


def test_sample_is_read_by_its_index_row(run: RunFolder) -> None:
    rows = fill(run)
    members = read_sample(run, rows[2])
    assert members["mp4"] == np.random.default_rng(2).bytes(3000)
    assert members["txt"] == b"Clip 2."


def test_flipped_byte_is_detected_and_neighbours_still_read(run: RunFolder) -> None:
    rows = fill(run)
    damage(run, rows[1].offset_bytes + 2000, b"\x00\x01\x02\x03\x04")
    with pytest.raises(VideoError, match="mp4 member") as caught:
        read_sample(run, rows[1])
    assert caught.value.reason == "frame_mismatch"
    assert rows[1].clip_id in str(caught.value)
    read_sample(run, rows[0])
    read_sample(run, rows[2])


def test_destroyed_header_short_tar_and_missing_tar_have_their_reasons(run: RunFolder) -> None:
    rows = fill(run)
    damage(run, rows[0].offset_bytes, b"\xff" * 512)
    with pytest.raises(VideoError, match="unreadable"):
        read_sample(run, rows[0])
    run.write_bytes(f"{SHARD}.tar", run.read_bytes(f"{SHARD}.tar")[: rows[3].offset_bytes + 1000])
    with pytest.raises(VideoError, match="truncated"):
        read_sample(run, rows[3])
    run.remove(f"{SHARD}.tar")
    with pytest.raises(VideoError, match="unreadable"):
        read_sample(run, rows[3])


def test_index_that_points_at_another_clip_is_detected(run: RunFolder) -> None:
    rows = fill(run)
    wrong = dataclasses.replace(rows[0], offset_bytes=rows[1].offset_bytes, num_bytes=rows[1].num_bytes)
    with pytest.raises(VideoError, match="is in its place"):
        read_sample(run, wrong)


def test_plain_webdataset_and_tarfile_open_the_shard(tmp_path: Path) -> None:
    rows = fill(RunFolder(str(tmp_path)))
    path = str(tmp_path / f"{SHARD}.tar")
    found = list(webdataset.WebDataset(path, shardshuffle=False))
    assert [s["__key__"] for s in found] == [r.clip_id for r in rows]
    assert {"mp4", "json", "txt"} <= set(found[0])
    with tarfile.open(path) as archive:
        assert len(archive.getnames()) == 12
        assert {(m.mtime, m.uid, m.gid) for m in archive} == {(0, 0, 0)}


def test_latent_comes_back_as_float16(run: RunFolder) -> None:
    rows = fill(run, 2)
    latents = [np.random.default_rng(i).standard_normal((4, 3, 8, 14)).astype(np.float32) for i in range(2)]
    made = [latent_entry(r, x, num_latent_tokens=336) for r, x in zip(rows, latents)]
    write_latents_shard(run, "latents/patch/9f-64x112-8fps/000000", made, plan_hash="p")
    found = from_table(build_latents_index(run, "patch"), LatentSample)
    latent = read_latent(run, found[1])
    assert latent.dtype == np.float16
    assert np.array_equal(latent, latents[1].astype(np.float16))
    with pytest.raises(VideoError, match="index says"):
        read_latent(run, dataclasses.replace(found[1], latent_frames=2))
