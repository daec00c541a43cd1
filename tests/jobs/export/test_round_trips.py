"""Exports are prepared again to the same clips and texts; what a list says goes out with them; takedowns reach them."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from sound_files import write_sounding_video

from jobs.caption.caption import caption
from jobs.prepare.prepare import prepare
from jobs.remove.remove import remove
from recaption import open_run
from recaption.inputs.paths import expand_paths
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render

NUM_CLIPS = 8
DOG, CAT = "A brown dog runs across a wide green field.", "A grey cat sleeps on a red chair by the window."


def rows_of(folder) -> list[dict]:
    return RunFolder(str(folder)).read_table("clips.parquet").to_pylist()


def prepared_again(inputs: Path, out: Path, recipe, cluster):
    """The tables of a run over what was exported, captioned."""
    run = RunFolder(str(out))
    summary = prepare([str(inputs)], run.uri, recipe, cluster)
    caption(run, recipe, "main", cluster)
    assert summary["videos"]["failed"] == 0
    return open_run(run.uri)


def clips_by_file(run) -> dict[str, tuple[int, str, str]]:
    """Stem of the file -> frames, rounded frames per second and the text that came with it, of its only clip."""
    texts = run.captions("main").query("source == 'original'").set_index("clip_id").text
    clips = run.clips()
    assert (clips.start_frame == 0).all()
    assert clips.uri.is_unique
    return {Path(row.uri).stem: (row.end_frame, round(row.fps, 3), texts[row.clip_id]) for row in clips.itertuples()}


def exported_by_file(rows: list[dict]) -> dict[str, tuple[int, str, str]]:
    fps = {"30000/1001": 29.97, "8": 8.0, "24": 24.0}
    return {Path(row["file"]).stem: (row["num_frames"], fps[row["fps"]], row["caption"]) for row in rows}


def test_an_hf_export_is_prepared_from_its_metadata_to_the_same_clips_and_texts(
    exported, export_recipe, in_process, tmp_path
):
    """Clips are as long as they left, though the second run would cut them shorter."""
    exported(tmp_path / "out", "hf", licence="cc-by-4.0")
    rows = rows_of(tmp_path / "out")
    shorter = dataclasses.replace(export_recipe.prepare, max_clip_seconds=1.2)
    recipe = dataclasses.replace(export_recipe, prepare=shorter)
    run = prepared_again(tmp_path / "out/train/metadata.jsonl", tmp_path / "run", recipe, in_process)
    assert clips_by_file(run) == exported_by_file(rows)
    spans = run.spans()
    assert len(spans) == NUM_CLIPS
    assert set(spans.licence) == {"cc-by-4.0"}
    assert set(spans.source) == {row["source"] for row in rows}
    assert set(spans.id) == {row["clip_id"] for row in rows}
    copied = {row["clip_id"] for row in rows if row["cut"] == "copied"}
    assert copied <= set(run.clips().clip_id)  # the same bytes, so the same clip

    again = tmp_path / "again"
    exported(again, "hf", run=run.folder, recipe=recipe, kinds=("original",))
    assert {row["caption"] for row in rows_of(again)} == {row["caption"] for row in rows}
    assert {row["source"] for row in rows_of(again)} == {row["source"] for row in rows}


def test_a_folder_export_is_prepared_with_its_texts_as_side_texts(exported, export_recipe, in_process, tmp_path):
    exported(tmp_path / "out", "folder")
    rows = rows_of(tmp_path / "out")
    clips = tmp_path / "out/clips"
    assert {Path(uri).stem for uri in expand_paths([str(clips)])} == {row["clip_id"] for row in rows}
    run = prepared_again(clips, tmp_path / "run", export_recipe, in_process)
    assert clips_by_file(run) == exported_by_file(rows)


def test_exported_tars_are_prepared_where_they_lie(exported, export_recipe, in_process, tmp_path):
    exported(tmp_path / "out", "webdataset", licence="cc-by-4.0")
    rows = rows_of(tmp_path / "out")
    run = prepared_again(tmp_path / "out/shards", tmp_path / "run", export_recipe, in_process)
    by_id = {row["clip_id"]: (row["num_frames"], row["caption"]) for row in rows}
    texts = run.captions("main").query("source == 'original'").set_index("clip_id").text
    found = {
        Path(row.uri.partition("#")[2]).stem: (row.end_frame, texts[row.clip_id]) for row in run.clips().itertuples()
    }
    assert found == by_id
    assert set(run.spans().licence) == {"cc-by-4.0"}


@pytest.fixture(scope="module")
def listed_run(tmp_path_factory, export_recipe, in_process):
    """Two spans of a video with sound, one of a silent one, and what their list says of them."""
    folder = tmp_path_factory.mktemp("listed")
    scene = render(7300, num_frames=48, height_px=64, width_px=96, fps=8, **SIMPLE)
    scene.write(folder / "silent.mp4")
    write_sounding_video(folder / "sound.mp4", [{"rate_hz": 44_100, "layout": "mono"}], seconds=4.0)
    header = ["path", "start", "end", "caption", "license", "source_url", "videoID", "views"]
    rows = [
        ["sound.mp4", "0", "2", DOG, "CC0", "https://example.org/dog", "dog-1", 7],
        ["sound.mp4", "2", "4", CAT, "CC-BY-4.0", "https://example.org/dog", "dog-2", 8],
        ["silent.mp4", "0", "1.5", CAT, "", "", "cat-1", ""],
    ]
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    filters = dataclasses.replace(export_recipe.filters, min_sharpness=None, min_luma=None, max_luma=None)
    recipe = dataclasses.replace(export_recipe, filters=filters)
    run = RunFolder(str(folder / "run"))
    prepare([str(folder / "list.csv")], run.uri, recipe, in_process)
    caption(run, recipe, "main", in_process)
    return run, recipe


def test_what_a_list_says_and_the_audio_are_in_the_metadata(exported, listed_run, tmp_path):
    run, recipe = listed_run
    exported(tmp_path / "out", "jsonl", run=run, recipe=recipe, kinds=("original",), licence="odc-by")
    lines = [json.loads(line) for line in (tmp_path / "out/dataset.jsonl").read_text().splitlines()]
    found = {line["id"]: line for line in lines}
    assert [found[one]["caption"] for one in ("dog-1", "dog-2", "cat-1")] == [DOG, CAT, CAT]
    assert [found[one]["licence"] for one in ("dog-1", "dog-2", "cat-1")] == ["CC0", "CC-BY-4.0", "odc-by"]
    assert [found[one]["source"] for one in ("dog-1", "cat-1")] == ["https://example.org/dog", "silent.mp4"]
    assert json.loads(found["dog-2"]["metadata"]) == {"views": "8"}
    assert [line["audio"] for line in (found["dog-1"], found["cat-1"])] == ["aac", ""]
    assert (found["dog-1"]["source_audio_channels"], found["dog-1"]["source_audio_rate_hz"]) == (1, 44_100)
    assert found["cat-1"]["source_audio_rate_hz"] == 0
    assert found["cat-1"]["scores"]["silence_fraction"] == 1
    assert found["dog-1"]["scores"]["loudness_lufs"] < -5
    assert (found["dog-2"]["source_start_seconds"], found["dog-2"]["frame_span"][0]) == (2.0, 0)


def test_a_video_that_is_taken_down_leaves_the_export_too(exported, listed_run, tmp_path):
    run, recipe = listed_run
    copy = RunFolder(str(tmp_path / "run"))
    shutil.copytree(run.root, copy.root)
    for layout in ("hf", "webdataset"):
        exported(tmp_path / layout, layout, run=copy, recipe=recipe, kinds=("original",))
    row = next(row for row in rows_of(tmp_path / "hf") if row["id"] == "dog-1")
    mp4 = (tmp_path / "hf" / row["file"]).read_bytes()
    video_id = row["clip_id"].partition("-")[0]
    needles = [mp4, video_id.encode(), DOG.encode(), b"dog-1", b"dog-2", b"example.org/dog"]
    assert files_with(needles, tmp_path / "hf")
    assert mp4 in b"".join(path.read_bytes() for path in (tmp_path / "webdataset/shards").glob("*.tar"))

    (tmp_path / "takedown.txt").write_text(f"{video_id}\n")
    remove(copy, recipe, str(tmp_path / "takedown.txt"))
    for layout in ("hf", "webdataset"):
        counts = exported(tmp_path / layout, layout, run=copy, recipe=recipe, kinds=("original",))["clips"]
        assert counts["exported"] == 1
        assert files_with(needles, tmp_path / layout) == []
    assert files_with(needles, tmp_path / "run") == []


def files_with(needles: list[bytes], folder: Path) -> list[str]:
    """Files that hold one of these, tables as text."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += str(RunFolder(str(path.parent)).read_table(path.name).to_pylist()).encode()
        found += [str(path)] if any(needle in content for needle in needles) else []
    return found
