"""The caption stage: kinds and windows, quality gates, caption mixtures, the same bytes after a kill."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

import jobs.caption.caption as caption_stage
from jobs.caption.caption import caption
from jobs.caption.repeated import find_repeated_captions
from jobs.caption.worker import CaptionWorker
from jobs.encode.encode import encode
from jobs.prepare.prepare import prepare
from jobs.recipe.presets import quickstart
from jobs.recipe.run_inputs import kept_clips
from jobs.report.page import write_report
from jobs.shard import shard
from jobs.verify.repair import repair_run
from jobs.verify.verify import verify_run
from packing.loader.loader import PackLoader
from packing.loader.sources import LatentShards
from recaption.captioners.clip_views import sample_frames
from recaption.captioners.registry import load_captioner
from recaption.captioners.videococa.checkpoint import TINY_FOLDER
from recaption.captions.mixture import CaptionMixtureSettings
from recaption.captions.text import CAPTION_KINDS
from recaption.errors import UsageError
from recaption.ledger.ledger import build_ledger
from recaption.records import Caption, from_table, to_table
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io.opened_video import open_video
from recaption.video_io.reader import read_frames


@pytest.fixture(scope="module")
def captioner_with_kinds(tmp_path_factory):
    """The captioner of the package, with all caption kinds in its config."""
    folder = tmp_path_factory.mktemp("captioner") / "kinds"
    shutil.copytree(TINY_FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    config["kinds"] = {kind: "" if kind == "descriptive" else f"{kind.replace('_', ' ')} :" for kind in CAPTION_KINDS}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def recipe(captioner_with_kinds):
    base = quickstart()
    captions = dataclasses.replace(
        base.caption, captioner=captioner_with_kinds, kinds=("descriptive", "short"), window_seconds=1.2
    )
    return dataclasses.replace(base, prepare=dataclasses.replace(base.prepare, part_size=2), caption=captions)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(4):
        num_frames = 17 if seed % 2 else 9  # 2.1 s: two windows; 1.1 s: none
        scene = render(7100 + seed, num_frames=num_frames, height_px=64, width_px=64, fps=8, **SIMPLE)
        scene.write(folder / f"scene-{seed}.mp4")
    (folder / "scene-1.txt").write_text("my holiday, part one")
    (folder / "scene-3.txt").write_text("my my my my my my my my")
    return folder


@pytest.fixture(scope="module")
def captioned(videos, recipe, in_process, tmp_path_factory):
    run = RunFolder(str(tmp_path_factory.mktemp("run") / "run"))
    prepare([str(videos)], run.uri, recipe, in_process)
    summary = caption(run, recipe, "main", in_process)
    return run, recipe, summary


def rows_of(run, set_name="main"):
    names = run.list(f"captions/{set_name}/part-*.parquet")
    return [row for name in names for row in from_table(run.read_table(name), Caption)]


def digests(run, folder="captions"):
    return {
        path.relative_to(run.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((Path(run.root) / folder).rglob("*"))
        if path.is_file()
    }


def test_one_row_per_clip_window_and_kind(captioned):
    run, recipe, summary = captioned
    clips = [clip for part in kept_clips(run, recipe).values() for clip in part]
    found = {(row.clip_id, row.window, row.kind) for row in rows_of(run) if row.source == "model"}
    windows = {clip.clip_id: range(3) if clip.duration_seconds > 2 else range(1) for clip in clips}
    assert found == {(c, w, kind) for c, ws in windows.items() for w in ws for kind in ("descriptive", "short")}
    assert summary["captions"] + sum(summary["bad"].values()) == len(clips) == 4
    assert summary["bad"] == ({"bad_caption": n} if (n := sum(summary["faults"].values())) else {})
    assert build_ledger(run, recipe.filters).summary()["clips"]["total"] == 4


def test_windows_cover_the_clip_and_are_captioned_from_their_own_frames(captioned):
    run, recipe, _ = captioned
    captioner = load_captioner(recipe.caption.captioner)
    clip = next(c for part in kept_clips(run, recipe).values() for c in part if c.duration_seconds > 2)
    rows = [row for row in rows_of(run) if row.clip_id == clip.clip_id and row.kind == "descriptive"]
    whole, *windows = sorted(rows, key=lambda row: row.window)
    assert (whole.start_seconds, whole.end_seconds) == (clip.start_seconds, clip.end_seconds)
    assert [w.start_seconds for w in windows] == [clip.start_seconds, *(w.end_seconds for w in windows[:-1])]
    assert windows[-1].end_seconds == clip.end_seconds
    with open_video(clip.uri) as video:
        frames = sample_frames(video, clip, captioner)
    assert whole.clip_sha256 == hashlib.sha256(frames.tobytes()).hexdigest()
    times = read_frames(clip.uri, None).pts_seconds
    for window in windows:
        shown = np.flatnonzero((times >= window.start_seconds - 1e-6) & (times < window.end_seconds - 1e-6))
        count = min(captioner.num_frames, len(shown))
        wanted = shown[((np.arange(count) + 0.5) * len(shown) / count).astype(int)]
        pixels = read_frames(clip.uri, wanted, short_side_px=min(captioner.frame_px, 64)).pixels_THWC
        assert window.clip_sha256 == hashlib.sha256(pixels.tobytes()).hexdigest()


def test_a_clip_is_encoded_once_for_all_kinds_and_retries(captioned, in_process, monkeypatch, tmp_path):
    run, recipe, _ = captioned
    encoded = []
    worker_class = CaptionWorker

    class Counting(worker_class):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            encode_clips = self.captioner.model.encode_clips
            self.captioner.model.encode_clips = lambda pixels: encoded.append(len(pixels)) or encode_clips(pixels)

    monkeypatch.setattr(caption_stage, "CaptionWorker", Counting)
    copy = RunFolder(str(tmp_path / "run"))
    shutil.copytree(run.root, copy.root)
    caption(copy, recipe, "again", in_process)
    assert sum(encoded) == len([row for row in rows_of(run) if row.kind == "descriptive" and row.source == "model"])
    of_main, of_again = (rows_of(copy, name) for name in ("main", "again"))
    assert of_main == of_again


def test_the_page_shows_kinds_and_windows_of_a_clip(captioned):
    run, recipe, _ = captioned
    page = Path(write_report(run, recipe.filters, recipe=recipe)).read_text()
    assert page.count("5 more captions") == 2  # short, and both kinds of two windows
    assert page.count("1 more caption<") == 2
    window = next(row for row in rows_of(run) if row.window == 2 and row.kind == "short")
    assert f'<p><span class="note">short:</span> {window.text.split(chr(34))[0]}' in page


def test_a_damaged_table_of_repeated_captions_is_repaired(captioned, in_process, tmp_path):
    run, recipe, _ = captioned
    copy = RunFolder(str(tmp_path / "run"))
    shutil.copytree(run.root, copy.root)
    copy.write_bytes("captions/main/repeated.parquet", b"PAR1 and then nothing")
    (problem,) = verify_run(copy, recipe, num_pairs=0)["problems"]
    assert (problem["kind"], problem["where"]) == ("part_unreadable", "captions/main/repeated.parquet")
    assert repair_run(copy, recipe, in_process, num_pairs=0)["repaired"] == ["captions/main/repeated.parquet"]
    assert digests(copy) == digests(run)


def test_original_texts_are_stored_and_bad_ones_are_marked(captioned):
    run, _, _ = captioned
    originals = {row.text: row for row in rows_of(run) if row.source == "original"}
    assert originals["my holiday, part one"].reason is None
    assert originals["my my my my my my my my"].fault == "looping"


def test_unknown_kinds_are_an_error_before_any_work(captioned, in_process):
    run, recipe, _ = captioned
    for kinds, message in ((("descriptive", "haiku"), "haiku"), (("short",), "descriptive")):
        wanted = dataclasses.replace(recipe, caption=dataclasses.replace(recipe.caption, kinds=kinds))
        with pytest.raises(UsageError, match=message):
            caption(run, wanted, "other", in_process)
    assert not run.list("captions/other/*")
    with pytest.raises(UsageError, match="kind 'haiku'"):
        load_captioner("tiny").caption_with_embeddings([np.zeros((2, 32, 32, 3), np.uint8)], kind="haiku")


def test_captions_that_fail_a_gate_are_retried_then_marked_and_in_no_shard(captioned, in_process, tmp_path):
    run, recipe, _ = captioned
    copy = RunFolder(str(tmp_path / "run"))
    shutil.copytree(run.root, copy.root)
    strict = dataclasses.replace(recipe, caption=dataclasses.replace(recipe.caption, min_clip_score=1.1))
    summary = caption(copy, strict, "strict", in_process)
    assert summary["captions"] == 0
    assert summary["faults"] == {"low_score": 4}
    assert summary["bad"] == {"bad_caption": 4}
    assert summary["retried"] > 4  # windows, too
    assert any("4 of 4 captions failed" in warning for warning in summary["warnings"])
    assert {row.fault for row in rows_of(copy, "strict") if row.source == "model"} == {"low_score"}  # of every kind
    assert shard(copy, strict, "strict", in_process)["samples"] == 0
    assert verify_run(copy, strict, num_pairs=0)["faults"]["strict"] == {"low_score": 4}
    page = Path(write_report(copy, strict.filters, recipe=strict, set_name="strict")).read_text()
    assert "4 low score" in page


def test_captions_over_the_token_limit_are_bad_and_not_truncated(captioned, in_process, tmp_path):
    run, recipe, _ = captioned
    copy = RunFolder(str(tmp_path / "run"))
    shutil.copytree(run.root, copy.root)
    strict = dataclasses.replace(recipe, caption=dataclasses.replace(recipe.caption, max_text_tokens=8))
    assert caption(copy, strict, "long", in_process)["faults"] == {"over_long": 4}
    full = {(r.clip_id, r.window, r.kind): r.text for r in rows_of(copy) if r.source == "model"}
    for row in rows_of(copy, "long"):
        if row.source == "model":
            assert row.text == full[row.clip_id, row.window, row.kind]


def test_a_caption_repeated_over_too_many_clips_is_bad_for_all(captioned, in_process, tmp_path):
    run, recipe, _ = captioned
    copy = RunFolder(str(tmp_path / "run"))
    shutil.copytree(run.root, copy.root)
    for name in copy.list("captions/main/part-*.parquet"):
        table = copy.read_table(name)
        same = pc.if_else(pc.equal(table["source"], "model"), "a man talks to the camera", table["text"])
        table = table.set_column(table.schema.get_field_index("text"), table.schema.field("text"), same)
        copy.write_table(name, table, copy.table_metadata(name) | {"changed": "yes"})
    assert find_repeated_captions(copy, recipe.caption.repeats, "main")
    assert not find_repeated_captions(copy, recipe.caption.repeats, "main")
    good = sum(row.is_main and row.reason is None for row in rows_of(copy))
    for limit, num_bad in ((None, 0), (good, 0), (good - 1, good)):
        filters = dataclasses.replace(recipe.filters, max_clips_per_caption=limit)
        limited = dataclasses.replace(recipe, filters=filters)
        assert shard(copy, limited, "main", in_process)["samples"] == (0 if num_bad else good)
        assert build_ledger(copy, filters).summary()["clips"]["dropped"].get("bad_caption", 0) == 4 - good + num_bad
        faults = verify_run(copy, limited, num_pairs=0)["faults"]["main"]
        assert faults.get("repeated", 0) == num_bad


def test_captions_that_match_no_better_than_mismatched_ones_give_a_warning(captioned):
    summary = captioned[2]
    assert summary["matched_score"] > summary["mismatched_score"]
    assert not any("no better" in warning for warning in summary.get("warnings", []))
    shuffled = summary | {"matched_score": 0.1, "mismatched_score": 0.2}
    assert any("no better than other clips (0.200)" in w for w in caption_stage._warnings(shuffled, 6))


@pytest.fixture(scope="module")
def encoded(captioned, in_process, tmp_path_factory):
    run, recipe, _ = captioned
    copy = RunFolder(str(tmp_path_factory.mktemp("encoded") / "run"))
    shutil.copytree(run.root, copy.root)
    shard(copy, recipe, "main", in_process)
    encode(copy, recipe, in_process)
    return copy, recipe


def test_shards_hold_the_other_texts(encoded):
    run, _ = encoded
    expected = {}
    for row in rows_of(run):
        if row.reason is None and not row.is_main:
            expected.setdefault(row.clip_id, []).append((row.source, row.kind, row.window, row.text))
    seen = 0
    for path in Path(run.root, "shards").rglob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".json"):
                    description = json.loads(tar.extractfile(member).read())
                    texts = description.get("other_texts", [])
                    found = [(t["source"], t["kind"], t["window"], t["text"]) for t in texts]
                    assert found == sorted(expected.get(description["clip_id"], []), key=lambda t: found.index(t))
                    seen += len(found)
    assert seen > 0


def test_training_samples_the_caption_mixture_and_shards_stay(encoded):
    run = encoded[0]
    before = digests(run, "shards") | digests(run, "latents")
    name = run.list("latents/*/index.parquet")[0].split("/")[1]
    plain = LatentShards(run, name)
    descriptive = LatentShards(run, name, blend=CaptionMixtureSettings(weights=("descriptive=1",)))
    for kind in ("short", "original"):
        blended = LatentShards(run, name, blend=CaptionMixtureSettings(weights=(f"{kind}=1",)))
        rows = {}
        for row in rows_of(run):
            if row.reason is None and (row.source if kind == "original" else row.kind) == kind:
                rows.setdefault(row.clip_id, []).append(row.text)
        assert rows
        for index, clip_id in enumerate(blended.clip_ids):
            shown = blended.caption(index, 0)
            assert shown in rows.get(clip_id, ()) or (clip_id not in rows and shown == descriptive.caption(index, 0))
        assert blended.fingerprint != plain.fingerprint
    assert digests(run, "shards") | digests(run, "latents") == before
    with pytest.raises(UsageError, match="no caption set 'nowhere'"):
        LatentShards(run, name, blend=CaptionMixtureSettings(caption_set="nowhere"))


def test_a_segment_has_the_caption_of_its_window(encoded):
    run, recipe = encoded
    name = run.list("latents/*/index.parquet")[0].split("/")[1]
    timed = [
        dataclasses.replace(row, text=f"{row.start_seconds:.3f} to {row.end_seconds:.3f}")
        for row in rows_of(run)
        if row.reason is None and row.kind == "descriptive" and row.source == "model"
    ]
    run.write_table("captions/told/part-00000.parquet", to_table(timed, Caption))
    spans = {}  # clip -> texts of the whole clip, of its first window and of its second, where it has windows
    for row in sorted(timed, key=lambda row: (row.start_seconds, -row.end_seconds)):
        spans.setdefault(row.clip_id, []).append(row.text)
    blend = CaptionMixtureSettings(weights=("descriptive=1",), caption_set="told")
    settings = dataclasses.replace(recipe.plan, max_latent_frames=("2@epoch<8",))
    seen = set()
    for batch in PackLoader(run, latents=name, settings=settings, blend=blend, prefetch=0):
        if batch.epoch > 8:
            break
        for clip_id, first, shape, text in zip(
            batch.clip_ids, batch.first_frames, batch.token_shapes, batch.captions, strict=True
        ):
            if len(spans[clip_id]) == 3 and first in (0, 3):  # of 5: frames 0 to 5, 9 to 17 or all 17 of the video
                expected = 0 if shape[0] == 5 else 1 if first == 0 else 2
                assert text == spans[clip_id][expected]
                seen.add(expected)
    assert seen == {0, 1, 2}
    whole = LatentShards(run, name, blend=blend)
    assert LatentShards(run, name, blend=blend, window_captions=True).fingerprint != whole.fingerprint


def test_a_resume_with_another_mixture_is_an_error(encoded):
    run, recipe = encoded
    name = run.list("latents/*/index.parquet")[0].split("/")[1]

    def loader(*weights, **settings):
        blend = CaptionMixtureSettings(weights=weights, **settings)
        return PackLoader(run, latents=name, settings=recipe.plan, blend=blend, prefetch=0)

    first = loader("descriptive=0.5", "short=0.5")
    batches = iter(first)
    next(batches)
    state = first.state_dict()
    expected = [next(batches) for _ in range(3)]
    resumed = loader("descriptive=0.5", "short=0.5")
    resumed.load_state_dict(state)
    assert [(b.clip_ids, b.captions) for b, _ in zip(resumed, range(3))] == [(b.clip_ids, b.captions) for b in expected]
    for other in (loader("descriptive=0.4", "short=0.6"), loader("descriptive=0.5", "short=0.5", seed=1)):
        with pytest.raises(UsageError, match="blend"):
            other.load_state_dict(state)


CAPTION_HERE = """
import sys
from jobs.caption.caption import caption
from jobs.recipe.run_inputs import open_run

class InProcess:
    def run_parts(self, worker, settings, parts, **_):
        yield from map(worker(**settings), parts)
    def throughput(self):
        return {}

run, recipe = open_run(sys.argv[1])
caption(run, recipe, "main", InProcess())
"""
"""The stage without Ray, whose start takes longer than the stage; tests/faults kills it with Ray."""


def test_a_killed_stage_that_is_run_again_writes_the_same_bytes(captioned, in_process, tmp_path):
    run, recipe, _ = captioned
    copy = RunFolder(str(tmp_path / "run"))
    shutil.copytree(run.root, copy.root)
    for name in ("captions", "embeddings", "duplicates/semantic-main.parquet"):
        copy.remove(name)
    command = [sys.executable, "-c", CAPTION_HERE, copy.root]
    first = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 120
    while not copy.list("captions/main/part-*.parquet") and time.monotonic() < deadline:
        assert first.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    finished = digests(copy)
    assert 0 < len(finished) < len(digests(run))
    assert caption(copy, recipe, "main", in_process)["skipped_parts"] >= 1
    assert finished.items() <= digests(copy).items()
    for folder in ("captions", "embeddings", "duplicates"):
        assert digests(copy, folder) == digests(run, folder)
