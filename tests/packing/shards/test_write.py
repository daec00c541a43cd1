from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packing.buckets import Bucket, BucketTable, bucket_name
from packing.shards.index import build_index, build_latents_index, is_committed, remove_stale_shards
from packing.shards.plan import PlannedShard, ShardClip, plan_hash, plan_shards
from packing.shards.samples import Entry, LatentSample, failed_entry, latent_entry, latent_shard_name, video_entry
from packing.shards.write import write_latents_shard, write_shard
from recaption.errors import UsageError
from recaption.records import Sample, from_table, schema_of
from recaption.run_folder import RunFolder

BUCKET = Bucket(9, 64, 112, 8)


def clip(number: int, **changes: object) -> ShardClip:
    values: dict = {
        "clip_id": f"{number:016x}-0000000-0000048",
        "uri": f"/videos/{number}.mp4",
        "start_frame": 0,
        "end_frame": 48,
        "start_seconds": 0.0,
        "end_seconds": 2.0,
        "width_px": 1920,
        "height_px": 1080,
        "caption": f"Clip {number}, ünïcode.",
        "num_caption_tokens": 5,
    }
    return ShardClip(**(values | changes))


def planned(num_clips: int, name: str = "shards/9f-64x112-8fps/000000") -> PlannedShard:
    return PlannedShard(name=name, bucket=BUCKET, clips=tuple(clip(i) for i in range(num_clips)))


def fake_mp4(number: int) -> bytes:
    return np.random.default_rng(number).bytes(100 + 700 * number)


def entries(shard: PlannedShard, failed: tuple[int, ...] = ()) -> Iterator[Entry]:
    for number, c in enumerate(shard.clips):
        if number in failed:
            yield failed_entry(c, shard.bucket, reason="decode_timeout", detail="60 s")
        else:
            yield video_entry(c, shard.bucket, fake_mp4(number), num_latent_tokens=336)


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def ustar(members: list[tuple[str, bytes]]) -> bytes:
    """The same members written by plain tarfile: the format is standard."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    return sink.getvalue()


# --- plan -----------------------------------------------------------------------------------------------------------


@given(st.permutations(range(23)))
def test_plan_does_not_depend_on_the_order_of_clips(order: list[int]) -> None:
    clips = [clip(i, width_px=1080 if i % 3 else 1920, end_seconds=1.0 if i == 7 else 2.0) for i in range(23)]
    table = BucketTable(num_frames=(9,), max_samples_per_shard=4)
    assert plan_shards([clips[i] for i in order], table) == plan_shards(clips, table)


def test_every_clip_is_in_one_shard_or_rejected_with_a_reason() -> None:
    clips = [clip(i, end_seconds=i / 8, width_px=64 + 16 * (i % 4), height_px=8 if i == 30 else 96) for i in range(60)]
    shards, rejects = plan_shards(clips, BucketTable(max_samples_per_shard=3))
    placed = [c.clip_id for shard in shards for c in shard.clips]
    assert sorted(placed + [r.clip_id for r in rejects]) == [c.clip_id for c in clips]
    assert len(rejects) == 10
    assert {r.reason for r in rejects} == {"no_bucket"}
    assert all(len(shard.clips) <= 3 for shard in shards)
    assert all(shard.name.startswith(f"shards/{bucket_name(shard.bucket)}/") for shard in shards)
    assert len({shard.name for shard in shards}) == len(shards)


def test_large_samples_make_smaller_shards() -> None:
    table = BucketTable(max_areas_px=(480 * 480,), max_shard_bytes=4_000_000)
    shards, _ = plan_shards([clip(i, end_seconds=5.0) for i in range(10)], table)
    assert [len(s.clips) for s in shards] == [2, 2, 2, 2, 2]


def test_duplicate_clip_or_malformed_key_is_refused() -> None:
    with pytest.raises(UsageError, match="listed twice"):
        plan_shards([clip(1), clip(1)], BucketTable())
    with pytest.raises(UsageError, match="no dots"):
        plan_shards([clip(1, clip_id="a.b")], BucketTable())


def test_hash_changes_with_captions_and_recipe_but_not_with_paths() -> None:
    shard = planned(2)

    def changed(**fields: object) -> PlannedShard:
        return PlannedShard(name=shard.name, bucket=BUCKET, clips=(clip(0, **fields), clip(1)))

    base = plan_hash(shard, "recipe")
    assert plan_hash(changed(uri="/elsewhere.mp4"), "recipe") == base
    assert plan_hash(changed(caption="other"), "recipe") != base
    assert plan_hash(shard, "other") != base


# --- write ----------------------------------------------------------------------------------------------------------


def test_tar_is_plain_ustar_and_the_same_every_time(run: RunFolder) -> None:
    shard = planned(3)
    write_shard(run, shard.name, entries(shard), plan_hash="p")
    first = run.read_bytes(f"{shard.name}.tar"), run.read_bytes(f"{shard.name}.parquet")
    members = []
    for entry in entries(shard):
        members += [(f"{entry.key}.{e}", entry.members[e]) for e in ("json", "mp4", "txt")]
    assert first[0] == ustar(members)
    write_shard(run, shard.name, entries(shard), plan_hash="p")
    assert first == (run.read_bytes(f"{shard.name}.tar"), run.read_bytes(f"{shard.name}.parquet"))


def test_rows_have_the_offset_of_each_sample(run: RunFolder) -> None:
    shard = planned(4)
    report = write_shard(run, shard.name, entries(shard, failed=(1,)), plan_hash="p")
    assert (report.num_samples, report.rejected) == (3, {"decode_timeout": 1})
    tar = run.read_bytes(f"{shard.name}.tar")
    table = run.read_table(f"{shard.name}.parquet")
    assert table["status"].to_pylist() == ["ok", "failed", "ok", "ok"]
    assert table["reason"].to_pylist() == [None, "decode_timeout", None, None]
    for number, row in enumerate(from_table(table, Sample)):
        assert row.clip_id == clip(number).clip_id
        if number == 1:
            assert row.num_bytes == 0
            continue
        span = tar[row.offset_bytes : row.offset_bytes + row.num_bytes]
        with tarfile.open(fileobj=io.BytesIO(span), mode="r:") as archive:
            names = archive.getnames()
            description = json.load(archive.extractfile(names[0]))  # type: ignore[arg-type]
        assert names == [f"{row.clip_id}.{e}" for e in ("json", "mp4", "txt")]
        assert row.sha256 == hashlib.sha256(fake_mp4(number)).hexdigest()
        assert row.caption == description["caption"] == f"Clip {number}, ünïcode."
        assert (row.num_frames, row.height_px, row.width_px, row.fps) == (9, 64, 112, 8)


def test_write_that_fails_midway_is_not_committed_and_the_next_run_repairs_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = planned(3)
    old = [dataclasses.replace(e, members=e.members | {"mp4": e.members["mp4"][::-1]}) for e in entries(shard)]
    write_shard(run, shard.name, old, plan_hash="old")  # as many bytes as the new one: the size alone is no evidence

    def disk_full(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_table", disk_full)
        with pytest.raises(OSError, match="disk full"):
            write_shard(run, shard.name, entries(shard), plan_hash="new")
    assert not is_committed(run, shard.name, "old")  # the tar is the new one already
    assert not is_committed(run, shard.name, "new")
    write_shard(run, shard.name, entries(shard), plan_hash="new")
    assert is_committed(run, shard.name, "new")


def test_entries_that_raise_leave_the_old_shard_intact(run: RunFolder) -> None:
    shard = planned(3)
    write_shard(run, shard.name, entries(shard), plan_hash="old")

    def broken() -> Iterator[Entry]:
        yield from list(entries(shard))[:2]
        raise RuntimeError("worker died")

    with pytest.raises(RuntimeError, match="worker died"):
        write_shard(run, shard.name, broken(), plan_hash="new")
    assert is_committed(run, shard.name, "old")


def test_committed_means_same_plan_and_complete_tar(run: RunFolder) -> None:
    shard = planned(2)
    assert not is_committed(run, shard.name, "p")
    write_shard(run, shard.name, entries(shard), plan_hash="p")
    assert is_committed(run, shard.name, "p")
    assert not is_committed(run, shard.name, "q")
    run.write_bytes(f"{shard.name}.tar", run.read_bytes(f"{shard.name}.tar")[:-512])
    assert not is_committed(run, shard.name, "p")
    run.remove(f"{shard.name}.tar")
    assert not is_committed(run, shard.name, "p")


def test_shard_whose_clips_all_failed_has_rows_but_no_tar(run: RunFolder) -> None:
    shard = planned(2)
    write_shard(run, shard.name, entries(shard), plan_hash="old")
    report = write_shard(run, shard.name, entries(shard, failed=(0, 1)), plan_hash="p")
    assert report.num_samples == 0
    assert not run.exists(f"{shard.name}.tar")
    assert run.read_table(f"{shard.name}.parquet").num_rows == 2
    assert is_committed(run, shard.name, "p")
    assert build_index(run).num_rows == 0


def test_tar_that_does_not_read_back_is_never_committed(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = planned(3)
    real = tarfile.TarFile.addfile

    def flips_a_byte(self: tarfile.TarFile, info: tarfile.TarInfo, fileobj: io.BytesIO) -> None:
        payload = fileobj.read()
        real(self, info, io.BytesIO(payload[:-1] + b"?"))

    monkeypatch.setattr(tarfile.TarFile, "addfile", flips_a_byte)
    with pytest.raises(OSError, match="does not read back"):
        write_shard(run, shard.name, entries(shard), plan_hash="p")
    assert not run.exists(f"{shard.name}.tar")


def test_duplicate_key_or_unknown_reason_is_refused(run: RunFolder) -> None:
    shard = planned(1)
    with pytest.raises(UsageError, match="is there twice"):
        write_shard(run, shard.name, [*entries(shard), *entries(shard)], plan_hash="p")
    bad = failed_entry(shard.clips[0], BUCKET, reason="bad luck", detail="")
    with pytest.raises(ValueError, match="FAILURE_REASONS"):
        write_shard(run, shard.name, [bad], plan_hash="p")


# --- index ----------------------------------------------------------------------------------------------------------


def test_index_lists_ok_samples_sorted_by_shard_and_offset(run: RunFolder) -> None:
    names = ["shards/9f-64x112-8fps/000001", "shards/17f-64x112-8fps/000000", "shards/9f-64x112-8fps/000000"]
    for i, name in enumerate(names):
        shard = PlannedShard(name=name, bucket=BUCKET, clips=tuple(clip(10 * i + k) for k in range(3)))
        write_shard(run, name, entries(shard, failed=(i,)), plan_hash="p")
    table = build_index(run)
    assert table.schema.names == schema_of(Sample).names
    offsets = [(r.bucket, r.shard, r.offset_bytes) for r in from_table(table, Sample)]
    assert offsets == sorted(offsets)
    assert len(offsets) == 6
    assert run.read_table("index.parquet").num_rows == 6


def test_stale_shards_are_removed_and_planned_ones_stay(run: RunFolder) -> None:
    for number in range(3):
        shard = planned(1, f"shards/9f-64x112-8fps/{number:06d}")
        write_shard(run, shard.name, entries(shard), plan_hash="p")
    removed = remove_stale_shards(run, ["shards/9f-64x112-8fps/000001"])
    assert removed == ["shards/9f-64x112-8fps/000000", "shards/9f-64x112-8fps/000002"]
    assert run.list("shards/*/*") == ["shards/9f-64x112-8fps/000001.parquet", "shards/9f-64x112-8fps/000001.tar"]


# --- latents --------------------------------------------------------------------------------------------------------


def test_latents_mirror_the_video_shards(run: RunFolder) -> None:
    shard = planned(3)
    write_shard(run, shard.name, entries(shard), plan_hash="p")
    samples = from_table(build_index(run), Sample)
    rng = np.random.default_rng(0)
    latents = [rng.standard_normal((4, 3, 8, 14)).astype(np.float32) for _ in samples]
    latents[1][0, 0, 0, 0] = 1e6  # beyond float16
    name = latent_shard_name("patch", samples[0].shard)
    assert name == "latents/patch/9f-64x112-8fps/000000"
    made = [latent_entry(s, x, num_latent_tokens=336) for s, x in zip(samples, latents)]
    report = write_latents_shard(run, name, made, plan_hash="p")
    assert report.rejected == {"write_failed": 1}
    rows = from_table(build_latents_index(run, "patch"), LatentSample)
    assert [r.clip_id for r in rows] == [samples[0].clip_id, samples[2].clip_id]
    assert (rows[0].latent_channels, rows[0].latent_frames, rows[0].latent_height, rows[0].latent_width) == (
        4,
        3,
        8,
        14,
    )
    assert rows[0].caption == samples[0].caption


@pytest.mark.parametrize("name", ["../x", "a/b", "", "patch:4", ".hidden"])
def test_compressor_name_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="folder"):
        latent_shard_name(name, "shards/9f-64x112-8fps/000000.tar")
