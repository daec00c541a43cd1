"""Curves, funnel and neighbours of a threshold agree with applying the filters again."""

import dataclasses
import itertools
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from recaption.errors import UsageError
from recaption.ledger.ledger import CLIPS_SCHEMA
from recaption.quality.filters import FILTERS, VIDEO_FLAGS, FilterThresholds, drop_reasons
from recaption.quality.threshold_analysis import (
    changed_thresholds,
    clips_near_threshold,
    filter_funnel,
    missing_scores,
    parse_threshold_changes,
    retention_curve,
    threshold_columns,
)

THRESHOLDS = FilterThresholds(
    min_seconds=1.0, min_motion=0.1, min_sharpness=20.0, max_text_area=0.3, drop_interlaced=True
)
NUM_CLIPS = 300


@pytest.fixture(scope="module")
def clips():
    """Random scores, some missing, nsfw always; every tenth clip is a duplicate of the previous one."""
    random = np.random.default_rng(7)
    rows = []
    for i in range(NUM_CLIPS):
        row = dict.fromkeys(CLIPS_SCHEMA.names)
        row |= {"video_id": "v", "uri": f"{i}.mp4", "shot_index": 0, "start_frame": 0, "end_frame": 24, "fps": 24.0}
        row |= {"start_seconds": 0.0, "end_seconds": float(random.choice([0.5, 1.0, 2.0, 5.0])), "width_px": 64}
        row |= {"clip_id": f"clip-{i - 1 if i % 10 == 9 else i}", "height_px": 64, "motion": float(random.random())}
        row |= {"sharpness": float(random.lognormal(3)), "luma": float(random.random()), "letterbox": 0.0}
        row["text_area"] = None if i % 7 == 0 else float(random.choice([0.0, 0.1, 0.3, 0.5]))
        rows.append(row)
    table = pa.Table.from_pylist(rows, schema=CLIPS_SCHEMA)
    for name in VIDEO_FLAGS:
        table = table.append_column(name, pa.array((random.random(NUM_CLIPS) < 0.1).astype(float)))
    return table


def test_curve_equals_the_fraction_kept_at_each_threshold(clips):
    evaluate = partial(drop_reasons, clips)
    columns = threshold_columns(clips, THRESHOLDS, evaluate)
    known = {"seconds", "motion", "sharpness", "luma", "letterbox", "text_area"}
    filters = [clip_filter for clip_filter in FILTERS if clip_filter.score in known]
    assert set(columns) == {name for f in filters for name in (f.min_field, f.max_field) if name}
    for field, column in columns.items():
        curve = retention_curve(column)
        for i in range(0, len(curve.thresholds), 9):
            moved = dataclasses.replace(THRESHOLDS, **{field: float(curve.thresholds[i])})
            kept = sum(reason is None for reason in evaluate(moved)) / NUM_CLIPS
            assert curve.kept_fraction[i] == pytest.approx(kept), (field, curve.thresholds[i])
        falls = np.diff(curve.passing_fraction) * (1 if column.is_minimum else -1)
        assert (falls <= 0).all()
    assert set(missing_scores(clips)) == {clip_filter.score for clip_filter in FILTERS} - known - set(VIDEO_FLAGS)


def test_funnel_ends_at_the_kept_clips_and_accounts_for_every_drop(clips):
    reasons = drop_reasons(clips, THRESHOLDS)
    seconds = np.array([row["end_seconds"] for row in clips.to_pylist()])
    steps = filter_funnel(reasons, {"seconds": seconds})
    assert steps[0].clips == NUM_CLIPS
    assert steps[-1].clips == reasons.count(None)
    for before, step in itertools.pairwise(steps):
        assert before.clips - step.clips == reasons.count(step.reason)
    kept = [s for s, reason in zip(seconds, reasons) if reason is None]
    assert steps[-1].left["seconds"] == pytest.approx(sum(kept))
    assert [step.reason for step in steps][-1] == "duplicate"


def test_clips_near_a_threshold_are_those_that_pass_all_other_filters(clips):
    column = threshold_columns(clips, THRESHOLDS, partial(drop_reasons, clips))["min_motion"]
    found = clips_near_threshold(column, count=5)
    motion = np.array(clips["motion"].to_pylist())
    reasons = drop_reasons(clips, THRESHOLDS)
    without = drop_reasons(clips, dataclasses.replace(THRESHOLDS, min_motion=None))
    kept = sorted(m for m, reason in zip(motion, reasons) if reason is None)
    only = sorted((m for m, a, b in zip(motion, reasons, without) if a == "low_motion" and b is None), reverse=True)
    assert [value for _, value in found.inside] == kept[:5]
    assert [value for _, value in found.outside] == only[:5]
    assert len(found.outside) > 1
    assert all(motion[row] == value for row, value in (*found.inside, *found.outside))


def test_threshold_that_is_off_has_no_neighbours_unless_a_value_is_given(clips):
    off = dataclasses.replace(THRESHOLDS, min_motion=None)
    column = threshold_columns(clips, off, partial(drop_reasons, clips))["min_motion"]
    assert clips_near_threshold(column).inside == clips_near_threshold(column).outside == []
    assert clips_near_threshold(column, at=0.5).outside[0][1] < 0.5 <= clips_near_threshold(column, at=0.5).inside[0][1]


def test_no_clips_no_curves(clips):
    none = clips.slice(0, 0)
    assert threshold_columns(none, THRESHOLDS, partial(drop_reasons, none)) == {}
    assert missing_scores(none) == []


def test_changes_by_score_by_threshold_and_off():
    changed = parse_threshold_changes(["motion=0.02,text_area=off", "min_luma=0.1, max-luma=1e-1"], THRESHOLDS)
    assert changed_thresholds(THRESHOLDS, changed) == ["min_motion", "min_luma", "max_luma", "max_text_area"]
    assert (changed.min_motion, changed.max_text_area, changed.max_luma) == (0.02, None, 0.1)
    assert parse_threshold_changes(["drop_duplicates=off"], THRESHOLDS).drop_duplicates is False
    assert parse_threshold_changes(["hdr=on,interlaced=off"], THRESHOLDS).drop_hdr is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=3", "available: seconds, motion, sharpness, luma"),
        ("luma=0.3", "min_luma or max_luma"),
        ("seconds=3", "min_seconds or max_seconds"),
        ("motion=fast", "a number or off"),
        ("motion=nan", "a number or off"),
        ("motion", "NAME=NUMBER"),
        ("motion=1,", "NAME=NUMBER"),
        ("motion=1,min_motion=2", "min_motion twice"),
        ("drop_duplicates=3", "on or off"),
        ("min_speed=3", "unknown score"),
        ("max_clips_per_caption=3", "applies to captions"),
    ],
)
def test_invalid_changes_are_explained_in_one_sentence(text, message):
    with pytest.raises(UsageError, match=message) as error:
        parse_threshold_changes([text], THRESHOLDS)
    assert "\n" not in str(error.value)
