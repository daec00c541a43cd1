"""`recaption export`: every clip accounted for, the same bytes after a kill, nothing written twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.caption.caption import caption
from jobs.export import worker
from jobs.export.layouts import LAYOUTS
from jobs.prepare.prepare import prepare
from recaption.errors import UsageError
from recaption.folder_lock import FolderLock
from recaption.ledger.verdicts import VERDICT_SCHEMA
from recaption.run_folder import RunFolder
from recaption.video_io.opened_video import CutVideo, OpenedVideo
from recaption.video_io.reader import probe, read_frames

NUM_CLIPS = 8


def tree(folder) -> dict[str, str]:
    """Name -> sha256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def rows_of(folder) -> dict[str, dict]:
    return {row["clip_id"]: row for row in RunFolder(str(folder)).read_table("clips.parquet").to_pylist()}


def source_of(export_run, clip_id: str) -> str:
    return next(
        row["uri"]
        for name in export_run.list("clips/part-*.parquet")
        for row in export_run.read_table(name).to_pylist()
        if row["clip_id"] == clip_id
    )


@pytest.fixture(scope="module")
def whole_tree(export_run, export_recipe, in_process, tmp_path_factory):
    """(folder, its files) of an export that nothing disturbed; read-only."""
    from jobs.export.export import export
    from jobs.export.settings import ExportSettings

    folder = tmp_path_factory.mktemp("whole") / "out"
    export(export_run, export_recipe, ExportSettings(to="folder"), str(folder), in_process)
    return folder, tree(folder)


def test_every_clip_of_the_run_is_exported_or_counted_with_a_reason(exported, export_recipe, tmp_path):
    filters = dataclasses.replace(export_recipe.filters, min_seconds=1.8)
    recipe = dataclasses.replace(export_recipe, filters=filters)
    summary = exported(tmp_path / "out", "folder", recipe=recipe)
    counts, seconds = summary["clips"], summary["seconds"]
    assert counts == {"total": NUM_CLIPS, "exported": 6, "dropped": {"too_short": 2}, "failed": {}, "waiting": {}}
    assert seconds["total"] == pytest.approx(seconds["exported"] + seconds["dropped"], abs=1e-5)
    assert len(list((tmp_path / "out/clips").glob("*.mp4"))) == 6


def test_without_a_text_of_the_wanted_kinds_a_clip_waits_for_captions(exported, tmp_path):
    summary = exported(tmp_path / "out", "folder", kinds=("original",))
    assert summary["clips"]["exported"] == 1
    assert summary["clips"]["waiting"] == {"caption": NUM_CLIPS - 1}
    (text,) = (tmp_path / "out/clips").glob("*.txt")
    assert text.read_text() == "the text that came with it"


def test_the_first_wanted_kind_that_a_clip_has_is_its_caption(exported, tmp_path):
    exported(tmp_path / "out", "jsonl", kinds=("original", "descriptive"))
    lines = (tmp_path / "out/dataset.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["caption"] == "the text that came with it" for row in rows] == [False] * (NUM_CLIPS - 1) + [True]
    assert set(rows[-1]["captions"]) == {"descriptive", "original"}


def test_captions_that_failed_a_gate_are_dropped_as_bad_caption(exported, export_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(export_run.root, copy)
    run = RunFolder(str(copy))
    name = run.list("captions/main/part-*.parquet")[0]
    table = run.read_table(name)
    position = table.schema.get_field_index("reason")
    bad = table.set_column(position, table.schema.field(position), [["bad_caption"] * table.num_rows])
    run.write_table(name, bad, run.table_metadata(name))
    counts = exported(tmp_path / "out", "folder", run=run)["clips"]
    assert counts["dropped"]["bad_caption"] > 0
    assert counts["exported"] + counts["dropped"]["bad_caption"] == NUM_CLIPS


def test_a_whole_mp4_is_copied_byte_for_byte_and_clips_between_keyframes_are_cut(exported, export_run, tmp_path):
    summary = exported(tmp_path / "out", "folder")
    assert (summary["copied"], summary["cut"], summary["encoded"]) == (5, 3, 0)
    for clip_id, row in rows_of(tmp_path / "out").items():
        source, file = Path(source_of(export_run, clip_id)), tmp_path / "out" / row["file"]
        assert row["cut"] == ("cut" if source.stem in ("two-shots", "other") else "copied"), source
        assert (file.read_bytes() == source.read_bytes()) == (row["cut"] == "copied")
        there = read_frames(str(source), range(row["source_start_frame"], row["source_end_frame"])).pixels_THWC
        assert np.array_equal(read_frames(str(file), None).pixels_THWC, there), source
        assert row["num_video_bytes"] == file.stat().st_size


def test_encoded_clips_have_the_frames_rate_and_size_of_their_source(exported, export_run, tmp_path):
    exported(tmp_path / "out", "folder", cut="encode")
    for clip_id, row in rows_of(tmp_path / "out").items():
        assert row["cut"] == "encoded"
        source, written = source_of(export_run, clip_id), probe(str(tmp_path / "out" / row["file"]))
        assert written.status == "ok"
        frames = read_frames(source, range(row["source_start_frame"], row["source_end_frame"])).pixels_THWC
        height_px, width_px = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
        assert (written.height_px, written.width_px) == (row["height_px"], row["width_px"]) == (height_px, width_px)
        assert written.num_frames == row["num_frames"] == len(frames)
        video = probe(source)
        assert (written.fps_num, written.fps_den) == (video.fps_num, video.fps_den)
        back = read_frames(str(tmp_path / "out" / row["file"]), None).pixels_THWC
        assert abs(back.astype(int) - frames[:, :height_px, :width_px]).mean() < 4


def test_a_cut_that_does_not_decode_to_the_same_frames_is_encoded_instead(exported, tmp_path, monkeypatch):
    def cuts_the_wrong_frames(self, start_frame, end_frame, **span):
        return real(self, 0, 45, **span) if start_frame == 45 else CutVideo(b"not an mp4", "")

    real = OpenedVideo.cut
    monkeypatch.setattr(OpenedVideo, "cut", cuts_the_wrong_frames)
    summary = exported(tmp_path / "out", "folder")
    assert (summary["copied"], summary["cut"], summary["encoded"]) == (5, 0, 3)


def test_fitted_clips_have_the_rate_length_and_size_of_the_model(exported, tmp_path):
    summary = exported(tmp_path / "out", "ltx", fit=True)
    assert summary["encoded"] == summary["clips"]["exported"] == NUM_CLIPS
    assert summary["seconds"]["trimmed"] > 0
    for row in rows_of(tmp_path / "out").values():
        written = probe(str(tmp_path / "out" / row["file"]))
        assert written.num_frames == row["num_frames"]
        assert written.num_frames % 8 == 1
        assert written.fps_num / written.fps_den == 24
        assert written.height_px % 32 == written.width_px % 32 == 0
        assert (written.height_px, written.width_px) == (64, 96)
    seconds = summary["seconds"]
    assert seconds["total"] == pytest.approx(seconds["exported"] + seconds["trimmed"], abs=1e-5)


def test_clips_too_short_for_the_model_are_dropped_with_that_reason(exported, tmp_path):
    counts = exported(tmp_path / "out", "folder", fit=True, fps=1)["clips"]
    assert counts["dropped"] == {"too_short": NUM_CLIPS}
    assert counts["exported"] == 0


def test_cosmos_gets_only_clips_that_are_longer_than_its_windows(exported, tmp_path):
    summary = exported(tmp_path / "out", "cosmos", max_frames=17)
    assert summary["clips"]["dropped"] == {"too_short": 6}
    assert all(row["num_frames"] == 45 for row in rows_of(tmp_path / "out").values())


def test_killed_and_run_again_gives_the_same_bytes_and_writes_no_clip_twice(exported, whole_tree, monkeypatch):
    folder, whole = whole_tree
    shutil.rmtree(folder)
    made: list[str] = []
    real = worker.clip_video

    def dies_at_the_fifth(opened, clip, **arguments):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(clip.clip_id)
        return real(opened, clip, **arguments)

    monkeypatch.setattr(worker, "clip_video", dies_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        exported(folder, "folder")
    monkeypatch.setattr(worker, "clip_video", lambda s, c, **a: made.append(c.clip_id) or real(s, c, **a))
    (folder / "clips" / "half.mp4.1234.tmp").write_bytes(b"half a clip")
    summary = exported(folder, "folder")
    assert sorted(made) == sorted(set(made)) == sorted(rows_of(folder))
    assert (summary["computed_parts"], summary["skipped_parts"]) == (2, 1)
    assert tree(folder) == whole


def test_a_second_export_computes_nothing_and_changes_nothing(exported, whole_tree, monkeypatch):
    folder, whole = whole_tree
    monkeypatch.setattr(worker, "clip_video", None)  # a call would fail
    summary = exported(folder, "folder")
    assert (summary["computed_parts"], summary["skipped_parts"]) == (0, 3)
    assert tree(folder) == whole


def test_tars_of_a_killed_export_are_the_same_too(exported, tmp_path, monkeypatch):
    exported(tmp_path / "whole", "webdataset")
    real, calls = worker.write_shard, []

    def dies_at_the_second(*arguments, **more):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(worker, "write_shard", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        exported(tmp_path / "killed", "webdataset")
    monkeypatch.setattr(worker, "write_shard", real)
    assert exported(tmp_path / "killed", "webdataset")["skipped_parts"] == 1
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_two_workers_on_ray_give_the_same_bytes(exported, whole_tree, tmp_path, local_ray):
    _, whole = whole_tree
    summary = exported(tmp_path / "out", "folder", cluster=local_ray)
    assert summary["clips"]["exported"] == NUM_CLIPS
    is_clip = lambda name: name.startswith("clips/")  # noqa: E731 - configs name their folder
    assert {n: h for n, h in tree(tmp_path / "out").items() if is_clip(n)} == {
        n: h for n, h in whole.items() if is_clip(n)
    }


def test_other_texts_are_written_without_the_clips(exported, tmp_path, monkeypatch):
    exported(tmp_path / "out", "folder")
    monkeypatch.setattr(worker, "clip_video", None)
    exported(tmp_path / "out", "folder", kinds=("original", "descriptive"))
    texts = [path.read_text() for path in sorted((tmp_path / "out/clips").glob("*.txt"))]
    assert texts[-1] == "the text that came with it"
    assert len(texts) == NUM_CLIPS


def test_clips_that_are_dropped_later_leave_the_folder(exported, export_recipe, tmp_path):
    exported(tmp_path / "out", "automodel")
    filters = dataclasses.replace(export_recipe.filters, min_seconds=1.8)
    summary = exported(tmp_path / "out", "automodel", recipe=dataclasses.replace(export_recipe, filters=filters))
    assert summary["clips"]["exported"] == 6
    assert summary["removed_files"] >= 4
    assert {path.stem for path in (tmp_path / "out/clips").iterdir()} == set(rows_of(tmp_path / "out"))


def test_a_clip_that_somebody_rejects_leaves_the_folder(exported, export_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(export_run.root, copy)
    run = RunFolder(str(copy))
    exported(tmp_path / "out", "folder", run=run)
    victim = sorted(rows_of(tmp_path / "out"))[2]
    row = {"clip_id": victim, "verdict": "reject", "reason": "", "by": "", "time": None}
    run.write_table("verdicts/part-00000.parquet", pa.Table.from_pylist([row], schema=VERDICT_SCHEMA))
    counts = exported(tmp_path / "out", "folder", run=run)["clips"]
    assert (counts["exported"], counts["dropped"]) == (NUM_CLIPS - 1, {"rejected": 1})
    left = {path.name for path in (tmp_path / "out").rglob("*") if victim in path.name}
    assert not left
    assert victim not in (tmp_path / "out/musubi-tuner-8fps.jsonl").read_text()


def test_a_clip_file_that_was_cut_off_is_written_again(exported, whole_tree):
    folder, whole = whole_tree
    victim = next((folder / "clips").glob("*.mp4"))
    victim.write_bytes(victim.read_bytes()[:100])
    next((folder / "clips").glob("*.txt")).unlink()
    exported(folder, "folder")
    assert tree(folder) == whole


def test_a_source_that_changed_is_a_failed_row_and_is_tried_again(exported, export_run, tmp_path):
    clip_id = next(row["clip_id"] for row in _clip_rows(export_run) if row["uri"].endswith("other.webm"))
    source = Path(source_of(export_run, clip_id))
    original = source.read_bytes()
    try:
        source.write_bytes(original + b"\0")
        summary = exported(tmp_path / "out", "folder")
        assert summary["clips"]["failed"] == {"source_changed": 1}
        (failure,) = summary["failures"]
        assert (failure["clip_id"], failure["reason"], failure["uri"]) == (clip_id, "source_changed", str(source))
        assert rows_of(tmp_path / "out")[clip_id]["status"] == "failed"
        stored = json.loads((tmp_path / "out/export.json").read_text())["failures"]
        assert stored[0]["uri"] == "other.webm"
        assert clip_id not in (tmp_path / "out/musubi-tuner.toml").read_text()
    finally:
        source.write_bytes(original)
    again = exported(tmp_path / "out", "folder")
    assert again["clips"]["exported"] == NUM_CLIPS
    assert again["computed_parts"] == 1


def _clip_rows(run):
    return [row for name in run.list("clips/part-*.parquet") for row in run.read_table(name).to_pylist()]


def test_a_source_that_is_gone_is_a_failed_row(exported, export_run, export_videos, tmp_path):
    source = export_videos / "other.webm"
    away = tmp_path / "away.webm"
    shutil.move(source, away)
    try:
        summary = exported(tmp_path / "out", "hf")
    finally:
        shutil.move(away, source)
    assert summary["clips"]["exported"] == NUM_CLIPS - 1
    assert sum(summary["clips"]["failed"].values()) == 1
    seconds = summary["seconds"]
    assert seconds["total"] == pytest.approx(seconds["exported"] + seconds["failed"], abs=1e-5)


def test_the_same_video_twice_is_exported_once(
    exported, export_run, export_recipe, in_process, export_videos, tmp_path
):
    for name in ("a.mp4", "b.mp4"):
        shutil.copyfile(export_videos / "whole-0.mp4", tmp_path / name)
    filters = dataclasses.replace(export_recipe.filters, drop_duplicates=False)
    recipe = dataclasses.replace(export_recipe, filters=filters)
    run = RunFolder(str(tmp_path / "run"))
    prepare([str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")], run.uri, recipe, in_process)
    caption(run, recipe, "main", in_process)
    counts = exported(tmp_path / "out", "folder", run=run, recipe=recipe)["clips"]
    assert (counts["total"], counts["exported"], counts["dropped"]) == (2, 1, {"duplicate": 1})


def test_dry_run_counts_and_estimates_and_writes_nothing(exported, tmp_path):
    summary = exported(tmp_path / "out", "folder", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert summary["clips"]["to_export"] == NUM_CLIPS
    real = exported(tmp_path / "out", "folder")
    # that the webm is no mp4 is known once its first bytes are read, where its keyframes are once it is demuxed
    assert (summary["copied_at_most"], summary["cut_or_copied_at_most"]) == (real["copied"] + 1, NUM_CLIPS)
    assert real["bytes"] / 10 < summary["estimated_bytes"] < real["bytes"] * 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "coco"}, "the layouts are folder"),
        ({"layout": "folder", "model": "sora"}, "there are wan2.1"),
        ({"layout": "folder", "max_frames": 80}, "use 77 or 81"),
        ({"layout": "folder", "kinds": ("poem",)}, "there are descriptive"),
        ({"layout": "folder", "captions": "other"}, "no caption set 'other'"),
        ({"layout": "folder", "quality": 99}, "from 0"),
        ({"layout": "folder", "cut": "keyframes"}, "there are auto, encode"),
        ({"layout": "folder", "fps": -1}, "must be positive"),
    ],
)
def test_wrong_use_is_one_sentence(exported, tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        exported(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_export_or_of_other_files_is_refused(exported, tmp_path):
    exported(tmp_path / "out", "folder")
    before = tree(tmp_path / "out")
    with pytest.raises(UsageError, match=r"other settings \(to\)"):
        exported(tmp_path / "out", "jsonl")
    with pytest.raises(UsageError, match=r"other settings \(quality\)"):
        exported(tmp_path / "out", "folder", quality=20)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        exported(tmp_path / "mine", "folder")
    assert tree(tmp_path / "out") == before


def test_to_object_storage(exported):
    summary = exported("memory://export-test/out", "hf")
    folder = RunFolder("memory://export-test/out")
    assert summary["clips"]["exported"] == len(folder.list("train/*/*.mp4")) == NUM_CLIPS
    assert exported("memory://export-test/out", "hf")["computed_parts"] == 0


def test_the_command_prints_counts_and_its_exit_code_says_whether_clips_failed(
    command, export_run, export_videos, tmp_path
):
    flags = ("export", "--run", export_run.uri, "--to", "folder", "--filters.max-duplicate-similarity", "None")
    code, out, err = command(*flags, "--out", str(tmp_path / "a"), "--licence", "cc-by-4.0")
    assert (code, out["clips"]["exported"], err) == (0, NUM_CLIPS, "")
    assert "cc-by-4.0" in (tmp_path / "a/README.md").read_text()
    source = export_videos / "other.webm"
    original = source.read_bytes()
    try:
        source.write_bytes(b"nothing")
        code, out, _ = command(*flags, "--out", str(tmp_path / "b"))
    finally:
        source.write_bytes(original)
    assert (code, out["clips"]["failed"]) == (1, {"source_changed": 1})
    code, _, err = command(*flags[:4], "coco", "--out", str(tmp_path / "c"))
    assert code == 2
    assert "the layouts are" in err


def test_help_names_every_layout():
    from jobs.export.command import Export
    from jobs.recipe.fields import docs_of

    assert set(LAYOUTS) <= set(docs_of(Export)["to"].replace(",", "").replace(".", "").split())


def test_two_exports_into_one_folder_at_a_time_are_refused(command, export_run, tmp_path):
    out = RunFolder(str(tmp_path / "out"))
    with FolderLock(out, "recaption export"):
        code, _, err = command("export", "--run", export_run.uri, "--to", "folder", "--out", out.uri)
    assert code == 2
    assert "works on it" in err
    assert command("export", "--run", export_run.uri, "--to", "folder", "--out", out.uri)[0] == 0
    assert not out.exists("run.lock")
