"""Audio through a run: columns, the filter on silence, shards with and without it, exports in sync."""

import dataclasses
import shutil

import numpy as np
import pytest

from jobs.caption.caption import caption
from jobs.export.export import export
from jobs.export.settings import ExportSettings
from jobs.prepare.prepare import prepare
from jobs.recipe.presets import quickstart
from jobs.report.page import write_report
from jobs.shard import shard
from packing.shards.read import read_sample
from recaption.ledger.ledger import read_clips
from recaption.quality.filters import FilterThresholds, drop_reasons
from recaption.records import Sample, from_table
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io.reader import decode_bytes
from tests.recaption.decoding.audio.test_cut import with_damage
from tests.stand_ins.sound_files import chirp, chirp_time, decoded_sound, write_sounding_video

SECONDS, NUM_FRAMES = 3.0, 24
EVEN = np.arange(NUM_FRAMES) / 8
UNEVEN = np.concatenate([np.arange(12) * 0.05, 0.6 + np.arange(12) * 0.2])
"""The same length; in the middle a constant rate is off by almost a second."""


def with_silence_at_its_end():
    samples_N = chirp(SECONDS, 48_000)
    samples_N[48_000:] = 0
    return samples_N


VIDEOS = {
    "aac.mp4": ([{}], EVEN),
    "pcm.mkv": ([{"codec": "pcm_s16le"}], EVEN),
    "silent.mp4": ([], EVEN),
    "damaged.mp4": ([{}], EVEN),
    "uneven.mp4": ([{}], UNEVEN),
    "quiet.mp4": ([{"samples_N": with_silence_at_its_end()}], EVEN),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    for seed, (name, (tracks, times)) in enumerate(VIDEOS.items()):
        frames_THWC = render(8000 + seed, num_frames=NUM_FRAMES, height_px=64, width_px=96, fps=8, **SIMPLE).frames_THWC
        write_sounding_video(folder / name, tracks, seconds=SECONDS, frame_seconds=times, frames_THWC=frames_THWC)
    with_damage(folder / "damaged.mp4", 60, 70).replace(folder / "damaged.mp4")
    return folder


@pytest.fixture(scope="module")
def recipe():
    recipe = quickstart()
    filters = dataclasses.replace(recipe.filters, max_duplicate_similarity=None)
    repeats_off = dataclasses.replace(recipe.caption, min_clip_score=-1.0)
    return dataclasses.replace(recipe, filters=filters, caption=repeats_off)


@pytest.fixture(scope="module")
def run(videos, recipe, in_process, tmp_path_factory):
    folder = RunFolder(str(tmp_path_factory.mktemp("audio") / "run"))
    prepare([str(videos)], folder.uri, recipe, in_process)
    caption(folder, recipe, "main", in_process)
    shard(folder, recipe, "main", in_process)
    return folder


@pytest.fixture(scope="module")
def clips(run):
    """File name -> row of its clip."""
    return {row["uri"].rpartition("/")[2]: row for row in read_clips(run).to_pylist()}


def samples(run):
    return {row.clip_id: row for row in from_table(run.read_table("index.parquet"), Sample)}


def without_audio(recipe, audio="drop"):
    return dataclasses.replace(recipe, shard=dataclasses.replace(recipe.shard, audio=audio))


def test_clips_know_how_loud_and_how_silent_they_are(clips):
    assert clips["aac.mp4"]["loudness_lufs"] == pytest.approx(-12, abs=2)
    assert clips["aac.mp4"]["silence_fraction"] == 0
    assert (clips["silent.mp4"]["loudness_lufs"], clips["silent.mp4"]["silence_fraction"]) == (None, 1.0)
    assert clips["quiet.mp4"]["silence_fraction"] == pytest.approx(2 / 3, abs=0.02)


def test_silent_clips_are_dropped_only_where_that_is_asked(run, clips):
    table = read_clips(run)
    silent = {clips[name]["clip_id"] for name in ("silent.mp4", "quiet.mp4")}
    for limit, expected in ((None, set()), (0.5, silent), (0.9, {clips["silent.mp4"]["clip_id"]})):
        thresholds = FilterThresholds(max_duplicate_similarity=None, max_silence_fraction=limit)
        reasons = dict(zip(table["clip_id"].to_pylist(), drop_reasons(table, thresholds), strict=True))
        assert {clip_id for clip_id, reason in reasons.items() if reason == "silent"} == expected


def test_what_if_knows_silence(command, run):
    code, summary, _ = command("prepare", "--out", run.uri, "--what-if", "silence_fraction=0.5")
    assert code == 0
    assert "silent" in str(summary)


def test_samples_have_the_sound_of_their_clips(run, clips):
    index = samples(run)
    for name, audio in (
        ("aac.mp4", "aac"),
        ("pcm.mkv", "aac from pcm_s16le"),
        ("uneven.mp4", "aac"),
        ("silent.mp4", ""),
    ):
        sample = index[clips[name]["clip_id"]]
        assert sample.audio == audio
        if not audio:
            continue
        mp4 = read_sample(run, sample)["mp4"]
        start, samples_CN, rate_hz = decoded_sound(mp4)
        assert abs(chirp_time(samples_CN[0, 4800:48_000], rate_hz, SECONDS) - 0.1 - start) < 0.002
        length = sample.num_frames / sample.fps
        assert samples_CN.shape[1] / rate_hz == pytest.approx(length, abs=0.03)


def test_damaged_audio_costs_no_clip_and_is_said(run, clips):
    clip_id = clips["damaged.mp4"]["clip_id"]
    (video,) = [row for row in run.read_table("videos/part-00000.parquet").to_pylist() if "damaged" in row["uri"]]
    assert (video["status"], video["has_audio"]) == ("ok", True)
    assert "damaged packets" in video["audio_detail"]
    assert samples(run)[clip_id].audio == ""
    rows = [row for name in run.list("shards/*/*.parquet") for row in run.read_table(name).to_pylist()]
    (row,) = [row for row in rows if row["clip_id"] == clip_id]
    assert row["status"] == "ok"
    assert row["detail"].startswith("audio lost: stream 1 (aac): damaged at 1.")


def test_without_audio_only_shards_with_sound_are_written_again(run, recipe, videos, in_process, tmp_path):
    shutil.copytree(run.root, tmp_path / "run")
    copy = RunFolder(str(tmp_path / "run"))
    before = {row.clip_id: row.sha256 for row in samples(copy).values() if not row.audio}
    assert shard(copy, without_audio(recipe), "main", in_process)["computed_parts"] == 1
    after = samples(copy)
    assert all(not row.audio for row in after.values())
    for clip_id, sha256 in before.items():
        assert after[clip_id].sha256 == sha256
    assert shard(copy, without_audio(recipe), "main", in_process)["computed_parts"] == 0
    shard(copy, without_audio(recipe, "encode"), "main", in_process)
    assert {row.audio for row in samples(copy).values()} == {"", "aac from aac", "aac from pcm_s16le"}


def test_a_run_without_sound_has_the_same_plan_with_and_without_audio(recipe, in_process, tmp_path, videos):
    (tmp_path / "videos").mkdir()
    shutil.copyfile(videos / "silent.mp4", tmp_path / "videos" / "silent.mp4")
    folder = RunFolder(str(tmp_path / "run"))
    prepare([str(tmp_path / "videos")], folder.uri, recipe, in_process)
    caption(folder, recipe, "main", in_process)
    assert shard(folder, recipe, "main", in_process)["computed_parts"] == 1
    assert shard(folder, without_audio(recipe), "main", in_process)["computed_parts"] == 0


def test_exports_have_sound_in_sync_however_they_are_cut(run, recipe, clips, in_process, tmp_path):
    for cut in ("auto", "encode"):
        out = tmp_path / cut
        export(run, recipe, ExportSettings(to="folder", cut=cut), str(out), in_process)
        table = RunFolder(str(out)).read_table("clips.parquet").to_pylist()
        rows = {row["clip_id"]: row for row in table}
        assert rows[clips["silent.mp4"]["clip_id"]]["audio"] == ""
        assert rows[clips["damaged.mp4"]["clip_id"]]["audio"] == ""
        assert "damaged at 1." in rows[clips["damaged.mp4"]["clip_id"]]["detail"]
        for name in ("aac.mp4", "pcm.mkv", "uneven.mp4"):
            row = rows[clips[name]["clip_id"]]
            mp4 = (out / row["file"]).read_bytes()
            start, samples_CN, rate_hz = decoded_sound(mp4)
            assert abs(chirp_time(samples_CN[0, 4800:48_000], rate_hz, SECONDS) - 0.1 - start) < 0.002
            times = VIDEOS[name][1]
            shown = decode_bytes(mp4).pts_seconds
            assert np.allclose(shown - shown[0], times, atol=0.002)
            source = "pcm_s16le" if name == "pcm.mkv" else "aac"
            assert row["audio"] == ("aac" if (source, cut) == ("aac", "auto") else f"aac from {source}")


def test_a_resumed_export_says_the_same_of_its_audio(run, recipe, in_process, tmp_path):
    settings = ExportSettings(to="folder", cut="encode")
    export(run, recipe, settings, str(tmp_path), in_process)
    before = (tmp_path / "clips.parquet").read_bytes()
    for table in (tmp_path / ".recaption" / "parts").glob("*.parquet"):
        table.unlink()
    export(run, recipe, settings, str(tmp_path), in_process)
    assert (tmp_path / "clips.parquet").read_bytes() == before


def test_an_export_without_audio_copies_no_file_that_has_some(run, recipe, clips, in_process, tmp_path):
    export(run, recipe, ExportSettings(to="folder", audio="drop"), str(tmp_path), in_process)
    rows = {row["clip_id"]: row for row in RunFolder(str(tmp_path)).read_table("clips.parquet").to_pylist()}
    assert rows[clips["silent.mp4"]["clip_id"]]["cut"] == "copied"
    row = rows[clips["aac.mp4"]["clip_id"]]
    assert (row["cut"], row["audio"]) == ("cut", "")
    with pytest.raises(IndexError):
        decoded_sound((tmp_path / row["file"]).read_bytes())


def test_the_report_plays_sound(run, recipe):
    write_report(run, recipe.filters)
    page = run.read_bytes("report/index.html").decode()
    assert "sound: aac from pcm_s16le" in page
    assert page.count("<video controls loop playsinline") == sum(bool(row.audio) for row in samples(run).values())
    assert page.count("<video controls muted loop playsinline") == sum(not row.audio for row in samples(run).values())
