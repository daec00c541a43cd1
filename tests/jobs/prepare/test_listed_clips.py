"""Lists with spans and captions: every span is a clip with its caption, seconds add up, only what changed is read again."""

import csv
import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from jobs.caption.caption import caption
from jobs.prepare import worker as prepare_worker
from jobs.prepare.listed_clips import frames_of
from jobs.prepare.prepare import prepare
from jobs.recipe import input_plan
from jobs.verify.repair import repair_run
from recaption.errors import VideoError
from recaption.inputs.lists.listed import ListedSpan
from recaption.ledger.overlap import counted_seconds
from recaption.ledger.verify import verify
from recaption.run import open_run
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render

HEADER = ["path", "start", "end", "caption", "views", "license"]
DOG, CAT = "A brown dog runs across a wide green field.", "A grey cat sleeps on a red chair by the window."


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("listed")
    for seed in range(3):
        scene = render(7100 + seed, num_frames=48, height_px=64, width_px=96, fps=8, **SIMPLE)
        scene.write(folder / f"v{seed}.mp4")  # 6 s
    return folder


def write_list(folder, *rows, header=HEADER, name="list.csv"):
    with open(folder / name, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(folder / name)


ROWS = (
    ["v0.mp4", "0.5", "2", DOG, 7, "CC0"],
    ["v0.mp4", "0:01", "0:03", CAT, 8, "CC0"],
    ["v0.mp4", "5", "6.02", "", 9, ""],
    ["v1.mp4", "10", "12", "never", "", ""],
    ["v1.mp4", "0", "1.5", DOG, "", ""],
    ["v2.mp4", "", "", CAT, "", ""],
    ["", "1", "2", "no video", "", ""],
)


@pytest.fixture
def recipe(small_recipe):
    return dataclasses.replace(small_recipe, prepare=dataclasses.replace(small_recipe.prepare, part_size=2))


@pytest.fixture
def run(tmp_path):
    return RunFolder(str(tmp_path / "run"))


def run_files(run):
    return {name: run.read_bytes(name) for name in run.list("**/*.parquet")}


def spans_of(run):
    names = ("start_seconds", "end_seconds")
    return [tuple(row[n] for n in names) for row in run.read_tables("clips/*", CLIPS).to_pylist()]


CLIPS = pa.schema([("clip_id", pa.string()), ("start_seconds", pa.float64()), ("end_seconds", pa.float64())])


def test_every_span_is_a_clip_with_its_caption_and_the_seconds_add_up(videos, run, recipe, in_process):
    path = write_list(videos, *ROWS)
    summary = prepare([path], run.uri, recipe, in_process)
    assert summary["videos"] == {"total": 4, "ok": 3, "failed": 1, "waiting": 0}
    assert summary["spans"] == {"total": 5, "ok": 4, "failed": 1}
    assert [(row["uri"], row["reason"]) for row in summary["failures"]] == [
        (f"{path}#row=6", "unreadable"),
        (f"{path}#row=3", "bad_span"),
    ]
    whole = [row for row in spans_of(run) if row not in ((0.5, 2.0), (1.0, 3.0), (5.0, 6.0), (0.0, 1.5))]
    assert sum(end - start for start, end in whole) == pytest.approx(6)
    seconds = summary["seconds"]
    assert seconds["outside"] == pytest.approx((6 - 3.5) + (6 - 1.5))
    assert seconds["overlap"] == pytest.approx(1)
    assert seconds["total"] == pytest.approx(18)
    assert seconds["kept"] + seconds["dropped"] + seconds["failed"] == pytest.approx(18)
    assert verify(run, recipe.filters, has_perceptual_pairs=True) == []
    caption(run, recipe, "main", in_process)
    table = open_run(run.uri).captions("main")
    originals = table[(table["source"] == "original") & table["reason"].isna()]
    spans = {tuple(row) for row in originals[["text", "start_seconds", "end_seconds"]].to_numpy()}
    assert spans >= {(DOG, 0.5, 2.0), (CAT, 1.0, 3.0), (DOG, 0.0, 1.5)}
    assert {text for text, *_ in spans} == {DOG, CAT}
    assert verify(run, recipe.filters, has_perceptual_pairs=True) == []
    listed = open_run(run.uri).spans()
    assert list(listed["licence"][listed["licence"] != ""]) == ["CC0", "CC0"]
    assert {json.loads(one)["views"] for one in listed["metadata"] if one} == {"7", "8", "9"}


def test_a_second_run_reads_nothing_and_an_added_row_only_its_video(videos, run, recipe, in_process, monkeypatch):
    read = []
    monkeypatch.setattr(
        prepare_worker,
        "prepare_video",
        lambda uri, *rest, do=prepare_worker.prepare_video: (read.append(uri), do(uri, *rest))[1],
    )
    two = write_list(videos, *ROWS[:3])
    prepare([two], run.uri, recipe, in_process)
    before = run_files(run)
    assert prepare([two], run.uri, recipe, in_process)["computed_parts"] == 0
    assert run_files(run) == before
    assert [uri.rpartition("/")[2] for uri in read] == ["v0.mp4"]
    caption(run, recipe, "main", in_process)
    # another span of a known video, a new video, and another text for a known span
    rows = [[*ROWS[0][:3], CAT, *ROWS[0][4:]], *ROWS[1:5]]
    read.clear()
    prepare([write_list(videos, *rows)], run.uri, recipe, in_process)
    assert [uri.rpartition("/")[2] for uri in read] == ["v1.mp4"]
    assert (0.0, 1.5) in spans_of(run)
    caption(run, recipe, "main", in_process)
    table = open_run(run.uri).captions("main")
    first = table[(table["source"] == "original") & (table["start_seconds"] == 0.5)]
    assert list(first["text"]) == [CAT]
    read.clear()
    prepare([write_list(videos, *rows, ["v0.mp4", "3", "4.5", DOG, "", ""])], run.uri, recipe, in_process)
    assert [uri.rpartition("/")[2] for uri in read] == ["v0.mp4"]
    assert (3.0, 4.5) in spans_of(run)
    assert verify(run, recipe.filters, has_perceptual_pairs=True) == []


def test_a_run_that_is_killed_while_it_plans_ends_with_the_same_bytes(
    videos, tmp_path, recipe, in_process, monkeypatch
):
    path = write_list(videos, *ROWS)
    whole, killed = RunFolder(str(tmp_path / "whole")), RunFolder(str(tmp_path / "killed"))
    prepare([path], whole.uri, recipe, in_process)
    with monkeypatch.context() as patched:
        patched.setattr(input_plan, "write_inputs", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare([path], killed.uri, recipe, in_process)
    assert killed.list("listed/*") == ["listed/part-00000.parquet"]
    prepare([path], killed.uri, recipe, in_process)
    assert run_files(killed) == run_files(whole)
    assert sorted(whole.list("spans/*")) == ["spans/part-00000.parquet", "spans/part-00001.parquet"]


def test_rows_of_another_list_stay_and_spans_can_be_cut_at_shots(videos, run, recipe, in_process):
    prepare = dataclasses.replace(recipe.prepare, cut_spans=True, min_clip_seconds=0.5, max_clip_seconds=1.0)
    recipe = dataclasses.replace(recipe, prepare=prepare)
    globals()["prepare"]([write_list(videos, ROWS[0])], run.uri, recipe, in_process)
    assert [round(end - start, 3) for start, end in spans_of(run)] == [0.75, 0.75]
    other = write_list(videos, ["v0.mp4", "4", "5", CAT, "", ""], name="other.csv")
    globals()["prepare"]([other], run.uri, recipe, in_process)
    assert {start for start, _ in spans_of(run)} >= {0.5, 4.0}
    texts = {row["texts"][0]: len(row["clip_ids"]) for row in open_run(run.uri).spans().to_dict("records")}
    assert texts == {DOG: 2, CAT: 1}


def test_lost_spans_are_found_and_made_again(videos, run, recipe, in_process):
    prepare([write_list(videos, *ROWS)], run.uri, recipe, in_process)
    before = run_files(run)
    run.remove("spans/part-00000.parquet")
    run.write_bytes("spans/part-00001.parquet", b"damaged")
    found = {(one.kind, one.where.partition(":")[0]) for one in verify(run, recipe.filters, has_perceptual_pairs=True)}
    assert ("part_unreadable", "spans/part-00001.parquet") in found
    assert repair_run(run, recipe, in_process, num_pairs=0)["problems"] == []
    assert run_files(run) == before
    run.write_bytes("listed/part-00000.parquet", b"damaged")
    assert repair_run(run, recipe, in_process, num_pairs=0)["problems"] == []
    assert run_files(run) == before


# --- frames and seconds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "unit", "frames"),
    [
        (0.0, 1.0, "seconds", (0, 10)),
        (0.96, 1.04, "seconds", (10, 11)),
        (0.333, 0.667, "seconds", (3, 7)),
        (2.0, 3.4, "seconds", (20, 30)),
        (3, 7, "frames", (3, 7)),
        (None, None, "", (0, 30)),
        (2.0, 5.0, "seconds", None),
        (3.0, 3.5, "seconds", None),
        (20, 31, "frames", None),
    ],
)
def test_a_span_is_the_frames_that_are_nearest(start, end, unit, frames):
    edges = 7.0 + np.arange(31) / 10  # the file's clock does not start at 0
    span = ListedSpan(uri="a", list_uri="l", row=0, start=start, end=end, unit=unit)
    if frames is None:
        with pytest.raises(VideoError, match="bad_span"):
            frames_of(span, edges)
    else:
        assert frames_of(span, edges) == frames


def test_seconds_of_overlapping_clips_count_once_for_the_best_of_them():
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 50, 60).astype(float)
    ends = starts + rng.integers(1, 9, 60)
    uris = [f"v{i % 4}" for i in range(60)]
    rank = rng.integers(0, 4, 60)
    clips = pa.table({"uri": uris, "start_seconds": starts, "end_seconds": ends})
    counted = counted_seconds(clips, rank)
    order = np.lexsort((ends, starts))
    for uri in set(uris):
        mine = [i for i in order if uris[i] == uri]
        for second in range(60):
            inside = [i for i in mine if starts[i] <= second < ends[i]]
            if inside:
                best = min(inside, key=lambda i: rank[i])
                counted[best] -= 1
    assert counted == pytest.approx(np.zeros(60))
