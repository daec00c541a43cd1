"""Samples are held against their clips: another clip's pixels are found, what the codec loses is not blamed."""

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa

from jobs.verify.repair import repair_run
from jobs.verify.samples import check_samples, choose_samples
from jobs.verify.verify import verify_run
from packing.shards.read import read_sample
from packing.shards.samples import Entry
from packing.shards.write import write_shard
from recaption.records import Sample, from_table, schema_of
from recaption.video_io.reader import decode_bytes
from recaption.video_io.writer import encode_video


def samples_of(run):
    return from_table(run.read_table("index.parquet"), Sample)


def rewrite(run, change):
    """Write every shard anew as the stage would, with the members that `change(sample, members)` returns."""
    samples = samples_of(run)
    for name in sorted({sample.shard.removesuffix(".tar") for sample in samples}):
        table = f"{name}.parquet"
        plan_hash = run.table_metadata(table)["plan_hash"]
        rows = [sample for sample in samples if sample.shard == f"{name}.tar"]
        entries = []
        for sample in rows:
            members = change(sample, read_sample(run, sample))
            entries.append(Entry(key=sample.clip_id, members=members, fields=dataclasses.asdict(sample)))
        write_shard(run, name, entries, plan_hash=plan_hash)
    tables = [run.read_table(name) for name in run.list("shards/*/*.parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    rows.sort(key=lambda row: (row["bucket"], row["shard"], row["offset_bytes"]))
    metadata = run.table_metadata("index.parquet")
    run.write_table("index.parquet", pa.Table.from_pylist(rows, schema=schema_of(Sample)), metadata)


def test_samples_of_a_run_show_their_clips(small_run, small_recipe):
    check = check_samples(small_run, small_recipe, None)
    assert (check.problems, check.unchecked, check.num_compared) == ([], {}, len(samples_of(small_run)))


def test_a_sample_with_another_clips_pixels_is_found_and_repaired(run_copy, small_recipe, in_process):
    first, *_ = sorted(samples_of(run_copy), key=lambda sample: (sample.bucket, sample.clip_id))
    same_size = [s for s in samples_of(run_copy) if s.bucket == first.bucket and s != first]
    other = read_sample(run_copy, same_size[0])["mp4"]
    rewrite(run_copy, lambda sample, members: {**members, "mp4": other} if sample == first else members)
    doubled = [s for s in samples_of(run_copy) if s.sha256 == hashlib.sha256(other).hexdigest()]
    assert {s.clip_id for s in choose_samples(samples_of(run_copy), 2)} == {s.clip_id for s in doubled}
    summary = verify_run(run_copy, small_recipe, num_pairs=2)
    assert [(p["kind"], p["where"].partition(":")[2]) for p in summary["problems"]] == [
        ("sample_of_other_clip", first.clip_id)
    ]
    assert repair_run(run_copy, small_recipe, in_process, num_pairs=2)["problems"] == []


def test_a_sample_of_another_encoder_is_no_problem(run_copy, small_recipe):
    def encoded_anew(sample, members):
        frames = decode_bytes(members["mp4"]).pixels_THWC
        return {**members, "mp4": encode_video(frames, fps=sample.fps, crf=small_recipe.shard.buckets.crf)}

    rewrite(run_copy, encoded_anew)
    assert check_samples(run_copy, small_recipe, 4).problems == []


def test_a_sample_with_a_shifted_picture_is_found(run_copy, small_recipe):
    def shifted(sample, members):
        frames = np.roll(decode_bytes(members["mp4"]).pixels_THWC, 24, axis=2)
        return {**members, "mp4": encode_video(frames, fps=sample.fps, crf=small_recipe.shard.buckets.crf)}

    rewrite(run_copy, shifted)
    assert {problem.kind for problem in check_samples(run_copy, small_recipe, 4).problems} == {"sample_of_other_clip"}
