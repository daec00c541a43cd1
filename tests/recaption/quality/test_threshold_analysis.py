"""Curves, waterfalls and neighbours of a threshold are what asking the verdicts again would say."""

import dataclasses
import itertools
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from recaption.errors import UsageError
from recaption.ledger.ledger import CLIPS_SCHEMA
from recaption.quality.filters import FILTERS, FilterThresholds, verdicts
from recaption.quality.threshold_analysis import (
    around,
    changed_fields,
    columns_of,
    curve_of,
    not_computed,
    parse_changes,
    waterfall,
)

THRESHOLDS = FilterThresholds(min_seconds=1.0, min_motion=0.1, min_sharpness=20.0, max_text_area=0.3)
NUM_CLIPS = 300


@pytest.fixture(scope="module")
def clips():
    """Scores drawn at random, some not computed, nsfw never; every tenth clip is a copy of the one before it."""
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
    return pa.Table.from_pylist(rows, schema=CLIPS_SCHEMA)


def test_a_curve_is_what_the_verdicts_say_at_each_threshold(clips):
    ask = partial(verdicts, clips)
    columns = columns_of(clips, THRESHOLDS, ask)
    known = {"seconds", "motion", "sharpness", "luma", "letterbox", "text_area"}
    assert set(columns) == {name for one in FILTERS if one.score in known for name in (one.lowest, one.highest) if name}
    for field, column in columns.items():
        curve = curve_of(column)
        for i in range(0, len(curve.thresholds), 9):
            moved = dataclasses.replace(THRESHOLDS, **{field: float(curve.thresholds[i])})
            kept = sum(reason is None for reason in ask(moved)) / NUM_CLIPS
            assert curve.share_kept[i] == pytest.approx(kept), (field, curve.thresholds[i])
        falls = np.diff(curve.share_inside) * (1 if column.is_lowest else -1)
        assert (falls <= 0).all()
    assert set(not_computed(clips)) == {one.score for one in FILTERS} - known


def test_the_waterfall_ends_at_what_is_kept_and_loses_nothing_on_the_way(clips):
    reasons = verdicts(clips, THRESHOLDS)
    seconds = np.array([row["end_seconds"] for row in clips.to_pylist()])
    steps = waterfall(reasons, {"seconds": seconds})
    assert steps[0].clips == NUM_CLIPS
    assert steps[-1].clips == reasons.count(None)
    for before, step in itertools.pairwise(steps):
        assert before.clips - step.clips == reasons.count(step.reason)
    kept = [s for s, reason in zip(seconds, reasons) if reason is None]
    assert steps[-1].left["seconds"] == pytest.approx(sum(kept))
    assert [step.reason for step in steps][-1] == "duplicate"


def test_the_clips_beside_a_threshold_are_the_ones_that_it_alone_decides(clips):
    column = columns_of(clips, THRESHOLDS, partial(verdicts, clips))["min_motion"]
    found = around(column, count=5)
    motion = np.array(clips["motion"].to_pylist())
    reasons = verdicts(clips, THRESHOLDS)
    without = verdicts(clips, dataclasses.replace(THRESHOLDS, min_motion=None))
    kept = sorted(m for m, reason in zip(motion, reasons) if reason is None)
    only = sorted((m for m, a, b in zip(motion, reasons, without) if a == "low_motion" and b is None), reverse=True)
    assert [value for _, value in found.inside] == kept[:5]
    assert [value for _, value in found.outside] == only[:5]
    assert len(found.outside) > 1
    assert all(motion[row] == value for row, value in (*found.inside, *found.outside))


def test_a_threshold_that_is_off_has_no_neighbours_unless_a_place_is_named(clips):
    off = dataclasses.replace(THRESHOLDS, min_motion=None)
    column = columns_of(clips, off, partial(verdicts, clips))["min_motion"]
    assert around(column).inside == around(column).outside == []
    assert around(column, at=0.5).outside[0][1] < 0.5 <= around(column, at=0.5).inside[0][1]


def test_no_clips_give_no_curves():
    none = CLIPS_SCHEMA.empty_table()
    assert columns_of(none, THRESHOLDS, partial(verdicts, none)) == {}
    assert not_computed(none) == []


def test_changes_are_read_by_score_by_threshold_and_switched_off():
    changed = parse_changes(["motion=0.02,text_area=off", "min_luma=0.1, max-luma=1e-1"], THRESHOLDS)
    assert changed_fields(THRESHOLDS, changed) == ["min_motion", "min_luma", "max_luma", "max_text_area"]
    assert (changed.min_motion, changed.max_text_area, changed.max_luma) == (0.02, None, 0.1)
    assert parse_changes(["drop_duplicates=off"], THRESHOLDS).drop_duplicates is False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("speed=3", "there are seconds, motion, sharpness, luma"),
        ("luma=0.3", "min_luma or max_luma"),
        ("seconds=3", "min_seconds or max_seconds"),
        ("motion=fast", "a number, or off"),
        ("motion=nan", "a number, or off"),
        ("motion", "NAME=NUMBER"),
        ("motion=1,", "NAME=NUMBER"),
        ("motion=1,min_motion=2", "min_motion twice"),
        ("drop_duplicates=3", "on or off"),
        ("min_speed=3", "no such score"),
        ("max_clips_per_caption=3", "asked of captions"),
    ],
)
def test_a_change_that_means_nothing_is_one_sentence(text, said):
    with pytest.raises(UsageError, match=said) as refused:
        parse_changes([text], THRESHOLDS)
    assert "\n" not in str(refused.value)
