"""Layout lance: the clips of an export as one Lance table; needs the extra `recaption[lance]`."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from jobs.export import worker
from jobs.export.files.lance_table import commit, has_files, write_fragments
from recaption.errors import UsageError
from recaption.run_folder import RunFolder

NUM_CLIPS = 8


def holds(folder: Path, content: bytes) -> bool:
    return any(content in path.read_bytes() for path in (folder / "clips.lance").rglob("*") if path.is_file())


def blobs_of(folder: Path) -> list[bytes]:
    import lance

    dataset = lance.dataset(str(folder / "clips.lance"))
    return [blob.read() for blob in dataset.take_blobs("video", indices=[*range(dataset.count_rows())])]


def data_files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "clips.lance").rglob("*") if path.is_file()}


def test_without_the_package_the_command_says_what_to_install(exported, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "lance", None)
    with pytest.raises(UsageError, match=r"pip install 'recaption\[lance\]'"):
        exported(tmp_path / "out", "lance")
    assert not (tmp_path / "out").exists()


def test_lance_reads_clips_and_columns(exported, tmp_path):
    lance = pytest.importorskip("lance")
    exported(tmp_path / "out", "lance")
    rows = RunFolder(str(tmp_path / "out")).read_table("clips.parquet").to_pylist()
    dataset = lance.dataset(str(tmp_path / "out/clips.lance"))
    table = dataset.to_table(columns=["clip_id", "caption", "captions", "num_frames"])
    assert table["clip_id"].to_pylist() == [row["clip_id"] for row in rows]
    assert table["caption"].to_pylist() == [row["caption"] for row in rows]
    assert table["captions"][-1].as_py()["original"] == "the text that came with it"
    blobs = dataset.take_blobs("video", indices=[*range(NUM_CLIPS)])
    assert [hashlib.sha256(blob.read()).hexdigest() for blob in blobs] == [row["sha256"] for row in rows]
    motion = dataset.to_table(columns=["scores"], filter="scores.motion >= 0.0")
    assert motion.num_rows == NUM_CLIPS


def test_a_killed_export_goes_on(exported, tmp_path, monkeypatch):
    lance = pytest.importorskip("lance")
    real, calls = worker.write_fragments, []

    def dies_at_the_second(uri, rows):
        calls.append(uri)
        if len(calls) == 2:
            next(rows)
            raise KeyboardInterrupt
        return real(uri, rows)

    out = tmp_path / "out"
    monkeypatch.setattr(worker, "write_fragments", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        exported(out, "lance")
    monkeypatch.setattr(worker, "write_fragments", real)
    summary = exported(out, "lance")
    assert (summary["computed_parts"], summary["skipped_parts"]) == (2, 1)
    assert lance.dataset(str(out / "clips.lance")).count_rows() == NUM_CLIPS

    before = data_files(out)
    assert exported(out, "lance")["computed_parts"] == 0
    assert data_files(out) == before  # nothing was committed again

    next((out / "clips.lance/data").glob("*.lance")).unlink()
    assert exported(out, "lance")["computed_parts"] == 1
    assert len(data_files(out)) == len(before)


def test_clips_that_are_dropped_leave_no_byte(exported, export_recipe, tmp_path):
    lance = pytest.importorskip("lance")
    out = tmp_path / "out"
    exported(out, "lance")
    ids = lance.dataset(str(out / "clips.lance")).to_table(columns=["clip_id"])["clip_id"].to_pylist()
    clips = dict(zip(ids, blobs_of(out), strict=True))
    filters = dataclasses.replace(export_recipe.filters, min_seconds=1.8)
    exported(out, "lance", recipe=dataclasses.replace(export_recipe, filters=filters))
    kept = set(lance.dataset(str(out / "clips.lance")).to_table(columns=["clip_id"])["clip_id"].to_pylist())
    assert len(kept) == 6
    assert {clip_id for clip_id, mp4 in clips.items() if holds(out, mp4)} == kept


@pytest.mark.parametrize("num_bytes", [1_000, 300_000, 5_000_000])
def test_tables_of_other_parts_leave_nothing_of_earlier_ones(exported, tmp_path, num_bytes):
    """Lance keeps small blobs beside the other columns, larger ones in files of their own."""
    lance = pytest.importorskip("lance")
    exported(tmp_path / "out", "lance")
    rows = RunFolder(str(tmp_path / "out")).read_table("clips.parquet").to_pylist()[:3]
    videos = [np.random.default_rng(seed).bytes(num_bytes) for seed in range(3)]
    folder = RunFolder(str(tmp_path / "table"))
    uri = f"{folder.uri}/clips.lance"
    parts = [write_fragments(uri, iter([(row, video)])) for row, video in zip(rows, videos)]
    orphan = write_fragments(uri, iter([(rows[0], np.random.default_rng(9).bytes(num_bytes))]))
    commit(folder, "clips.lance", parts)
    assert blobs_of(tmp_path / "table") == videos
    assert not has_files(folder, "clips.lance", orphan)

    commit(folder, "clips.lance", [parts[2], parts[0]])
    assert blobs_of(tmp_path / "table") == [videos[2], videos[0]]
    assert [holds(tmp_path / "table", video) for video in videos] == [True, False, True]
    assert len(lance.dataset(uri).versions()) == 1
    commit(folder, "clips.lance", [write_fragments(uri, iter([]))])
    assert not (tmp_path / "table/clips.lance").exists()
