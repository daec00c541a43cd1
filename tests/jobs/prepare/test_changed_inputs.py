"""A data set that changes between runs: replaced, renamed, touched, copied, unreachable inputs, through all stages."""

import dataclasses
import functools
import os
import shutil

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobs.caption import worker
from jobs.caption.caption import caption
from jobs.prepare.prepare import prepare
from jobs.shard import shard
from jobs.verify.repair import repair_run
from jobs.verify.verify import verify_run
from recaption.errors import StorageError
from recaption.inputs import download
from recaption.ledger.ledger import build_ledger
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render


@pytest.fixture(scope="module")
def scene_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(5):
        render(5000 + seed, num_frames=17, height_px=64, width_px=64, fps=8, **SIMPLE).write(folder / f"{seed}.mp4")
    return [folder / f"{seed}.mp4" for seed in range(5)]


@pytest.fixture
def videos(scene_files, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, file in zip("abc", scene_files):
        shutil.copy(file, folder / f"{name}.mp4")
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_captioner():
    """The weights are loaded once, not by every worker of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "open_captioner", functools.cache(worker.open_captioner))
        yield


@pytest.fixture
def recipe(small_recipe):
    settings = dataclasses.replace(small_recipe.caption, min_clip_score=-9.0, num_beams=1)
    filters = dataclasses.replace(
        small_recipe.filters, max_duplicate_similarity=None, max_semantic_similarity=None, max_clips_per_caption=None
    )
    return dataclasses.replace(small_recipe, caption=settings, filters=filters)


@pytest.fixture
def run(tmp_path):
    return RunFolder(str(tmp_path / "run"))


def rows(run, pattern):
    return [row for name in run.list(pattern) for row in run.read_table(name).to_pylist()]


def in_shards(run, recipe):
    """Names of the videos whose clips are in the shards."""
    states = build_ledger(run, recipe.filters).clips
    return sorted(os.path.basename(state.uri) for state in states if state.state == "in_shard")


def tree(run):
    return {name: run.read_bytes(name) for name in run.list("**/*.*") if not name.startswith("report")}


def replace_keeping_times(path, source):
    """Other bytes of the same size and time: only ctime (and perhaps the inode) tell."""
    times, size = os.stat(path), os.path.getsize(path)
    payload = source.read_bytes()
    assert len(payload) <= size
    path.write_bytes(payload + b"\0" * (size - len(payload)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (os.stat(path).st_size, os.stat(path).st_mtime_ns) == (times.st_size, times.st_mtime_ns)


def all_stages(videos, run, recipe, in_process):
    summary = prepare([str(videos)], run.uri, recipe, in_process)
    return summary, caption(run, recipe, "main", in_process), shard(run, recipe, "main", in_process)


def test_replaced_renamed_and_new_files_are_followed(videos, run, recipe, in_process, scene_files):
    all_stages(videos, run, recipe, in_process)
    assert in_shards(run, recipe) == ["a.mp4", "b.mp4", "c.mp4"]
    before = {row["uri"][-5:]: row["video_id"] for row in rows(run, "videos/*")}
    os.replace(videos / "a.mp4", videos / "z.mp4")
    shutil.copy(scene_files[3], videos / "b.mp4")
    shutil.copy(scene_files[4], videos / "d.mp4")
    summary, captioned, sharded = all_stages(videos, run, recipe, in_process)
    after = {row["uri"][-5:]: row["video_id"] for row in rows(run, "videos/*")}
    assert in_shards(run, recipe) == ["b.mp4", "c.mp4", "d.mp4", "z.mp4"]
    assert after["z.mp4"] == before["a.mp4"]
    assert after["b.mp4"] != before["b.mp4"]
    assert before["b.mp4"] not in {row["clip_id"][:16] for row in rows(run, "index.parquet")}
    assert {"total": 4, "ok": 4, "failed": 0}.items() <= summary["videos"].items()
    assert captioned["captions"] == sharded["samples"] == 4
    assert verify_run(run, recipe)["problems"] == []
    again = all_stages(videos, run, recipe, in_process)
    assert [stage["computed_parts"] for stage in again] == [0, 0, 0]


def test_a_touched_file_is_hashed_once_and_keeps_its_rows(videos, run, recipe, in_process, monkeypatch):
    prepare([str(videos)], run.uri, recipe, in_process)
    clips = rows(run, "clips/*")
    os.utime(videos / "b.mp4", ns=(1, 1))
    monkeypatch.setattr("jobs.prepare.worker.prepare_video", None)  # nothing is decoded
    assert prepare([str(videos)], run.uri, recipe, in_process)["computed_parts"] == 1
    assert rows(run, "clips/*") == clips
    assert [row["mtime_ns"] for row in rows(run, "videos/*")][1] == 1
    assert prepare([str(videos)], run.uri, recipe, in_process)["computed_parts"] == 0


@pytest.mark.parametrize("stage", ["caption", "shard"])
def test_another_video_of_the_same_name_is_never_used(videos, run, recipe, in_process, scene_files, stage):
    prepare([str(videos)], run.uri, recipe, in_process)
    if stage == "shard":
        caption(run, recipe, "main", in_process)
    kept = (videos / "a.mp4").read_bytes()
    (videos / "a.txt").write_text("a text about the other video")
    larger = max(scene_files[1:3], key=lambda file: file.stat().st_size)
    if larger.stat().st_size <= len(kept):
        replace_keeping_times(videos / "a.mp4", larger)
    else:
        shutil.copyfile(larger, videos / "a.mp4")
    if stage == "caption":
        summary = caption(run, recipe, "main", in_process)
        assert summary["bad"] == {"source_changed": 1}
        assert {row["source"] for row in rows(run, "captions/main/*")} == {"model"}
    summary = shard(run, recipe, "main", in_process)
    assert summary["samples"] == 2
    assert summary["rejected"] == ({} if stage == "caption" else {"source_changed": 1})
    assert len({row["sha256"] for row in rows(run, "index.parquet")}) == 2
    problems = verify_run(run, recipe)["problems"]
    assert {problem["kind"] for problem in problems} >= {"source_changed"}
    (videos / "a.mp4").write_bytes(kept)  # restored, with other times
    assert caption(run, recipe, "main", in_process)["captions"] == 3
    assert shard(run, recipe, "main", in_process)["samples"] == 3
    assert verify_run(run, recipe)["problems"] == []


def test_other_bytes_of_the_same_size_and_time_are_a_new_video(videos, run, recipe, in_process, scene_files):
    padded = videos / "b.mp4"
    padded.write_bytes(padded.read_bytes() + b"\0" * 100_000)
    all_stages(videos, run, recipe, in_process)
    old = next(row["video_id"] for row in rows(run, "videos/*") if row["uri"].endswith("b.mp4"))
    replace_keeping_times(padded, scene_files[4])
    assert shard(run, recipe, "main", in_process)["computed_parts"] == 0  # nothing is decoded, nothing is wrong yet
    assert [p["kind"] for p in verify_run(run, recipe)["problems"]] == ["source_changed"]
    all_stages(videos, run, recipe, in_process)
    new = next(row["video_id"] for row in rows(run, "videos/*") if row["uri"].endswith("b.mp4"))
    assert new != old
    assert {row["clip_id"][:16] for row in rows(run, "index.parquet")} >= {new}
    assert old not in {row["clip_id"][:16] for row in rows(run, "index.parquet")}
    assert verify_run(run, recipe)["problems"] == []


# --- copies -----------------------------------------------------------------------------------------------------------


def test_of_equal_bytes_the_one_with_a_text_is_kept(scene_files, tmp_path, run, recipe, in_process):
    folder = tmp_path / "copies"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("a copy.mp4", "z.mp4", ".ipynb_checkpoints/x-checkpoint.mp4", "x.mp4"):
        shutil.copy(scene_files["x" in name], folder / name)
    (folder / "z.txt").write_text("A red circle moves to the left.")
    listed = folder / "list.txt"
    listed.write_text(
        ".ipynb_checkpoints/x-checkpoint.mp4\n"
    )  # folders are read without these; lists name what they want
    paths = [str(folder), str(listed)]
    recipe = dataclasses.replace(recipe, prepare=dataclasses.replace(recipe.prepare, part_size=1))
    prepare(paths, run.uri, recipe, in_process)
    caption(run, recipe, "main", in_process)
    shard(run, recipe, "main", in_process)
    assert in_shards(run, recipe) == ["x.mp4", "z.mp4"]
    originals = [row["text"] for row in rows(run, "captions/main/*") if row["source"] == "original"]
    assert originals == ["A red circle moves to the left."]
    assert verify_run(run, recipe)["problems"] == []
    before = tree(run)
    assert prepare(paths, run.uri, recipe, in_process)["computed_parts"] == 0
    assert tree(run) == before


def test_a_copy_with_a_text_that_comes_later_brings_the_text(videos, run, recipe, in_process, monkeypatch):
    all_stages(videos, run, recipe, in_process)
    before = [row for row in rows(run, "captions/main/*") if row["source"] == "model"]
    shutil.copy(videos / "a.mp4", videos / "z.mp4")
    (videos / "z.txt").write_text("A red circle moves to the left.")
    monkeypatch.setattr("jobs.caption.worker.sample_windows", None)  # nothing is captioned again
    all_stages(videos, run, recipe, in_process)
    assert in_shards(run, recipe) == ["b.mp4", "c.mp4", "z.mp4"]
    captions = rows(run, "captions/main/*")
    assert [row for row in captions if row["source"] == "model"] == before
    assert [row["text"] for row in captions if row["source"] == "original"] == ["A red circle moves to the left."]
    assert [stage["computed_parts"] for stage in all_stages(videos, run, recipe, in_process)] == [0, 0, 0]


def test_a_name_that_is_gone_does_not_win_over_one_that_exists(videos, run, recipe, in_process):
    shutil.copy(videos / "a.mp4", videos / "copy of a.mp4")
    all_stages(videos, run, recipe, in_process)
    assert in_shards(run, recipe) == ["a.mp4", "b.mp4", "c.mp4"]
    (videos / "a.mp4").unlink()
    recipe = dataclasses.replace(recipe, shard=dataclasses.replace(recipe.shard, buckets=_other_crf(recipe)))
    all_stages(videos, run, recipe, in_process)  # the shards are written anew
    assert in_shards(run, recipe) == ["b.mp4", "c.mp4", "copy of a.mp4"]
    assert verify_run(run, recipe)["problems"] == []


def _other_crf(recipe):
    return dataclasses.replace(recipe.shard.buckets, crf=20)


def test_a_kill_between_two_renames_ends_in_the_same_bytes(scene_files, tmp_path, recipe, in_process, monkeypatch):
    folder = tmp_path / "copies"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "y.mp4", "z.mp4"):
        shutil.copy(scene_files[name in "y.mp4 b.mp4"], folder / name)
    for name in ("y.txt", "z.txt"):
        (folder / name).write_text("A red circle moves to the left.")
    recipe = dataclasses.replace(recipe, prepare=dataclasses.replace(recipe.prepare, part_size=1))
    whole, killed = RunFolder(str(tmp_path / "whole")), RunFolder(str(tmp_path / "killed"))
    prepare([str(folder)], whole.uri, recipe, in_process)
    write_table, num_writes = RunFolder.write_table, []

    class Killed(BaseException):
        pass

    def dying(self, name, table, metadata=None):
        num_writes.append(name)
        if len(num_writes) > 1 + 16 + 5:  # the list of inputs, four files of four parts, then among the renames
            raise Killed
        write_table(self, name, table, metadata)

    monkeypatch.setattr(RunFolder, "write_table", dying)
    with pytest.raises(Killed):
        prepare([str(folder)], killed.uri, recipe, in_process)
    monkeypatch.setattr(RunFolder, "write_table", write_table)
    assert tree(killed) != tree(whole)
    prepare([str(folder)], killed.uri, recipe, in_process)
    assert tree(killed) == tree(whole)


# --- remote inputs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder of an object store, and the names of what is downloaded."""
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.0)
    fs, name = fsspec.filesystem("memory"), f"/{tmp_path.name}"
    downloads = []
    get_file = MemoryFileSystem.get_file

    def counting(self, path, *args, **kwargs):
        downloads.append(os.path.basename(path))
        if path in fs.broken:
            raise ConnectionError("503 Slow Down")
        return get_file(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counting)
    fs.broken = set()
    yield fs, name, downloads
    fs.rm(name, recursive=True)


def test_a_remote_video_of_many_clips_is_downloaded_once_per_stage(remote, run, recipe, in_process, tmp_path):
    fs, name, downloads = remote
    render(3, num_frames=80, height_px=64, width_px=64, fps=8, **SIMPLE).write(tmp_path / "long.mp4")
    fs.pipe(f"{name}/long.mp4", (tmp_path / "long.mp4").read_bytes())
    cut = {"min_clip_seconds": 0.5, "max_clip_seconds": 1.2, "part_size": 1}
    recipe = dataclasses.replace(recipe, prepare=dataclasses.replace(recipe.prepare, **cut))
    recipe = dataclasses.replace(recipe, filters=dataclasses.replace(recipe.filters, min_seconds=None))
    for number, stage in enumerate((prepare, caption, shard), 1):
        arguments = ([f"memory:/{name}"], run.uri, recipe) if stage is prepare else (run, recipe, "main")
        stage(*arguments, in_process)
        assert len(downloads) == number
    assert len(rows(run, "clips/*")) >= 8
    assert len(rows(run, "index.parquet")) >= 8
    verify_run(run, recipe)
    assert len(downloads) <= 5  # once for captions, once for samples


def test_what_cannot_be_fetched_is_tried_by_the_next_run_and_nothing_else_is(
    remote, run, recipe, in_process, scene_files
):
    fs, name, downloads = remote
    for letter, file in zip("abc", scene_files):
        fs.pipe(f"{name}/{letter}.mp4", file.read_bytes())
    fs.broken.add(f"{name}/b.mp4")
    path = f"memory:/{name}"
    summary, *_ = all_stages(path, run, recipe, in_process)
    assert [(f["uri"][-5:], f["reason"]) for f in summary["failures"]] == [("b.mp4", "fetch_failed")]
    assert downloads.count("b.mp4") == download.NUM_TRIES
    downloads.clear()
    prepare([path], run.uri, recipe, in_process)
    assert set(downloads) == {"b.mp4"}
    fs.broken.clear()
    downloads.clear()
    assert prepare([path], run.uri, recipe, in_process)["videos"]["ok"] == 3
    assert downloads == ["b.mp4"]
    fs.broken.add(f"{name}/c.mp4")
    assert caption(run, recipe, "two", in_process)["bad"] == {"fetch_failed": 1}
    fs.broken.clear()
    assert caption(run, recipe, "two", in_process)["captions"] == 3
    fs.broken.add(f"{name}/a.mp4")
    assert shard(run, recipe, "two", in_process)["rejected"] == {"fetch_failed": 1}
    fs.broken.clear()
    assert shard(run, recipe, "two", in_process)["samples"] == 3
    assert prepare([path], run.uri, recipe, in_process)["computed_parts"] == 0


def test_a_text_that_could_not_be_fetched_is_read_by_the_next_run(
    remote, run, recipe, in_process, scene_files, monkeypatch
):
    fs, name, _ = remote
    fs.pipe({f"{name}/a.mp4": scene_files[0].read_bytes(), f"{name}/a.txt": b"A red circle moves to the left."})
    prepare([f"memory:/{name}"], run.uri, recipe, in_process)

    def broken(*_, **__):
        raise OSError("503 Slow Down")

    with monkeypatch.context() as patch:
        patch.setattr("recaption.inputs.sidecars.remote_filesystem", broken)
        assert "503" in caption(run, recipe, "main", in_process)["refused_texts"][0]
    assert caption(run, recipe, "main", in_process)["refused_texts"] == []
    assert [row["text"] for row in rows(run, "captions/main/*") if row["source"] == "original"] == [
        "A red circle moves to the left."
    ]
    assert caption(run, recipe, "main", in_process)["computed_parts"] == 0


def test_repair_tries_again_what_could_not_be_fetched(remote, run, recipe, in_process, scene_files):
    fs, name, _ = remote
    for letter, file in zip("abc", scene_files):
        fs.pipe(f"{name}/{letter}.mp4", file.read_bytes())
    fs.broken.add(f"{name}/b.mp4")
    all_stages(f"memory:/{name}", run, recipe, in_process)
    summary = repair_run(run, recipe, in_process, num_pairs=0)
    assert (summary["problems"], summary["repaired"]) == ([], [])
    fs.broken.clear()
    summary = repair_run(run, recipe, in_process, num_pairs=0)
    assert summary["problems"] == []
    assert "videos/part-00000.parquet (fetched)" in summary["repaired"]
    assert in_shards(run, recipe) == ["a.mp4", "b.mp4", "c.mp4"]


def test_a_remote_file_that_changed_is_a_new_video(remote, run, recipe, in_process, scene_files):
    fs, name, _ = remote
    fs.pipe(f"{name}/a.mp4", scene_files[0].read_bytes())
    path = f"memory:/{name}"
    prepare([path], run.uri, recipe, in_process)
    fs.pipe(f"{name}/a.mp4", scene_files[1].read_bytes())
    assert caption(run, recipe, "main", in_process)["bad"] == {"source_changed": 1}
    old = rows(run, "videos/*")[0]["video_id"]
    prepare([path], run.uri, recipe, in_process)
    assert rows(run, "videos/*")[0]["video_id"] != old
    assert caption(run, recipe, "main", in_process)["captions"] == 1


# --- bad entries ------------------------------------------------------------------------------------------------------


def test_hostile_names_and_side_texts_cost_only_themselves(videos, run, recipe, in_process, scene_files, tmp_path):
    (tmp_path / "letter.txt").write_text("a private text with the number 4711")
    (videos / "a.txt").symlink_to(tmp_path / "letter.txt")
    (videos / "b.txt").mkdir()
    os.mkfifo(videos / "c.txt")
    latin1 = os.path.join(os.fsencode(videos), b"caf\xe9")
    shutil.copy(scene_files[3], latin1 + b".mp4")
    with open(latin1 + b".txt", "wb") as file:
        file.write(b"A red circle moves to the left.")
    shutil.copy(scene_files[4], videos / "x::y.mp4")
    summary, captioned, sharded = all_stages(videos, run, recipe, in_process)
    assert summary["videos"]["ok"] == 5
    assert summary["left_out_files"] == 3
    assert sharded["samples"] == 5
    assert [text.removeprefix(f"{videos}/") for text in captioned["refused_texts"]] == [
        "a.mp4: a.txt: a link that leads out of its folder",
        "b.mp4: b.txt: a folder",
        "c.mp4: c.txt: not a regular file",
    ]
    assert "3 texts beside videos are not used" in captioned["warnings"][0]
    originals = [row["text"] for row in rows(run, "captions/main/*") if row["source"] == "original"]
    assert originals == ["A red circle moves to the left."]
    assert not [name for name in run.list("**/*") if run.fs.isfile(run.path(name)) and b"4711" in run.read_bytes(name)]
    assert verify_run(run, recipe)["problems"] == []
    assert caption(run, recipe, "main", in_process)["refused_texts"] == captioned["refused_texts"]


def test_what_is_refused_is_a_failed_row_until_it_can_be_read(
    videos, run, recipe, in_process, scene_files, monkeypatch
):
    (videos / "closed").mkdir()
    shutil.copy(scene_files[3], videos / "closed" / "d.mp4")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("recaption.inputs.folders.os.scandir", denied)
    for computed in (1, 0):
        summary = prepare([str(videos)], run.uri, recipe, in_process)
        assert summary["computed_parts"] == computed
        assert summary["failures"] == [
            {"uri": f"{videos}/closed", "reason": "unreadable", "detail": "not an input: Permission denied"}
        ]
    monkeypatch.setattr("recaption.inputs.folders.os.scandir", scandir)
    summary = prepare([str(videos)], run.uri, recipe, in_process)
    assert {"total": 4, "ok": 4, "failed": 0}.items() <= summary["videos"].items()
    assert verify_run(run, recipe)["problems"] == []


def test_a_run_folder_that_vanishes_meanwhile_is_an_error(videos, run, recipe, in_process):
    class Removing(type(in_process)):
        def run_parts(self, worker, settings, parts, **_):
            for number, result in enumerate(in_process.run_parts(worker, settings, parts)):
                if number == 0:
                    shutil.rmtree(run.root)
                yield result

    recipe = dataclasses.replace(recipe, prepare=dataclasses.replace(recipe.prepare, part_size=1))
    with pytest.raises(StorageError, match=r"vanished while `prepare` ran"):
        prepare([str(videos)], run.uri, recipe, Removing())
    prepare([str(videos)], run.uri, recipe, in_process)
    with pytest.raises(StorageError, match=r"vanished while `caption` ran"):
        caption(run, recipe, "main", Removing())
