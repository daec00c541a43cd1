import dataclasses

import pyarrow as pa
import pytest

from recaption.errors import DROP_REASONS, FAILURE_REASONS, VideoError
from recaption.records import Caption, CaptionFields, Clip, ClipScores, Video, from_table, schema_of, to_table

CLIP = Clip(
    clip_id="00c0ffee00c0ffee-0000000-0000048",
    video_id="00c0ffee00c0ffee",
    uri="/videos/a.mp4",
    shot_index=0,
    start_frame=0,
    end_frame=48,
    start_seconds=0.0,
    end_seconds=2.0,
    width_px=320,
    height_px=180,
    fps=24.0,
)


def test_rows_come_back_from_a_table_as_they_went_in():
    caption = Caption(clip_id=CLIP.clip_id, text="a red circle", fields=CaptionFields(colour="red"), mean_logprob=-0.5)
    assert from_table(to_table([CLIP], Clip), Clip) == [CLIP]
    assert from_table(to_table([caption, Caption()], Caption), Caption) == [caption, Caption()]


def test_an_empty_table_keeps_its_schema():
    assert to_table([], ClipScores).schema == schema_of(ClipScores)


def test_a_score_that_was_not_computed_stays_none():
    table = to_table([ClipScores(clip_id="a", motion=0.5)], ClipScores)
    assert table["sharpness"].to_pylist() == [None]
    assert schema_of(ClipScores).field("motion").type == pa.float64()


def test_only_optional_fields_may_be_null():
    assert not schema_of(Video).field("uri").nullable
    assert schema_of(Video).field("reason").nullable


def test_columns_of_another_record_are_left_aside():
    table = to_table([CLIP], Clip).append_column("motion", pa.array([0.5]))
    assert from_table(table, Clip) == [CLIP]


def test_records_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CLIP.end_frame = 3  # type: ignore[misc]


def test_a_failure_reason_outside_the_list_is_our_own_bug():
    with pytest.raises(ValueError, match="bad_luck"):
        VideoError("bad_luck", "")
    assert not set(FAILURE_REASONS) & set(DROP_REASONS)


def test_a_video_error_crosses_process_borders():
    import pickle

    error = pickle.loads(pickle.dumps(VideoError("truncated", "ends at frame 7", uri="a.mp4")))
    assert (error.reason, error.detail, error.uri) == ("truncated", "ends at frame 7", "a.mp4")
