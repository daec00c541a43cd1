"""Drop reasons are computed from stored scores."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest

from recaption.errors import DROP_REASONS
from recaption.quality.filters import (
    FILTERS,
    PLUGIN_FIELDS,
    VIDEO_FLAG_SOURCES,
    VIDEO_FLAGS,
    FilterThresholds,
    drop_reasons,
    with_video_flags,
)
from recaption.quality.scores import score_clip
from recaption.records import Clip, ClipScores, Video, to_table
from recaption.scenes.renderer import render
from recaption.video_io.frames import Frames


def clips_table(rows: list[dict]) -> pa.Table:
    """Clips of two seconds with ordinary scores; `rows` override single columns."""
    ordinary = {"motion": 0.1, "sharpness": 300.0, "luma": 0.5, "text_area": 0.0, "letterbox": 0.0}
    scores, clips, flags = [], [], []
    for index, row in enumerate(rows):
        row = dict(row)
        flags.append([row.pop(name, 0.0) for name in VIDEO_FLAGS])
        row = {"clip_id": f"{index:016x}-0000000-0000048", "seconds": 2.0} | ordinary | row
        end_seconds = 1.0 + row.pop("seconds")
        place = {"video_id": "0", "uri": "", "shot_index": 0, "start_frame": 0, "end_frame": 48, "fps": 24.0}
        place |= {"start_seconds": 1.0, "end_seconds": end_seconds, "width_px": 64, "height_px": 64}
        clips.append(Clip(clip_id=row["clip_id"], **place))
        scores.append(ClipScores(**row))
    table, extra = to_table(clips, Clip), to_table(scores, ClipScores)
    for name in extra.column_names[1:]:
        table = table.append_column(name, extra[name])
    for name, column in zip(VIDEO_FLAGS, zip(*flags, strict=True) if flags else [()] * 3, strict=True):
        table = table.append_column(name, pa.array(column, pa.float64()))
    return table


def test_defaults_keep_rendered_scenes_also_still_ones():
    for seed in range(10):
        pixels_THWC = render(seed, num_frames=9, height_px=120, width_px=160).frames_THWC
        frames = Frames(pixels_THWC, np.arange(9) / 8, np.arange(9))
        scores = dataclasses.asdict(score_clip("clip", frames, frames[::4]))
        scores.pop("clip_id")
        assert drop_reasons(clips_table([scores]), FilterThresholds()) == [None], scores


@pytest.mark.parametrize(
    ("row", "thresholds", "reason"),
    [
        ({"seconds": 0.9}, FilterThresholds(min_seconds=1.0), "too_short"),
        ({"seconds": 9.0}, FilterThresholds(max_seconds=8.0), "too_long"),
        ({"motion": 0.001}, FilterThresholds(min_motion=0.01), "low_motion"),
        ({"sharpness": 1.0}, FilterThresholds(min_sharpness=2.0), "blurry"),
        ({"luma": 0.01}, FilterThresholds(min_luma=0.03), "dark"),
        ({"luma": 0.99}, FilterThresholds(max_luma=0.98), "bright"),
        ({"text_area": 0.5}, FilterThresholds(max_text_area=0.3), "text"),
        ({"letterbox": 0.5}, FilterThresholds(max_letterbox=0.35), "letterbox"),
        ({"nsfw": 0.9}, FilterThresholds(max_nsfw=0.5), "nsfw"),
        ({"aesthetic": 2.0}, FilterThresholds(min_aesthetic=3.5), "low_aesthetic"),
        ({"hdr": 1.0}, FilterThresholds(drop_hdr=True), "hdr"),
        ({"interlaced": 1.0}, FilterThresholds(drop_interlaced=True), "interlaced"),
        ({"transparent": 1.0}, FilterThresholds(drop_transparent=True), "transparent"),
        ({"text_area_ocr": 0.2}, FilterThresholds(max_text_area_ocr=0.1), "text"),
        ({"static_text": 0.02}, FilterThresholds(max_static_text=0.005), "text"),
        ({"static_text_ocr": 0.02}, FilterThresholds(max_static_text_ocr=0.005), "text"),
        ({"blockiness": 0.5}, FilterThresholds(max_blockiness=0.3), "low_quality"),
        ({"flicker": 0.05}, FilterThresholds(max_flicker=0.02), "low_quality"),
    ],
)
def test_each_threshold_drops_with_its_reason_and_nothing_else(row, thresholds, reason):
    assert drop_reasons(clips_table([row, {}]), thresholds) == [reason, None]


def test_first_reason_in_the_closed_order_wins():
    row = {"seconds": 0.1, "motion": 0.0, "luma": 0.0, "letterbox": 1.0}
    names = ("min_motion", "min_luma", "max_letterbox", "min_seconds")
    limits = dict(zip(names, (0.1, 0.1, 0.1, 1.0), strict=True))
    reasons = []
    for name in ("min_seconds", "min_motion", "min_luma", "max_letterbox"):
        reasons.append(drop_reasons(clips_table([row]), FilterThresholds(**limits))[0])
        limits[name] = None
    assert reasons == ["too_short", "low_motion", "dark", "letterbox"]
    assert [DROP_REASONS.index(reason) for reason in reasons] == sorted(DROP_REASONS.index(r) for r in reasons)


def test_filters_are_in_the_order_of_reasons_and_cover_every_threshold():
    positions = [DROP_REASONS.index(clip_filter.reason) for clip_filter in FILTERS]
    assert positions == sorted(positions)
    used = {name for clip_filter in FILTERS for name in clip_filter.fields}
    no_filter = {
        "drop_duplicates",
        "max_duplicate_similarity",
        "max_semantic_similarity",
        "min_duplicate_fraction",
        "max_clips_per_caption",
    }
    assert used == {f.name for f in dataclasses.fields(FilterThresholds)} - no_filter - {*PLUGIN_FIELDS.values()}


def test_what_a_video_is_drops_nothing_unless_asked_to():
    row = dict.fromkeys(VIDEO_FLAGS, 1.0)
    assert drop_reasons(clips_table([row]), FilterThresholds()) == [None]


def test_clips_get_the_flags_of_their_videos():
    videos = [
        Video(video_id="pq", uri="a", transfer="smpte2084"),
        Video(video_id="hlg", uri="b", transfer="arib-std-b67", is_interlaced=True),
        Video(video_id="sdr", uri="c", transfer="bt709", has_alpha=True),
    ]
    clips = clips_table([{}] * 4).drop_columns(list(VIDEO_FLAGS))
    clips = clips.set_column(1, "video_id", pa.array(["sdr", "pq", "hlg", "unknown"]))
    flagged = with_video_flags(clips, to_table(videos, Video).select(VIDEO_FLAG_SOURCES))
    assert flagged["hdr"].to_pylist() == [0.0, 1.0, 1.0, None]
    assert flagged["interlaced"].to_pylist() == [0.0, 0.0, 1.0, None]
    assert flagged["transparent"].to_pylist() == [1.0, 0.0, 0.0, None]
    every = FilterThresholds(drop_hdr=True, drop_interlaced=True, drop_transparent=True)
    assert drop_reasons(flagged, every) == ["transparent", "hdr", "hdr", None]


def test_missing_scores_drop_nothing():
    missing = {"motion": None, "sharpness": None, "luma": None, "text_area": None, "letterbox": None}
    unclear = dict.fromkeys(missing, math.nan)
    strict = FilterThresholds(min_motion=9, min_sharpness=9e9, min_luma=1, max_luma=0, max_text_area=0, max_letterbox=0)
    assert drop_reasons(clips_table([missing, unclear]), strict) == [None, None]


def test_thresholds_can_all_be_off_and_limits_are_inclusive():
    off = FilterThresholds(
        **{f.name: None for f in dataclasses.fields(FilterThresholds) if f.name != "drop_duplicates"}
    )
    awful = {"seconds": 0.0, "motion": 0.0, "sharpness": 0.0, "luma": 0.0, "text_area": 1.0, "letterbox": 1.0}
    assert drop_reasons(clips_table([awful]), off) == [None]
    assert drop_reasons(clips_table([{"seconds": 1.0, "luma": 0.5}]), FilterThresholds(min_luma=0.5)) == [None]


def test_second_of_two_clips_with_one_id_is_the_duplicate():
    rows = [{"clip_id": "a"}, {"clip_id": "b"}, {"clip_id": "a"}, {"clip_id": "a", "luma": 0.0}]
    assert drop_reasons(clips_table(rows), FilterThresholds()) == [None, None, "duplicate", "dark"]
    assert drop_reasons(clips_table(rows), FilterThresholds(drop_duplicates=False))[2] is None


def test_empty_table():
    assert drop_reasons(clips_table([]), FilterThresholds()) == []
