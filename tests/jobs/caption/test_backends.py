"""The caption stage with every captioner backend, on the same three scenes."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import io
import itertools
import shutil

import numpy as np
import pytest
from chat_server import Script, completion, serving
from PIL import Image
from small_captioners import VLMS

from jobs.caption.caption import caption
from jobs.caption.worker import open_captioner
from jobs.prepare.prepare import prepare
from jobs.recipe.stage_settings import CaptionSettings
from jobs.shard import planned_shards, shard
from jobs.summary import exit_code
from jobs.verify.repair import repair_run
from jobs.verify.verify import verify_run
from recaption.captioners.clip_views import sample_frames
from recaption.captioners.registry import load_captioner
from recaption.captions.sets import caption_set_pattern
from recaption.chat_endpoint.endpoint import EndpointSettings
from recaption.errors import EndpointDownError, UsageError
from recaption.ledger.ledger import build_ledger
from recaption.records import Caption, Clip, from_table
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io.opened_video import open_video

QUICK = EndpointSettings(concurrency=2, timeout_seconds=2.0, max_tries=2, backoff_seconds=0.01)


@pytest.fixture(scope="session")
def three_scenes(tmp_path_factory, small_recipe, in_process):
    """Prepared, in parts of two clips and one; never changed by a test."""
    folder = tmp_path_factory.mktemp("three")
    for seed in range(3):
        render(7000 + seed, num_frames=17, height_px=64, width_px=(64, 96)[seed % 2], fps=8, **SIMPLE).write(
            folder / f"scene-{seed}.mp4"
        )
    recipe = dataclasses.replace(small_recipe, prepare=dataclasses.replace(small_recipe.prepare, part_size=2))
    prepare([str(folder)], str(folder / "run"), recipe, in_process)
    return RunFolder(str(folder / "run")), recipe


@pytest.fixture
def scenes(three_scenes, tmp_path):
    run, recipe = three_scenes
    shutil.copytree(run.root, tmp_path / "run")
    return RunFolder(str(tmp_path / "run")), recipe


def with_settings(recipe, **settings):
    chosen = {"max_tokens": 8, "device": "cpu", "endpoint": QUICK, **settings}
    return dataclasses.replace(recipe, caption=dataclasses.replace(recipe.caption, **chosen))


def rows_of(run, set_name):
    return [
        row
        for name in run.list(caption_set_pattern(set_name))
        for row in from_table(run.read_table(name), Caption)
        if row.source == "model"
    ]


def clips_of(run):
    clips = (from_table(run.read_table(name), Clip) for name in run.list("clips/*.parquet"))
    return {clip.clip_id: clip for part in clips for clip in part}


@contextlib.contextmanager
def spec_of(backend, small_model):
    if backend == "http":
        with serving(Script(describe_pictures)) as spec:
            yield spec
    elif backend in VLMS:
        yield f"vlm:{small_model(backend)}"
    elif backend == "tiny":
        yield backend
    else:
        yield f"{backend}:{small_model(backend)}"


def describe_pictures(request):
    """A text that depends on the images sent, as a model's would."""
    *pictures, words = request["messages"][0]["content"]
    assert str(len(pictures)) in words["text"]
    levels = [picture_of(part).mean() for part in pictures]
    return completion(
        f"A scene of {len(pictures)} frames at {np.mean(levels):.1f}.", logprobs={"content": [{"logprob": -0.5}]}
    )


def picture_of(part):
    kind, encoded = part["image_url"]["url"].split(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


@pytest.mark.parametrize("backend", ["tiny", "git", "frozenbilm", "mplug2", "http", *VLMS])
def test_every_backend_captions_the_same_scenes(backend, scenes, small_model, in_process):
    run, recipe = scenes
    with spec_of(backend, small_model) as spec:
        recipe = with_settings(recipe, captioner=spec)
        summary = caption(run, recipe, "whole", in_process)
        caption(run, recipe, "killed", in_process, only={0})
        again = caption(run, recipe, "killed", in_process)
        captioner = open_captioner(recipe.caption, device="cpu")
    rows, clips = rows_of(run, "whole"), clips_of(run)
    assert rows_of(run, "killed") == rows
    assert again["skipped_parts"] == 1
    assert len(rows) == len({row.clip_id for row in rows}) == 3
    assert summary["captions"] + sum(summary["bad"].values()) == 3
    for row in rows:
        with open_video(clips[row.clip_id].uri) as video:
            frames = sample_frames(video, clips[row.clip_id], captioner)
        assert row.clip_sha256 == hashlib.sha256(frames.tobytes()).hexdigest()
        assert row.captioner == f"{captioner.name}@{captioner.weights_hash}"
        assert len(captioner.weights_hash) == 12
        assert 1 <= row.num_tokens <= 8
        assert row.mean_logprob < 0
        assert row.reason in (None, "bad_caption")
        assert row.start_seconds < row.end_seconds
        assert (row.clip_score is not None) == captioner.has_contrastive_head == (backend == "tiny")
    assert (summary["matched_score"] is not None) == captioner.has_contrastive_head


def test_captions_of_one_captioner_are_scored_by_another(scenes, small_model, in_process):
    run, recipe = scenes
    with spec_of("http", small_model) as spec:
        # these captions do not describe the scenes: without this limit all would fail
        recipe = with_settings(recipe, captioner=spec, scorer="tiny", num_frames=3, min_clip_score=-1.0)
        summary = caption(run, recipe, "main", in_process)
        check = verify_run(run, recipe)["pairs"]["main"]
    assert summary["matched_score"] is not None
    assert check["hashed"] == check["scored"] == 3
    tiny, clips = load_captioner("tiny"), clips_of(run)
    for row in rows_of(run, "main"):
        assert row.captioner.startswith("http:m@")
        assert row.text.startswith("A scene of 3 frames")
        with open_video(clips[row.clip_id].uri) as video:
            frames = sample_frames(video, clips[row.clip_id], tiny)
        assert row.clip_score == pytest.approx(float(tiny.score([frames], [row.text])[0, 0]), abs=1e-5)
    assert sum(run.read_table(name).num_rows for name in run.list("embeddings/main/part-*.parquet")) == 3


def test_without_scores_the_frames_are_still_checked(scenes, small_model, in_process):
    run, recipe = scenes
    recipe = with_settings(recipe, captioner=f"git:{small_model('git')}")
    caption(run, recipe, "main", in_process)
    check = verify_run(run, recipe)["pairs"]["main"]
    assert (check["hashed"], check["scored"]) == (3, 0)
    assert check["verdict"] == "the captioner scores nothing"


def test_one_invalid_response_leaves_one_clip_open_and_the_next_run_asks_for_it_alone(scenes, in_process):
    run, recipe = scenes
    odd = []
    with serving(Script(describe_pictures)) as spec:
        settings = with_settings(recipe, captioner=spec)
        caption(run, settings, "undisturbed", in_process)

    def reply(request):
        picture = str(request["messages"][0]["content"][0])
        odd[:] = odd or [picture]
        return (200, b"<html>", {}) if picture == odd[0] else describe_pictures(request)

    script = Script(reply)
    with serving(script) as spec:
        settings = with_settings(recipe, captioner=spec)
        summary = caption(run, settings, "main", in_process)
        states = build_ledger(run, settings.filters, "main").summary()["clips"]
        sharded = planned_shards(run, settings, "main")[0]
        problems = verify_run(run, settings, num_pairs=0)["problems"]
        script.replies, script.requests = [describe_pictures], []
        again = caption(run, settings, "main", in_process)
    assert (summary["captions"], summary["open"], summary["bad"], summary["faults"]) == (2, 1, {}, {})
    assert summary["errors"] == ["1 clip got no answer; the same command asks again"]
    assert exit_code("caption", summary) == 1
    assert (states["waiting"], states["dropped"]) == ({"caption": 1, "shard": 2}, {})
    assert sum(len(one.clips) for one in sharded) <= 2
    assert problems == []
    assert (again["captions"], again["open"], again["computed_parts"], again["skipped_parts"]) == (3, 0, 1, 1)
    assert exit_code("caption", again) == 0
    assert len(script.requests) == 1
    assert [row.text for row in rows_of(run, "main")] == [row.text for row in rows_of(run, "undisturbed")]
    assert caption(run, settings, "main", in_process)["computed_parts"] == 0


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(
    "failure",
    [
        (503, {"error": {"message": "overloaded"}}, {}),
        (200, {"error": {"message": "upstream timeout"}}, {}),
        (200, b"<html>", {}),
    ],
    ids=["flaky", "200err", "html"],
)
def test_requests_that_fail_now_and_then_are_asked_again_until_all_are_answered(
    failure, concurrency, scenes, in_process
):
    run, recipe = scenes
    asked = itertools.count()
    # One clip twice, and never three failures in a row, in whichever order answers come: that endpoint would be down.
    script = Script(lambda request: failure if next(asked) in (0, 2) else describe_pictures(request))
    quick = dataclasses.replace(QUICK, max_tries=1, concurrency=concurrency)
    with serving(script) as spec:
        settings = with_settings(recipe, captioner=spec, endpoint=quick)
        summaries = [caption(run, settings, "main", in_process) for _ in range(3)]
        caption(run, settings, "undisturbed", in_process)
    assert [one["bad"] for one in summaries] == [{}] * 3
    assert [one["captions"] + one["open"] for one in summaries] == [3] * 3
    assert summaries[0]["open"] >= 1
    assert (summaries[2]["captions"], summaries[2]["computed_parts"]) == (3, 0)
    assert [row.text for row in rows_of(run, "main")] == [row.text for row in rows_of(run, "undisturbed")]


def test_answered_kinds_of_an_open_clip_keep_their_text(scenes, in_process):
    run, recipe = scenes
    asked = itertools.count()

    def reply(request):
        number = next(
            asked
        )  # of the first part: 0 and 1 for the descriptive captions, 2 and 3 for the short ones, 4 and 5 for these once more
        return (200, b"<html>", {}) if number in (2, 3, 4) else completion(f"A red circle of answer {number}.")

    script = Script(reply)
    with serving(script) as spec:
        quick = dataclasses.replace(QUICK, max_tries=1, concurrency=1)
        settings = with_settings(recipe, captioner=spec, kinds=("descriptive", "short"), endpoint=quick)
        first = caption(run, settings, "main", in_process)
        before = {(row.clip_id, row.kind): row.text for row in rows_of(run, "main") if not row.fault}
        again = caption(run, settings, "main", in_process)
    after = {(row.clip_id, row.kind): row.text for row in rows_of(run, "main")}
    assert (first["captions"], first["open"]) == (3, 1)
    assert (again["captions"], again["open"], len(after)) == (3, 0, 6)
    assert {key: after[key] for key in before} == before


def test_repair_asks_again_for_open_captions_and_puts_their_clips_into_the_shards(scenes, in_process):
    run, recipe = scenes
    asked = itertools.count()
    script = Script(lambda request: (200, b"<html>", {}) if next(asked) in (1, 2) else describe_pictures(request))
    with serving(script) as spec:
        quick = dataclasses.replace(QUICK, max_tries=1, concurrency=1)
        settings = with_settings(recipe, captioner=spec, endpoint=quick)
        assert caption(run, settings, "main", in_process)["open"] == 1
        in_shards = shard(run, settings, "main", in_process)["samples"]
        before = verify_run(run, settings, num_pairs=0)
        healed = repair_run(run, settings, in_process, num_pairs=0)
        whole = planned_shards(run, settings, "main")[0]
    assert before["ok"]
    assert before["clips"]["waiting"] == {"caption": 1}
    assert before["warnings"][0].startswith("1 clip of caption set main got no answer; ")
    assert healed["repaired"] == ["captions/main/part-00000.parquet"]
    assert (healed["ok"], healed["refused"], healed["clips"]["waiting"]) == (True, {}, {})
    assert "warnings" not in healed
    assert healed["clips"]["in_shard"] == sum(len(one.clips) for one in whole) == in_shards + 1
    with serving(Script((503, b"", {}))) as spec:
        caption_settings = with_settings(recipe, captioner=spec, endpoint=quick)
        assert repair_run(run, caption_settings, in_process, num_pairs=0)["repaired"] == []


def test_a_request_that_the_server_rejects_is_final(scenes, in_process):
    run, recipe = scenes
    odd = []

    def reply(request):
        picture = str(request["messages"][0]["content"][0])
        odd[:] = odd or [picture]
        too_long = (400, {"error": {"message": "the prompt is longer than the context"}}, {})
        return too_long if picture == odd[0] else describe_pictures(request)

    with serving(Script(reply)) as spec:
        settings = with_settings(recipe, captioner=spec)
        summary = caption(run, settings, "main", in_process)
        assert (summary["captions"], summary["open"], summary["faults"]) == (2, 0, {"rejected": 1})
        assert caption(run, settings, "main", in_process)["computed_parts"] == 0


@pytest.mark.parametrize(
    ("reply", "open_clips", "error"),
    [
        ((200, b"<html>502 Bad Gateway</html>", {}), 3, "3 clips got no answer; the same command asks again"),
        (completion("抱歉，我无法查看视频。"), 0, "all captions failed (refusal 3): no clip can go into the shards"),
    ],
)
def test_a_stage_in_which_all_captions_failed_says_so(reply, open_clips, error, scenes, in_process):
    run, recipe = scenes
    with serving(Script(reply)) as spec:
        summary = caption(run, with_settings(recipe, captioner=spec), "main", in_process)
    assert (summary["captions"], summary["open"]) == (0, open_clips)
    assert summary["errors"] == [error]
    assert error in summary["warnings"]
    assert exit_code("caption", summary) == exit_code("run", {"stages": {"caption": summary}}) == 1


@pytest.mark.parametrize(
    "text",
    [
        "一只棕色的小狗在金色的海滩上快乐地奔跑",
        "犬が砂浜を走っている。",
        "สุนัขวิ่งบนชายหาด",
        "<think>Hm.</think>\n\nA blue cross on ice.",
    ],
)
def test_captions_of_any_language_and_of_reasoning_models_are_good(text, scenes, in_process):
    run, recipe = scenes
    with serving(Script(completion(text))) as spec:
        settings = with_settings(recipe, captioner=spec, scorer="tiny", min_clip_score=-9.0)
        summary = caption(run, settings, "main", in_process)
    assert (summary["captions"], summary["bad"]) == (3, {})
    assert {row.text for row in rows_of(run, "main")} == {text.rpartition("\n")[2]}


def test_an_endpoint_that_goes_down_midway_loses_nothing(scenes, in_process):
    run, recipe = scenes
    script = Script(describe_pictures)
    with serving(script) as spec:
        recipe = with_settings(recipe, captioner=spec)
        caption(run, recipe, "main", in_process, only={1})
        script.replies = [(503, b"", {})]
        with pytest.raises(EndpointDownError, match=r"is down: status 503.*run the same command again"):
            caption(run, recipe, "main", in_process)
        assert len(rows_of(run, "main")) == 1
        script.replies = [describe_pictures]
        assert caption(run, recipe, "main", in_process)["skipped_parts"] == 1
    assert sorted(row.text[:7] for row in rows_of(run, "main")) == ["A scene"] * 3
    with pytest.raises(EndpointDownError, match="no endpoint responds"):
        caption(run, recipe, "other", in_process)


class NoCluster:
    """Fails if a worker is started."""

    progress = False

    def run_parts(self, *_, **__):
        raise AssertionError("workers were started")

    def throughput(self):
        return {}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"captioner": "magic"}, "magic"),
        ({"captioner": "/no/such/folder"}, "/no/such/folder"),
        ({"captioner": "vlm:/no/such/folder"}, "no folder '/no/such/folder'"),
        ({"captioner": "mplug2:org/model"}, "no folder 'org/model'"),
        ({"captioner": "open_clip:coca_ViT-B-32//no/such/file.bin"}, "no file /no/such/file.bin"),
        ({"captioner": "http://host/v1"}, "http://HOST:PORT/v1#MODEL"),
        ({"captioner": "tiny", "scorer": "magic"}, "magic"),
    ],
)
def test_a_wrong_spec_is_an_error_before_any_worker_starts(scenes, settings, sentence):
    run, recipe = scenes
    with pytest.raises(UsageError, match=sentence):
        caption(run, with_settings(recipe, **settings), "main", NoCluster())
    assert run.list("captions/main/*") == []


def test_run_does_not_start_with_a_wrong_spec(small_recipe, tmp_path):
    from jobs.run import run

    with pytest.raises(UsageError, match="magic"):
        run(["nowhere.mp4"], str(tmp_path / "run"), with_settings(small_recipe, captioner="magic"), NoCluster())
    assert not (tmp_path / "run").exists()


def test_endpoint_settings_are_not_hashed(small_recipe):
    from jobs.recipe.settings import stage_hashes

    settings = CaptionSettings(endpoint=EndpointSettings(concurrency=99))
    assert (
        stage_hashes(dataclasses.replace(small_recipe, caption=settings))["caption"]
        == (stage_hashes(dataclasses.replace(small_recipe, caption=CaptionSettings()))["caption"])
    )
