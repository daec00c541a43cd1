"""`open_run`: tables of a run with states joined in, on local disk and elsewhere; frames and pictures of clips."""

import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pytest

from jobs.prepare.prepare import prepare
from recaption import open_run
from recaption.errors import UsageError, VideoError
from recaption.ledger.ledger import build_ledger
from recaption.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(small_run):
    return open_run(small_run.uri)


def test_recaption_imports_nothing_until_it_is_asked():
    loaded = "{m.partition('.')[0] for m in sys.modules} & {'pyarrow', 'pandas', 'torch', 'numpy'}"
    code = f"import recaption, sys; print(sorted({loaded}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'close_run'"):
        exec("from recaption import open_run; import recaption; recaption.close_run")


def test_tables_have_one_row_each_and_the_states_of_the_ledger(run, small_run, small_recipe):
    ledger = build_ledger(small_run, small_recipe.filters)
    videos, clips, captions, samples = run.videos(), run.clips(), run.captions("main"), run.samples()
    assert isinstance(clips, pd.DataFrame)
    assert len(videos) == 12
    assert videos.num_clips.sum() == len(clips) == len(ledger.clips)
    assert videos.kept_seconds.sum() == pytest.approx(ledger.summary()["seconds"]["kept"])
    assert list(clips.state) == [clip.state for clip in ledger.clips]
    assert (clips.reason == "duplicate").sum() == 1
    assert clips[clips.state == "in_shard"].shard.str.startswith("shards/").all()
    assert set(samples.clip_id) == set(clips[clips.state == "in_shard"].clip_id)
    assert samples.merge(clips, on="clip_id").start_seconds_x.notna().all()
    assert set(captions[captions.clip_state == "in_shard"].clip_id) == set(samples.clip_id)
    assert "fields.main_object" in captions
    assert {"motion", "luma", "verdict", "seconds"} <= {*clips}
    assert run.scores().set_index("clip_id").dropped_by.dropna().tolist() == ["duplicate"]
    assert "11 of 12 clips kept" in repr(run)


def test_arrow_has_the_same_rows(run):
    table = run.clips(as_arrow=True)
    assert isinstance(table, pa.Table)
    pd.testing.assert_frame_equal(table.to_pandas(), run.clips())


def test_other_thresholds_change_states_and_no_file(run):
    middle = run.scores().motion.median()
    changed = run.with_filters(min_motion=float(middle)).clips()
    assert (changed.reason == "low_motion").sum() == (run.scores().motion < middle).sum() > 0
    assert (run.clips().reason == "low_motion").sum() == 0
    with pytest.raises(UsageError, match="no threshold 'min_movement'; there are min_seconds"):
        run.with_filters(min_movement=1)


def test_frames_are_those_of_the_clip(run):
    from recaption.video_io import read_frames

    clip = run.clips().iloc[3]
    frames = run.frames(clip.clip_id)
    assert frames.indices.tolist() == list(range(clip.start_frame, clip.end_frame))
    assert np.array_equal(frames.pixels_THWC[2], read_frames(clip.uri, [clip.start_frame + 2]).pixels_THWC[0])
    few = run.frames(clip.clip_id, num_frames=4, short_side_px=32)
    assert few.pixels_THWC.shape[:2] == (4, 32)


def test_frames_of_other_bytes_are_an_error(scene_videos, small_recipe, in_process, tmp_path):
    shutil.copy(scene_videos / "scene-01.mp4", tmp_path / "a.mp4")
    prepare([str(tmp_path / "a.mp4")], str(tmp_path / "run"), small_recipe, in_process)
    shutil.copy(scene_videos / "scene-02.mp4", tmp_path / "a.mp4")
    run = open_run(str(tmp_path / "run"))
    with pytest.raises(VideoError, match="source_changed"):
        run.frames(run.clips().clip_id[0])


def test_show_plays_in_a_notebook_and_escapes_texts(run):
    clip_id = run.samples().clip_id[0]
    view = run.show(clip_id)
    assert "<video" in view._repr_html_()
    assert view.mp4[4:8] == b"ftyp"
    assert clip_id in repr(view)
    assert run.captions("main").set_index("clip_id").text[clip_id] in repr(view)
    shown = type(view)(
        **{**{n: getattr(view, n) for n in view.__dataclass_fields__}, "captions": {"a": "<script>"}, "mp4": b""}
    )
    assert "<script>" not in shown._repr_html_()
    assert "<img" in shown._repr_html_()


def test_what_does_not_exist_is_named_with_what_does(run, tmp_path):
    clip_id = run.clips().clip_id[0]
    with pytest.raises(UsageError, match=f"no clip '{clip_id[:-1]}'; it has 12 clips, such as .*{clip_id}"):
        run.frames(clip_id[:-1])
    with pytest.raises(UsageError, match=r"no caption set 'mian' \(sets: main\)"):
        run.captions("mian")
    with pytest.raises(UsageError, match="is not a run folder"):
        open_run(str(tmp_path))


def test_a_remote_run_has_the_same_tables(run, small_run):
    remote = RunFolder("memory://open-run/a")
    for path in small_run.fs.find(small_run.root):
        if path.endswith((".parquet", ".yaml", ".tar")):
            remote.fs.pipe_file(remote.path(path.removeprefix(small_run.root + "/")), small_run.fs.cat_file(path))
    there = open_run("memory://open-run/a")
    for name in ("videos", "clips", "captions", "samples", "scores"):
        pd.testing.assert_frame_equal(getattr(there, name)(), getattr(run, name)())
    assert there.show(run.samples().clip_id[0]).mp4
    remote.fs.rm("/open-run", recursive=True)


def test_the_lines_of_the_page_read_the_files(small_run):
    """The one-liners of docs/tables.md, over the Parquet files themselves."""
    rows = pyarrow.dataset.dataset(f"{small_run.uri}/clips").to_table()
    assert rows.num_rows == 12
    duckdb = pytest.importorskip("duckdb")
    query = "select count(*), avg(motion) from '{}/clips/*.parquet' where luma > 0.1"
    count, motion = duckdb.sql(query.format(small_run.uri)).fetchall()[0]
    assert count == (rows.to_pandas().luma > 0.1).sum()
    assert 0 < motion < 1
