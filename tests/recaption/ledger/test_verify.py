"""Each kind of damage to a small complete run folder is reported, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from recaption.captions.repeated import REPEATED_SCHEMA
from recaption.captions.sets import default_caption_set
from recaption.dedup.fingerprints import ClipFingerprint
from recaption.dedup.near_duplicates import PAIRS_SCHEMA
from recaption.inputs.lists.listed import ListedSpan
from recaption.ledger.latent_statistics import STATISTICS_KEY, ChannelStatistics, merge_shard_statistics
from recaption.ledger.ledger import CLIPS_SCHEMA, REJECTED_SCHEMA, SHARD_SCHEMA, build_ledger
from recaption.ledger.problems import PROBLEM_KINDS
from recaption.ledger.removed import UNFINISHED
from recaption.ledger.spans import SPANS_SCHEMA, span_row
from recaption.ledger.verify import LATENT_SAMPLE_SCHEMA, verify
from recaption.quality.filters import FilterThresholds
from recaption.records import Caption, ClipEmbedding, ClipPreview, Sample, Video, from_table, schema_of, to_table
from recaption.run_folder import RunFolder

THRESHOLDS = dataclasses.replace(
    FilterThresholds(**{field.name: None for field in dataclasses.fields(FilterThresholds)}),
    min_sharpness=20.0,
    drop_duplicates=True,
)
BUCKET = "9f-96x96-8fps"
SHARD = f"shards/{BUCKET}/000000"
CAPTIONS = "captions/first/part-00000.parquet"
FRAMES_PER_CLIP = 24
BLURRY = "aaaaaaaaaaaaaaaa-0000048-0000072"
"""The clip of the run below that the filters drop."""


def clip_row(video_id: str, uri: str, index: int, **changes: object) -> dict[str, object]:
    start, end = index * FRAMES_PER_CLIP, (index + 1) * FRAMES_PER_CLIP
    row: dict[str, object] = dict.fromkeys(CLIPS_SCHEMA.names)
    row |= {"clip_id": f"{video_id}-{start:07d}-{end:07d}", "video_id": video_id, "uri": uri, "shot_index": index}
    row |= {"start_frame": start, "end_frame": end, "start_seconds": start / 24, "end_seconds": end / 24}
    return (
        row | {"width_px": 128, "height_px": 96, "fps": 24.0, "motion": 0.5, "sharpness": 99.0, "luma": 0.5} | changes
    )


def tar_of(samples: list[tuple[str, dict[str, bytes]]]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Bytes of a tar, and (offset, size) by key."""
    sink, spans = io.BytesIO(), {}
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            start = tar.offset
            for extension, payload in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(payload)
                tar.addfile(member, io.BytesIO(payload))
            spans[key] = (start, tar.offset - start)
    return sink.getvalue(), spans


def members_of(clip_id: str, text: str) -> dict[str, bytes]:
    return {"mp4": f"pixels of {clip_id}".encode() * 40, "json": b'{"fps": 8}', "txt": text.encode()}


def write_shard(run: RunFolder, name: str, samples: list[tuple[str, dict[str, bytes]]]) -> list[Sample]:
    payload, spans = tar_of(samples)
    rows = [
        Sample(
            clip_id=key,
            shard=f"{name}.tar",
            offset_bytes=spans[key][0],
            num_bytes=spans[key][1],
            bucket=BUCKET,
            num_frames=9,
            height_px=96,
            width_px=96,
            fps=8,
            num_latent_tokens=432,
            num_caption_tokens=5,
            caption=members.get("txt", b"").decode(),
            sha256=hashlib.sha256(members.get("mp4", b"")).hexdigest(),
        )
        for key, members in samples
    ]
    table = [dataclasses.asdict(row) | {"status": "ok", "reason": None} for row in rows]
    run.write_bytes(f"{name}.tar", payload)
    digest = hashlib.sha256(payload).hexdigest()
    run.write_table(f"{name}.parquet", pa.Table.from_pylist(table, schema=SHARD_SCHEMA), {"tar_sha256": digest})
    return rows


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Two readable videos, a failed one and a copy of the second; 3 + 2 + 2 clips: four in one shard, one blurry."""
    run = RunFolder(str(tmp_path / "run"))
    ids = {"a.mp4": "aaaaaaaaaaaaaaaa", "b.mp4": "bbbbbbbbbbbbbbbb", "copy of b.mp4": "bbbbbbbbbbbbbbbb"}
    clips = [clip_row(ids["a.mp4"], "a.mp4", i) for i in range(3)]
    clips[2]["sharpness"] = 3.0
    clips += [clip_row(ids[uri], uri, i) for uri in ("b.mp4", "copy of b.mp4") for i in range(2)]
    videos = [
        Video(video_id=ids[uri], uri=uri, num_frames=n * 24, duration_seconds=float(n))
        for uri, n in (("a.mp4", 3), ("b.mp4", 2), ("copy of b.mp4", 2))
    ]
    bad = Video(video_id="c" * 16, uri="cut.mp4", duration_seconds=4.5, status="failed", reason="truncated", detail="-")
    run.write_table("inputs.parquet", pa.table({"uri": [v.uri for v in [*videos, bad]], "part": [0] * 4}))
    run.write_table("videos/part-00000.parquet", to_table([*videos, bad], Video), {"recipe_hash": "p1"})
    run.write_table("clips/part-00000.parquet", pa.Table.from_pylist(clips, schema=CLIPS_SCHEMA), {"recipe_hash": "p1"})
    texts = {str(c["clip_id"]): f"a text about {c['clip_id']}" for c in [*clips[:2], *clips[3:5]]}
    captions = [Caption(clip_id=key, text=text, recipe_hash="c1", captioner="tiny@0") for key, text in texts.items()]
    run.write_table(CAPTIONS, to_table(captions, Caption), {"recipe_hash": "c1"})
    rows = write_shard(run, SHARD, [(key, members_of(key, text)) for key, text in texts.items()])
    run.write_table("index.parquet", to_table(rows, Sample))
    run.write_table("shards/rejected.parquet", REJECTED_SCHEMA.empty_table(), {"set": "first"})
    run.write_table("captions/first/repeated.parquet", REPEATED_SCHEMA.empty_table())
    run.write_table("previews/part-00000.parquet", schema_of(ClipPreview).empty_table())
    run.write_table("fingerprints/part-00000.parquet", schema_of(ClipFingerprint).empty_table())
    return run


def rewrite(run: RunFolder, name: str, change) -> None:
    """Change a table's rows (list of dicts) in place, metadata kept."""
    table = run.read_table(name)
    rows = table.to_pylist()
    changed = change(rows) or rows
    run.write_table(name, pa.Table.from_pylist(changed, schema=table.schema), run.table_metadata(name))


def set_value(row: int, column: str, value: object):
    return lambda rows: rows[row].__setitem__(column, value)


def drop_row(row: int):
    return lambda rows: [r for i, r in enumerate(rows) if i != row]


def overwrite(run: RunFolder, name: str, at: int, payload: bytes) -> None:
    old = run.read_bytes(name)
    run.write_bytes(name, old[:at] + payload + old[at + len(payload) :])


def rewrite_shard(run: RunFolder, change) -> None:
    """Change the samples [(key, members)] of the shard; table and index follow."""
    samples = []
    with tarfile.open(fileobj=io.BytesIO(run.read_bytes(f"{SHARD}.tar"))) as tar:
        members = [(m.name.partition("."), tar.extractfile(m).read()) for m in tar]
    for key in dict.fromkeys(name[0] for name, _ in members):
        samples.append((key, {name[2]: payload for name, payload in members if name[0] == key}))
    samples = change(samples) or samples
    run.write_table("index.parquet", to_table(write_shard(run, SHARD, samples), Sample))


# --- build_ledger -----------------------------------------------------------------------------------------------------


def test_a_complete_run_adds_up_and_verifies(run: RunFolder) -> None:
    summary = build_ledger(run, THRESHOLDS).summary()
    assert verify(run, THRESHOLDS) == []
    assert summary["videos"] == {"total": 4, "ok": 3, "failed": 1, "waiting": 0}
    assert summary["clips"]["total"] == 7
    assert summary["clips"]["kept"] == summary["clips"]["in_shard"] == 4
    assert summary["clips"]["dropped"] == {"blurry": 1, "duplicate": 2}
    assert summary["seconds"] == {"total": 11.5, "kept": 4.0, "dropped": 3.0, "failed": 4.5, "truncated": 0.0}
    assert summary["failures"] == [{"uri": "cut.mp4", "reason": "truncated", "detail": "-"}]
    json.dumps(summary)


def test_an_empty_run_folder_has_an_empty_ledger(tmp_path: Path) -> None:
    empty = RunFolder(str(tmp_path / "none"))
    assert build_ledger(empty, THRESHOLDS).summary()["seconds"] == {
        "total": 0.0,
        "kept": 0.0,
        "dropped": 0.0,
        "failed": 0.0,
        "truncated": 0.0,
    }
    assert verify(empty, THRESHOLDS) == []


def test_the_same_on_an_object_store(run: RunFolder) -> None:
    remote = RunFolder("memory://ledger-test")
    for name in run.list("**/*"):
        if run.fs.isfile(run.path(name)):
            remote.write_bytes(name, run.read_bytes(name))
    assert build_ledger(remote, THRESHOLDS) == build_ledger(run, THRESHOLDS)
    assert verify(remote, THRESHOLDS) == []
    remote.write_bytes(f"{SHARD}.tar", remote.read_bytes(f"{SHARD}.tar")[:-7000])
    assert [p.kind for p in verify(remote, THRESHOLDS)] == ["shard_broken"]


@pytest.mark.parametrize(
    ("gone", "waiting"),
    [(("shards", "index.parquet"), {"shard": 4}), (("shards", "index.parquet", "captions"), {"caption": 4})],
)
def test_clips_wait_for_stages_that_have_not_run_which_is_no_problem(run: RunFolder, gone, waiting) -> None:
    for name in gone:
        run.remove(name)
    summary = build_ledger(run, THRESHOLDS).summary()
    assert summary["clips"]["waiting"] == waiting
    assert summary["clips"]["kept"] == 4
    assert verify(run, THRESHOLDS) == []


def test_bad_captions_missing_buckets_and_failed_transcodes_each_have_a_state(run: RunFolder) -> None:
    rows = from_table(run.read_table("index.parquet"), Sample)
    bad, no_bucket, failed = (row.clip_id for row in rows[:3])
    rewrite(run, CAPTIONS, set_value(0, "reason", "bad_caption"))
    rejected = [{"clip_id": no_bucket, "reason": "no_bucket"}]
    run.write_table("shards/rejected.parquet", pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA))
    rewrite_shard(run, lambda samples: [s for s in samples if s[0] not in (bad, no_bucket, failed)])
    row = dataclasses.asdict(rows[2]) | {"status": "failed", "reason": "decode_timeout"}
    rewrite(run, f"{SHARD}.parquet", lambda old: [*old, row])
    summary = build_ledger(run, THRESHOLDS).summary()
    assert summary["clips"]["dropped"] == {"bad_caption": 1, "blurry": 1, "duplicate": 2, "no_bucket": 1}
    assert summary["clips"]["failed"] == {"decode_timeout": 1}
    assert summary["clips"]["kept"] + 5 + 1 == summary["clips"]["total"]
    assert summary["seconds"] == {"total": 11.5, "kept": 1.0, "dropped": 5.0, "failed": 5.5, "truncated": 0.0}
    assert [failure["clip_id"] for failure in summary["clip_failures"]] == [failed]
    assert verify(run, THRESHOLDS) == []


def test_the_caption_set_of_the_shards_is_the_default(run: RunFolder) -> None:
    table = run.read_table(CAPTIONS)
    rows = [row | {"text": "another text", "reason": "bad_caption"} for row in table.to_pylist()]
    run.write_table("captions/second/part-00000.parquet", pa.Table.from_pylist(rows, schema=table.schema))
    assert default_caption_set(run) == "first"
    assert build_ledger(run, THRESHOLDS).summary()["clips"]["in_shard"] == 4
    for name in ("shards", "index.parquet"):
        run.remove(name)
    assert default_caption_set(run) == "second"
    assert build_ledger(run, THRESHOLDS, "first").summary()["clips"]["waiting"] == {"shard": 4}
    assert build_ledger(run, THRESHOLDS, "second").summary()["clips"]["dropped"]["bad_caption"] == 4


def test_clips_of_a_part_that_was_killed_before_its_commit_do_not_count(run: RunFolder) -> None:
    row = clip_row("d" * 16, "d.mp4", 0)
    run.write_table("clips/part-00001.parquet", pa.Table.from_pylist([row], schema=CLIPS_SCHEMA), {"recipe_hash": "p1"})
    assert build_ledger(run, THRESHOLDS).summary()["clips"]["total"] == 7
    assert verify(run, THRESHOLDS) == []


def test_changing_a_threshold_changes_states_without_touching_files(run: RunFolder) -> None:
    off = dataclasses.replace(THRESHOLDS, min_sharpness=None)
    assert build_ledger(run, THRESHOLDS).summary()["clips"]["dropped"]["blurry"] == 1
    assert "blurry" not in build_ledger(run, off).summary()["clips"]["dropped"]


def test_texts_that_came_with_the_video_do_not_count_as_captioned(run: RunFolder) -> None:
    for name in ("shards", "index.parquet"):
        run.remove(name)
    rewrite(run, CAPTIONS, set_value(0, "source", "original"))
    assert build_ledger(run, THRESHOLDS).summary()["clips"]["waiting"] == {"caption": 1, "shard": 3}


# --- verify: one damage, one kind of problem --------------------------------------------------------------------------


def first_text_at(run: RunFolder) -> int:
    return run.read_bytes(f"{SHARD}.tar").index(b"a text about")


def flip_mp4(run: RunFolder) -> None:
    overwrite(run, f"{SHARD}.tar", run.read_bytes(f"{SHARD}.tar").index(b"pixels of") + 5, b"?")


def cut_shard(num_bytes: int):
    return lambda run: run.write_bytes(f"{SHARD}.tar", run.read_bytes(f"{SHARD}.tar")[:num_bytes])


def end_of_members(run: RunFolder) -> int:
    last = run.read_table("index.parquet").to_pylist()[-1]
    return last["offset_bytes"] + last["num_bytes"]


def second_header_destroyed(run: RunFolder) -> None:
    overwrite(run, f"{SHARD}.tar", run.read_table("index.parquet").to_pylist()[1]["offset_bytes"], b"\xff" * 200)


def same_clip_in_a_second_shard(run: RunFolder) -> None:
    rows = from_table(run.read_table("index.parquet"), Sample)
    more = write_shard(
        run, f"shards/{BUCKET}/000001", [(rows[0].clip_id, members_of(rows[0].clip_id, rows[0].caption))]
    )
    run.write_table("index.parquet", to_table([*rows, *more], Sample))


def members_apart(run: RunFolder) -> None:
    """The first sample's .txt moves to the end of the tar."""
    with tarfile.open(fileobj=io.BytesIO(run.read_bytes(f"{SHARD}.tar"))) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar]
    members.append(members.pop(2))
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member, payload in members:
            tar.addfile(member, io.BytesIO(payload))
    run.write_bytes(f"{SHARD}.tar", sink.getvalue())
    shift = members[-1][0].size + (-members[-1][0].size) % 512 + 512
    for name in (f"{SHARD}.parquet", "index.parquet"):
        rewrite(run, name, lambda rows: [r.update(offset_bytes=r["offset_bytes"] - shift) for r in rows[1:]] and rows)


def extra_sample(run: RunFolder) -> None:
    rewrite_shard(run, lambda samples: [*samples, ("unlisted", members_of("unlisted", "x"))])
    for name in (f"{SHARD}.parquet", "index.parquet"):
        rewrite(run, name, drop_row(4))


def unknown_clip(run: RunFolder) -> None:
    rewrite_shard(run, lambda samples: [*samples, ("unknown", members_of("unknown", "x"))])


def dropped_clip(run: RunFolder) -> None:
    rewrite(run, "clips/part-00000.parquet", set_value(0, "sharpness", 1.0))


def second_captions_part(run: RunFolder, recipe_hash_of_part: str, **changes: object) -> None:
    row = (
        run.read_table(CAPTIONS).slice(0, 1).to_pylist()[0] | {"clip_id": "aaaaaaaaaaaaaaaa-0000048-0000072"} | changes
    )
    table = pa.Table.from_pylist([row], schema=schema_of(Caption))
    run.write_table("captions/first/part-00001.parquet", table, {"recipe_hash": recipe_hash_of_part})


def caption_lost(run: RunFolder) -> None:
    rewrite(run, CAPTIONS, drop_row(3))
    rewrite_shard(run, lambda samples: samples[:3])


def caption_part_lost(run: RunFolder) -> None:
    """The other part of the set, without captions, still exists."""
    run.write_table("captions/first/part-00001.parquet", schema_of(Caption).empty_table(), {"recipe_hash": "c1"})
    run.remove(CAPTIONS)


def embeddings(run: RunFolder, part: int, clip_ids: list[str]) -> None:
    rows = [ClipEmbedding(clip_id=clip_id, embedding=b"xx") for clip_id in clip_ids]
    run.write_table(f"embeddings/first/part-0000{part}.parquet", to_table(rows, ClipEmbedding), {"recipe_hash": "c1"})
    run.write_table("duplicates/semantic-first.parquet", PAIRS_SCHEMA.empty_table())


def latents(run: RunFolder, change) -> None:
    """A whole shard of latents with index and statistics, its tar changed after everything was written."""
    clip_id = "aaaaaaaaaaaaaaaa-0000000-0000024"
    payload, spans = tar_of([(clip_id, {"npy": b"x" * 600, "json": b"{}"})])
    row = run.read_table(f"{SHARD}.parquet").to_pylist()[0] | {"sha256": hashlib.sha256(b"x" * 600).hexdigest()}
    name = f"latents/patch/{BUCKET}/000000"
    row |= {"offset_bytes": spans[clip_id][0], "num_bytes": spans[clip_id][1], "shard": f"{name}.tar"}
    metadata = {STATISTICS_KEY: ChannelStatistics(2, (0.5,), (0.5,)).to_json(), "num_samples": "1"}
    run.write_table(f"{name}.parquet", pa.Table.from_pylist([row], schema=SHARD_SCHEMA), metadata)
    indexed = {**row, "latent_dtype": "float16", "round_trip_psnr_db": 30.0}
    run.write_table("latents/patch/index.parquet", pa.Table.from_pylist([indexed], schema=LATENT_SAMPLE_SCHEMA))
    run.write_bytes("latents/patch/statistics.json", merge_shard_statistics(run, "latents/patch"))
    run.write_bytes(f"{name}.tar", payload)
    assert verify(run, THRESHOLDS) == []
    run.remove(f"{name}.tar")
    if changed := change(payload):
        run.write_bytes(f"{name}.tar", changed)


def latents_with_statistics(run: RunFolder, stated: str) -> None:
    """A whole shard of latents whose statistics.json differs from its table."""
    latents(run, lambda payload: payload)
    run.write_bytes("latents/patch/statistics.json", stated.encode())


def statistics_lost(run: RunFolder) -> None:
    """The table of a shard of latents without the statistics in its metadata."""
    latents_with_statistics(run, "")
    name = f"latents/patch/{BUCKET}/000000.parquet"
    run.write_table(name, run.read_table(name), {"num_samples": "1"})


def latent_dtypes_lost(run: RunFolder) -> None:
    """An index of latents that lacks a column of its records."""
    latents_with_statistics(run, "")
    name = "latents/patch/index.parquet"
    run.write_table(name, run.read_table(name).drop_columns(["latent_dtype"]))


def text_part(run: RunFolder, encoded: bytes) -> None:
    """A file of encoded texts that is not one."""
    run.write_table("text/t5-x/part-00000.parquet", pa.table({"text": ["a text"]}))
    run.write_bytes("text/t5-x/part-00000.safetensors", encoded)
    manifest = {"spec": "t5:x", "dtype": "float16", "weights_hash": "w", "num_parts": 1}
    counts = dict.fromkeys(("width", "pooled_width", "num_texts", "num_tokens"), 1)
    run.write_bytes("text/t5-x/encoder.json", json.dumps(manifest | counts).encode())


def write_spans(run: RunFolder, uri: str, clip_ids: list[str]) -> None:
    """As if a list had a row for the first video."""
    rewrite(run, VIDEOS, set_value(0, "list_hash", "h"))
    row = span_row(ListedSpan(uri=uri, list_uri="l.csv", row=0), video_id="a" * 16, clip_ids=clip_ids)
    table = pa.Table.from_pylist([row], schema=SPANS_SCHEMA)
    run.write_table("spans/part-00000.parquet", table, {"recipe_hash": "p1"})


def cut_by_list(run: RunFolder, change) -> None:
    rewrite(run, VIDEOS, set_value(0, "is_cut_by_list", True))
    assert verify(run, THRESHOLDS) == []
    change()


VIDEOS = "videos/part-00000.parquet"
DAMAGE = {
    "span_missing": lambda run: write_spans(run, "b.mp4", []),
    "span_without_clip": lambda run: write_spans(run, "a.mp4", ["gone"]),
    "part_missing: spans": lambda run: rewrite(run, VIDEOS, set_value(0, "list_hash", "h")),
    "part_unreadable: listed": lambda run: run.write_bytes("listed/part-00000.parquet", b"?"),
    "seconds_do_not_add_up: of a list": lambda run: cut_by_list(
        run, lambda: rewrite(run, VIDEOS, set_value(0, "outside_seconds", 1.0))
    ),
    "clips_do_not_tile: of a list": lambda run: cut_by_list(
        run, lambda: rewrite(run, VIDEOS, set_value(0, "num_frames", 50))
    ),
    "removal_unfinished": lambda run: run.write_bytes(UNFINISHED, b""),
    "temporary_file": lambda run: Path(run.path("clips/part-00000.parquet.0a1b2c3d.tmp")).touch(),
    "part_unreadable: cut": lambda run: run.write_bytes(
        "clips/part-00000.parquet", run.read_bytes("clips/part-00000.parquet")[:-100]
    ),
    "part_unreadable: empty": lambda run: run.write_bytes("videos/part-00000.parquet", b""),
    "part_unreadable: a column is gone": lambda run: run.write_table(
        CAPTIONS, run.read_table(CAPTIONS).drop_columns(["clip_id"])
    ),
    "part_unreadable: index": lambda run: run.write_bytes("index.parquet", b"PAR1" * 20),
    "part_unreadable: shard table": lambda run: run.write_bytes(f"{SHARD}.parquet", b"PAR1 nothing PAR1"),
    "part_unreadable: previews": lambda run: run.write_bytes("previews/part-00000.parquet", b"?"),
    "recipe_mixed: parts": lambda run: second_captions_part(run, "c2", recipe_hash="c2"),
    "recipe_mixed: rows": lambda run: second_captions_part(run, "c1", recipe_hash="c2"),
    "input_missing": lambda run: rewrite(run, "videos/part-00000.parquet", drop_row(3)),
    "video_twice": lambda run: rewrite(run, "videos/part-00000.parquet", lambda rows: [*rows, rows[0]]),
    "input_missing: the list": lambda run: run.remove("inputs.parquet"),
    "part_missing": lambda run: [
        run.write_table("previews/part-00001.parquet", schema_of(ClipPreview).empty_table()),
        run.remove("previews/part-00000.parquet"),
    ],
    "part_missing: all previews": lambda run: run.remove("previews"),
    "part_missing: repeated captions": lambda run: run.remove("captions/first/repeated.parquet"),
    "part_missing: rejects": lambda run: run.remove("shards/rejected.parquet"),
    "part_missing: semantic pairs": lambda run: [
        embeddings(run, 0, [row["clip_id"] for row in run.read_table(CAPTIONS).to_pylist()]),
        run.remove("duplicates/semantic-first.parquet"),
    ],
    "part_missing: the encoder": lambda run: run.write_bytes("text/t5-x/part-00000.safetensors", b""),
    "embedding_missing: all": lambda run: [embeddings(run, 0, []), run.remove("embeddings")],
    "caption_missing: the whole set": lambda run: run.remove("captions/first"),
    "path_outside": lambda run: rewrite(run, "index.parquet", set_value(0, "shard", "../other-run/000000.tar")),
    "index_missing: of latents": lambda run: [
        latents(run, lambda payload: payload),
        run.remove("latents/patch/index.parquet"),
    ],
    "clip_id_wrong": lambda run: rewrite(
        run, "clips/part-00000.parquet", set_value(2, "clip_id", "aaaaaaaaaaaaaaaa-0000048-0000071")
    ),
    "clip_without_video": lambda run: rewrite(
        run,
        "clips/part-00000.parquet",
        lambda rows: [*rows, clip_row("f" * 16, "f.mp4", 0, sharpness=1.0)],
    ),
    "clips_do_not_tile: a hole": lambda run: rewrite(run, "clips/part-00000.parquet", drop_row(5)),
    "clips_do_not_tile: no end": lambda run: rewrite(run, "clips/part-00000.parquet", drop_row(2)),
    "clips_do_not_tile: overlap": lambda run: rewrite(
        run,
        "clips/part-00000.parquet",
        lambda rows: rows[2].update(start_frame=40, clip_id="aaaaaaaaaaaaaaaa-0000040-0000072"),
    ),
    "seconds_do_not_add_up": lambda run: rewrite(run, "clips/part-00000.parquet", set_value(2, "end_seconds", 3.002)),
    "caption_without_clip": lambda run: second_captions_part(run, "c1", clip_id="f" * 16 + "-0000000-0000001"),
    "caption_missing": caption_lost,
    "caption_missing: of a sample": lambda run: rewrite(run, CAPTIONS, drop_row(3)),
    "caption_missing: a whole part": caption_part_lost,
    "embedding_missing: a row": lambda run: embeddings(run, 0, ["aaaaaaaaaaaaaaaa-0000000-0000024"]),
    "embedding_missing: a part": lambda run: embeddings(run, 1, []),
    "caption_changed": lambda run: rewrite(run, CAPTIONS, set_value(1, "text", "words that came later")),
    "shard_missing: tar": lambda run: run.remove(f"{SHARD}.tar"),
    "shard_missing: tar and table": lambda run: (run.remove(f"{SHARD}.tar"), run.remove(f"{SHARD}.parquet")),
    "shard_unlisted": lambda run: run.write_bytes(f"shards/{BUCKET}/000007.tar", run.read_bytes(f"{SHARD}.tar")),
    "shard_broken: inside a member": cut_shard(3000),
    "shard_broken: between two samples": lambda run: cut_shard(
        run.read_table("index.parquet").to_pylist()[2]["offset_bytes"]
    )(run),
    "shard_broken: end blocks gone": lambda run: cut_shard(end_of_members(run))(run),
    "shard_broken: one end block": lambda run: cut_shard(end_of_members(run) + 512)(run),
    "shard_broken: empty": cut_shard(0),
    "shard_broken: a header in the middle": second_header_destroyed,
    "shard_broken: latents": lambda run: latents(run, lambda payload: payload[:1500]),
    "shard_missing: latents": lambda run: latents(run, lambda payload: b""),
    "sha256_wrong: latents": lambda run: latents(run, lambda payload: payload.replace(b"xx", b"xy", 1)),
    "bytes_differ": lambda run: overwrite(
        run, f"{SHARD}.tar", run.read_bytes(f"{SHARD}.tar").index(b'{"fps": 8}'), b'{"fps": 9}'
    ),
    "keys_scattered": members_apart,
    "members_missing": lambda run: rewrite_shard(run, lambda samples: samples[1][1].pop("json") and samples),
    "sample_missing": lambda run: (
        rewrite(
            run, f"{SHARD}.parquet", lambda rows: [*rows, rows[0] | {"clip_id": "aaaaaaaaaaaaaaaa-0000048-0000072"}]
        ),
        rewrite(run, "index.parquet", lambda rows: [*rows, rows[0] | {"clip_id": "aaaaaaaaaaaaaaaa-0000048-0000072"}]),
        rewrite(run, "clips/part-00000.parquet", set_value(2, "sharpness", 99.0)),
        rewrite(run, CAPTIONS, lambda rows: [*rows, {**rows[0], "clip_id": "aaaaaaaaaaaaaaaa-0000048-0000072"}]),
    ),
    "sample_unlisted": extra_sample,
    "offset_wrong": lambda run: [
        rewrite(run, name, set_value(1, "offset_bytes", 512)) for name in (f"{SHARD}.parquet", "index.parquet")
    ],
    "sha256_wrong": flip_mp4,
    "json_unreadable": lambda run: overwrite(
        run, f"{SHARD}.tar", run.read_bytes(f"{SHARD}.tar").index(b'{"fps": 8}'), b"[[[[[[[[[["
    ),
    "text_differs": lambda run: overwrite(run, f"{SHARD}.tar", first_text_at(run), b"B"),
    "clip_in_two_shards": same_clip_in_a_second_shard,
    "unknown_clip_in_shard": unknown_clip,
    "dropped_clip_in_shard": dropped_clip,
    "clip_missing_from_shards": lambda run: rewrite_shard(run, lambda samples: samples[:3]),
    "statistics_differ": lambda run: latents_with_statistics(run, '{"std": [1.0]}'),
    "statistics_differ: none in the table": statistics_lost,
    "part_unreadable: latents index": latent_dtypes_lost,
    "text_part_differs": lambda run: text_part(run, b"\x02\0\0\0\0\0\0\0{}"),
    "text_part_differs: cut": lambda run: text_part(run, b"\x02\0"),
    "index_missing": lambda run: run.remove("index.parquet"),
    "index_differs: value": lambda run: rewrite(run, "index.parquet", set_value(1, "sha256", "0" * 64)),
    "index_differs: row gone": lambda run: rewrite(run, "index.parquet", drop_row(1)),
    "index_differs: row twice": lambda run: rewrite(run, "index.parquet", lambda rows: [*rows, rows[0]]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_reported_as_one_kind_of_problem(run: RunFolder, damage: str) -> None:
    DAMAGE[damage](run)
    problems = verify(run, THRESHOLDS)
    assert {problem.kind for problem in problems} == {damage.partition(":")[0]}, problems
    assert len(problems) == (3 if damage == "embedding_missing: a row" else 1), problems
    assert all(problem.where and problem.detail for problem in problems)


FOUND_BY_DECODING = {"caption_of_other_clip", "clip_score_differs", "captions_shuffled"}
FOUND_BY_DECODING |= {"source_changed", "sample_of_other_clip"}
"""tests/jobs/verify/test_verify.py"""


def test_every_kind_of_problem_has_a_damage_above() -> None:
    assert {name.partition(":")[0] for name in DAMAGE} | FOUND_BY_DECODING == set(PROBLEM_KINDS)
