"""Tables that do not add up are reported with the row that is wrong."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from recaption.ledger.table_checks import (
    check_captions,
    check_coverage,
    check_inputs,
    check_recipe_hashes,
    find_duplicates,
)
from recaption.run_folder import RunFolder

VIDEO_ID = "a" * 16


def found(problems) -> list[tuple[str, str]]:
    return [(problem.kind, problem.where) for problem in problems]


def videos(num_frames: int = 72, duration_seconds: float = 3.0, **changes: object) -> pa.Table:
    row = {"uri": "a.mp4", "video_id": VIDEO_ID, "status": "ok"}
    return pa.Table.from_pylist([row | {"num_frames": num_frames, "duration_seconds": duration_seconds} | changes])


def clips(*spans: tuple[int, int], uri: str = "a.mp4") -> pa.Table:
    """Clips of a video of 24 frames a second."""
    return pa.Table.from_pylist(
        [
            {
                "clip_id": f"{VIDEO_ID}-{start:07d}-{end:07d}",
                "video_id": VIDEO_ID,
                "uri": uri,
                "start_frame": start,
                "end_frame": end,
                "start_seconds": start / 24,
                "end_seconds": end / 24,
            }
            for start, end in spans
        ]
    )


def coverage(videos: pa.Table, clips: pa.Table):
    return list(check_coverage("videos/p", videos, "clips/p", clips))


def test_clips_that_cover_a_video_in_any_order_are_right():
    assert coverage(videos(), clips((24, 72), (0, 24))) == []


@pytest.mark.parametrize(
    ("spans", "detail"),
    [
        ([(0, 24), (30, 72)], "frames 24 to 30 are in no clip or in two"),
        ([(0, 30), (24, 72)], "frames 30 to 24 are in no clip or in two"),
        ([(6, 72)], "frames 0 to 6 are in no clip or in two"),
        ([(0, 24)], "clips end at frame 24 of 72"),
    ],
    ids=["gap", "overlap", "no start", "no end"],
)
def test_a_gap_or_overlap_is_named(spans, detail):
    problems = coverage(videos(), clips(*spans))
    assert found(problems) == [("clips_do_not_tile", "videos/p:a.mp4")]
    assert problems[0].detail == detail


def test_seconds_may_differ_by_a_millisecond_and_no_more():
    assert coverage(videos(duration_seconds=3.0009), clips((0, 72))) == []
    problems = coverage(videos(duration_seconds=3.0011), clips((0, 72)))
    assert found(problems) == [("seconds_do_not_add_up", "videos/p:a.mp4")]


def test_clips_need_a_readable_video_and_its_id():
    clip = f"clips/p:{VIDEO_ID}-0000000-0000072"
    failed = videos(status="failed")
    assert found(coverage(failed, clips((0, 72)))) == [("clip_without_video", clip)]
    assert found(coverage(videos(video_id="b" * 16), clips((0, 72)))) == [("clip_without_video", clip)]


def test_a_clip_id_that_does_not_follow_from_its_frames_is_wrong():
    table = clips((0, 72)).set_column(0, "clip_id", pa.array([f"{VIDEO_ID}-0000000-0000071"]))
    assert found(coverage(videos(), table)) == [("clip_id_wrong", f"clips/p:{VIDEO_ID}-0000000-0000071")]


INPUTS = pa.table({"uri": ["a.mp4", "b.mp4", "c.mp4"], "part": [0, 0, 1]})


def test_an_input_without_a_row_is_missing_once_its_part_is_there():
    rows = {"videos/part-00000.parquet": pa.table({"uri": ["a.mp4"]})}
    assert found(check_inputs(INPUTS, rows, finished=False)) == [("input_missing", "inputs.parquet:b.mp4")]
    assert found(check_inputs(INPUTS, rows, finished=True)) == [
        ("input_missing", "inputs.parquet:b.mp4"),
        ("input_missing", "inputs.parquet:c.mp4"),
    ]


def test_before_the_first_part_no_input_is_missing():
    assert found(check_inputs(INPUTS, {}, finished=False)) == []


def test_an_input_with_two_rows_is_reported_at_the_second():
    rows = {
        "videos/part-00000.parquet": pa.table({"uri": ["a.mp4", "b.mp4"]}),
        "videos/part-00001.parquet": pa.table({"uri": ["c.mp4", "a.mp4"]}),
    }
    assert found(check_inputs(INPUTS, rows, finished=True)) == [("video_twice", "videos/part-00001.parquet:a.mp4")]


def test_every_occurrence_but_the_first_is_a_duplicate():
    tables = {"x": pa.table({"n": ["1", "2", "2"]}), "y": pa.table({"n": ["3", "2", "1"]})}
    assert list(find_duplicates(tables, "n")) == [("x", "2"), ("y", "2"), ("y", "1")]
    assert list(find_duplicates({}, "n")) == []


def test_parts_of_another_recipe_than_the_first_are_named(tmp_path: Path):
    run = RunFolder(str(tmp_path))
    names = [f"clips/part-0000{n}.parquet" for n in range(3)]
    for name, recipe in zip(names, ("r1", "r2", "r1"), strict=True):
        run.write_table(name, pa.table({"n": [1]}), {"recipe_hash": recipe})
    problems = list(check_recipe_hashes(run, names))
    assert found(problems) == [("recipe_mixed", names[1])]
    assert "'r2'" in problems[0].detail
    assert list(check_recipe_hashes(run, [names[0], names[2]])) == []


def test_captions_need_a_clip_and_generated_ones_the_recipe_of_their_part():
    rows = pa.table(
        {
            "clip_id": ["a", "b", "unknown", "a"],
            "source": ["model", "model", "model", "original"],
            "recipe_hash": ["r1", "r2", "r2", ""],
        }
    )
    problems = list(check_captions("captions/p", rows, pa.array(["a", "b"]), "r1"))
    assert found(problems) == [("caption_without_clip", "captions/p:unknown"), ("recipe_mixed", "captions/p")]
    assert problems[1].detail.startswith("1 of its captions")
