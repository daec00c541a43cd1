"""The whole pipeline through the command line: raw videos to sampled videos."""

import hashlib
import io
import json
import re
import tarfile

import pytest

from jobs.cli import main
from recaption.run_folder import RunFolder
from recaption.video_io.reader import decode_bytes, read_frames
from tests.end_to_end.conftest import SHORT_TRAINING, command


def digests(run, pattern):
    return {p.relative_to(run).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in run.glob(pattern)}


def test_every_input_is_accounted_for(finished_run, capsys):
    code, summary = command(capsys, "verify", "--run", str(finished_run))
    assert code == 0, summary["problems"]
    assert summary["videos"]["total"] == 9
    assert summary["videos"]["failed"] == 1
    clips = summary["clips"]
    assert clips["total"] == clips["kept"] + sum(clips["dropped"].values()) + sum(clips["failed"].values())
    assert clips["dropped"]["duplicate"] == 1
    seconds = summary["seconds"]
    assert seconds["total"] == pytest.approx(seconds["kept"] + seconds["dropped"] + seconds["failed"], abs=1e-3)


def test_shards_open_with_webdataset_and_with_tarfile(finished_run):
    import webdataset

    run = RunFolder(str(finished_run))
    index = run.read_table("index.parquet").to_pylist()
    tars = sorted(str(p) for p in finished_run.glob("shards/*/*.tar"))
    samples = {s["__key__"]: s for s in webdataset.WebDataset(tars, shardshuffle=False)}
    assert samples.keys() == {row["clip_id"] for row in index}
    for row in index:
        sample = samples[row["clip_id"]]
        assert sample["txt"].decode() == row["caption"]
        frames = decode_bytes(sample["mp4"]).pixels_THWC
        assert frames.shape == (row["num_frames"], row["height_px"], row["width_px"], 3)
        span = run.read_bytes(row["shard"])[row["offset_bytes"] : row["offset_bytes"] + row["num_bytes"]]
        with tarfile.open(fileobj=io.BytesIO(span)) as tar:
            assert {name.partition(".")[0] for name in tar.getnames()} == {row["clip_id"]}


def test_the_pipeline_ends_with_sampled_videos_and_a_report(finished_run):
    samples = json.loads(next(finished_run.glob("samples/*/samples.json")).read_text())
    video = finished_run / "samples" / next(p.parent.name for p in finished_run.glob("samples/*/samples.json"))
    frames = read_frames(str(video / samples["videos"][0]), None)
    assert len(frames) == samples["num_frames"]
    assert (video / samples["contact_sheet"]).stat().st_size > 1000
    assert "what a person wrote" in (finished_run / "report" / "index.html").read_text()
    steps = [json.loads(line)["step"] for line in (finished_run / "train/main/metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 6


def test_the_same_command_again_computes_nothing(finished_run, videos, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished_run.glob("shards/*/*.tar")}
    code, summary = command(
        capsys, "run", "--videos", str(videos), "--out", str(finished_run), "--num-workers", "2", *SHORT_TRAINING
    )
    assert code == 1
    assert summary["computed_parts"] == 0
    for stage in ("caption", "shard", "encode"):
        assert summary["stages"][stage]["computed_parts"] == 0, stage
    assert summary["stages"]["train"]["resumed_from"] == 6
    assert {p: p.stat().st_mtime_ns for p in finished_run.glob("shards/*/*.tar")} == before


def test_one_worker_writes_the_same_bytes_as_two(finished_run, videos, tmp_path):
    out = tmp_path / "one-worker"
    arguments = ["--videos", str(videos), "--out", str(out), "--num-workers", "1", "--stop-after", "encode"]
    assert main(["run", *arguments, "--no-progress", *SHORT_TRAINING]) == 1
    for pattern in (
        "clips/*.parquet",
        "captions/main/*.parquet",
        "shards/*/*.tar",
        "latents/*/*/*.tar",
        "index.parquet",
    ):
        assert digests(out, pattern) == digests(finished_run, pattern), pattern


def test_run_yaml_reproduces_the_run(finished_run, videos, tmp_path, capsys):
    code, summary = command(
        capsys, "prepare", "--videos", str(videos), "--out", str(tmp_path / "again"),
        "--recipe", str(finished_run / "run.yaml"), "--num-workers", "2",
    )  # fmt: skip
    assert code == 1
    assert digests(tmp_path / "again", "clips/*.parquet") == digests(finished_run, "clips/*.parquet")
    assert summary["computed_parts"] == 3


def test_a_changed_threshold_drops_clips_without_recomputing(finished_run, videos, capsys):
    arguments = ["prepare", "--videos", str(videos), "--out", str(finished_run), *SHORT_TRAINING]
    _, before = command(capsys, *arguments)
    _, after = command(capsys, *arguments, "--filters.min-luma", "0.99")
    command(capsys, *arguments)  # back to the old thresholds, for the tests that follow
    assert after["computed_parts"] == 0
    assert after["clips"]["dropped"]["dark"] > before["clips"]["dropped"].get("dark", 0)


def test_a_second_caption_set_leaves_the_first_alone(finished_run, capsys):
    before = digests(finished_run, "captions/main/*.parquet")
    code, summary = command(
        capsys,
        "caption",
        "--run",
        str(finished_run),
        "--set",
        "short",
        "--caption.max-tokens",
        "5",
        "--num-workers",
        "2",
    )
    assert code == 1  # five tokens do not complete a sentence: every caption fails the gate, which is said
    assert summary["captions"] == 0 < sum(summary["bad"].values())
    assert summary["errors"]
    assert digests(finished_run, "captions/main/*.parquet") == before


@pytest.mark.slow
def test_another_bucket_table_rewrites_only_the_shards(finished_run, capsys, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    earlier = {p: p.stat().st_mtime_ns for stage in ("clips", "captions", "videos") for p in copy.rglob(f"{stage}/*")}
    before = digests(copy, "shards/*/*.tar")
    code, summary = command(capsys, "shard", "--run", str(copy), "--shard.buckets.crf", "30", "--num-workers", "1")
    assert code == 0
    assert (summary["skipped_parts"], summary["computed_parts"]) == (0, len(before))
    assert digests(copy, "shards/*/*.tar").keys() == before.keys()
    assert all(digest != before[name] for name, digest in digests(copy, "shards/*/*.tar").items())
    assert {path: path.stat().st_mtime_ns for path in earlier} == earlier
    assert command(capsys, "caption", "--run", str(copy), "--set", "main")[1]["computed_parts"] == 0


def test_a_damaged_shard_is_found_and_repaired(finished_run, capsys, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    tar = next(copy.glob("shards/*/*.tar"))
    intact = digests(copy, "**/*.tar") | digests(copy, "*.parquet")
    tar.write_bytes(tar.read_bytes()[:-2048])
    code, summary = command(capsys, "verify", "--run", str(copy), "--pairs", "0")
    assert code == 3
    assert any(tar.name in problem["where"] for problem in summary["problems"])
    code, summary = command(capsys, "verify", "--run", str(copy), "--pairs", "0", "--repair", "--num-workers", "1")
    assert code == 0, summary
    assert tar.relative_to(copy).as_posix() in summary["repaired"]
    assert digests(copy, "**/*.tar") | digests(copy, "*.parquet") == intact


def test_a_folder_of_another_recipe_is_an_error(finished_run, videos, capsys):
    code = main(["prepare", "--videos", str(videos), "--out", str(finished_run), "--prepare.max-clip-seconds", "1.5"])
    assert code == 2
    assert "was prepared by recipe 'quickstart' with other prepare settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("magic", "magic"),
        ("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", "open_clip:coca_ViT-B-32/"),
        ("/no/such/folder", "/no/such/folder"),
    ],
)
def test_an_unavailable_captioner_is_one_sentence(finished_run, capsys, monkeypatch, spec, sentence):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = main(["caption", "--run", str(finished_run), "--captioner", spec, "--set", "other"])
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert sentence in error


def test_a_checkpoint_of_another_model_is_an_error(finished_run, capsys):
    code = main(
        ["caption", "--run", str(finished_run), "--set", "other", "--captioner", str(finished_run / "train/main")]
    )
    assert code == 2
    assert "dit" in capsys.readouterr().err


def test_a_wrong_value_in_run_yaml_is_one_sentence(finished_run, tmp_path, capsys):
    recipe = tmp_path / "run.yaml"
    text = (finished_run / "run.yaml").read_text()
    recipe.write_text(re.sub(r"( +lr: ).*", r"\1fast", text))
    code = main(["prepare", "--videos", str(tmp_path), "--out", str(tmp_path / "out"), "--recipe", str(recipe)])
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert re.fullmatch(r"recaption: train_\w+\.trainer\.lr = 'fast': it takes a valid number", error)
