"""`recaption encode`: 8-bit latents, and stored texts that training reads without the text encoder."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from small_text_encoders import write_clip, write_t5

from jobs import cli
from jobs.encode.encode import encode
from jobs.encode.texts import encode_texts
from jobs.recipe.run_inputs import write_recipe
from jobs.recipe.settings import stage_hashes
from jobs.verify.repair import repair_run
from jobs.verify.verify import verify_run
from packing.shards.read import read_latent
from packing.shards.samples import LatentSample
from recaption.errors import UsageError
from recaption.ledger.encoded_texts import check_encoded_texts, text_folder
from recaption.records import from_table
from train.text import towers as text_towers

LATENTS = "latents/patch-24-w0.5"
SHORT_TRAINING = [
    "--train-dit.dit.width", "32", "--train-dit.dit.depth", "1", "--train-dit.dit.num-heads", "2", "--steps", "2",
    "--train-dit.dit.validation-packs", "1",
]  # fmt: skip


def with_encode(recipe, **changes):
    return dataclasses.replace(recipe, encode=dataclasses.replace(recipe.encode, **changes))


def with_text(recipe, **changes):
    return with_encode(recipe, text=dataclasses.replace(recipe.encode.text, **changes))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("umt5"), "UMT5")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def files(run, pattern):
    return {name: run.read_bytes(name) for name in run.list(pattern)}


def test_eight_bit_latents_lose_little_and_verify(run_copy, small_recipe, in_process):
    before = from_table(run_copy.read_table(f"{LATENTS}/index.parquet"), LatentSample)
    sixteen_bit = {row.clip_id: read_latent(run_copy, row) for row in before}
    recipe = with_encode(small_recipe, dtype="int8")
    summary = encode(run_copy, recipe, in_process)
    assert (summary["dtype"], summary["skipped_parts"], summary["samples"]) == ("int8", 0, len(before))
    rows = from_table(run_copy.read_table(f"{LATENTS}/index.parquet"), LatentSample)
    for row, old in zip(rows, before):
        assert row.clip_id == old.clip_id
        assert old.round_trip_psnr_db - 0.5 < row.round_trip_psnr_db < old.round_trip_psnr_db + 0.01
        difference = np.abs(read_latent(run_copy, row) - sixteen_bit[row.clip_id])
        assert 0 < difference.max() < 0.05
    tars = [run_copy.path(name) for name in run_copy.list(f"{LATENTS}/*/*.tar")]
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        assert np.load(io.BytesIO(sample["npy"])).dtype == np.int8
    assert verify_run(run_copy, recipe, num_pairs=0)["ok"]
    written = files(run_copy, f"{LATENTS}/**/*.*")
    assert encode(run_copy, recipe, in_process)["computed_parts"] == 0
    assert files(run_copy, f"{LATENTS}/**/*.*") == written


def test_storage_type_is_in_the_hash_of_encode_only_and_stored_texts_in_none(small_recipe):
    default, eight_bit = stage_hashes(small_recipe), stage_hashes(with_encode(small_recipe, dtype="int8"))
    assert {stage for stage in default if default[stage] != eight_bit[stage]} == {"encode"}
    assert stage_hashes(with_text(small_recipe, encoder="t5:x")) == default


def test_damaged_latents_are_repaired_to_the_byte(run_copy, small_recipe, in_process):
    recipe = with_encode(small_recipe, dtype="int8")
    encode(run_copy, recipe, in_process)
    before = files(run_copy, f"{LATENTS}/**/*.*")
    tar = run_copy.list(f"{LATENTS}/*/*.tar")[0]
    payload = bytearray(run_copy.read_bytes(tar))
    payload[payload.index(b".scale.npy") + 512 + 128] ^= 1  # the scale of one channel
    run_copy.write_bytes(tar, bytes(payload))
    run_copy.write_bytes(f"{LATENTS}/statistics.json", before[f"{LATENTS}/statistics.json"].replace(b"0.", b"1."))
    problems = {p["kind"]: p["where"] for p in verify_run(run_copy, recipe, num_pairs=0)["problems"]}
    assert problems.keys() == {"sha256_wrong", "statistics_differ"}
    assert problems["sha256_wrong"].startswith(tar)
    summary = repair_run(run_copy, recipe, in_process, num_pairs=0)
    assert summary["ok"], summary
    assert files(run_copy, f"{LATENTS}/**/*.*") == before


def test_an_unknown_storage_type_is_an_error(run_copy, small_recipe, in_process):
    with pytest.raises(UsageError, match=r"int4.*float16, bfloat16, int8"):
        encode(run_copy, with_encode(small_recipe, dtype="int4"), in_process)


def test_training_with_stored_texts_does_not_load_the_encoder(run_copy, command, t5, clip, monkeypatch, tmp_path):
    spec = f"{t5}+{clip}"
    code, summary, err = command("encode", "--run", run_copy.uri, "--encode.text.encoder", spec)
    assert code == 0
    captions = set(run_copy.read_table("index.parquet")["caption"].to_pylist())
    for one in (t5, clip):
        found = summary["text"][one]
        assert (found["texts"], found["computed_parts"], found["skipped_parts"]) == (len(captions), 1, 0)
        assert f"{found['tokens']} tokens of {one}" in err  # counted by the tokenizer before it started
        assert found["stated_bytes"] == pytest.approx(found["bytes"], rel=0.1)
    code, summary, _ = command("encode", "--run", run_copy.uri, "--encode.text.encoder", spec)
    assert [summary["text"][one]["computed_parts"] for one in (t5, clip)] == [0, 0]
    with monkeypatch.context() as patch:
        patch.setattr(text_towers, "T5Encoder", None)
        patch.setattr(text_towers, "ClipTextEncoder", None)
        arguments = ("train", "dit", "--run", run_copy.uri, "--train-dit.dit.text-encoder", spec, *SHORT_TRAINING)
        code, trained, err = command(*arguments)
    assert (code, trained["steps"]) == (0, 2), err
    config = json.loads((Path(trained["checkpoint"]) / "config.json").read_text())
    assert config["text_encoder"]["spec"] == spec
    assert (config["backbone"]["text_width"], config["backbone"]["pooled_width"]) == (16 + 8, 16 + 12)
    sample = ("sample", "--checkpoint", trained["checkpoint"], "--prompt", "a red circle", "--expander", "none")
    code, sampled, err = command(*sample, "--num-steps", "1", "--out", str(tmp_path / "out"))
    assert code == 0, err
    assert Path(sampled["videos"][0]).is_file()
    write_t5(Path(t5.removeprefix("t5:")), "UMT5", seed=9)  # other weights under the same name
    try:
        code, _, err = command(*sample, "--num-steps", "1", "--out", str(tmp_path / "again"))
        assert code == 2
        assert "the checkpoint was trained with" in err
    finally:
        write_t5(Path(t5.removeprefix("t5:")), "UMT5")


def test_without_stored_texts_a_t5_trains_and_samples_through_the_same_commands(run_copy, command, t5, tmp_path):
    code, trained, err = command(
        "train", "dit", "--run", run_copy.uri, "--train-dit.dit.text-encoder", t5, *SHORT_TRAINING
    )
    assert (code, trained["steps"]) == (0, 2), err
    sample = ("sample", "--checkpoint", trained["checkpoint"], "--prompt", "red", "--expander", "none")
    code, _, err = command(*sample, "--num-steps", "1", "--out", str(tmp_path / "out"))
    assert code == 0, err


def test_texts_over_the_size_limit_are_an_error_before_encoding(run_copy, command, t5):
    arguments = ("encode", "--run", run_copy.uri, "--encode.text.encoder", t5, "--encode.text.max-gigabytes", "1e-6")
    code, _, err = command(*arguments)
    assert code == 2
    assert "GB, more than --encode.text.max-gigabytes 1e-06" in err
    assert run_copy.list("text/*/*") == []


def test_new_captions_get_new_parts_and_old_parts_stay(run_copy, small_recipe, in_process, t5, monkeypatch):
    monkeypatch.setattr("jobs.encode.texts.PART_TEXTS", 4)
    recipe = with_text(small_recipe, encoder=t5)
    encode_texts(run_copy, recipe, in_process)
    before = files(run_copy, f"{text_folder(t5)}/part-*")
    prompts = dataclasses.replace(recipe.train_dit.dit, sample_prompts=("red red red", "blue"))
    more = dataclasses.replace(recipe, train_dit=dataclasses.replace(recipe.train_dit, dit=prompts))
    summary = encode_texts(run_copy, more, in_process)[t5]
    assert (summary["computed_parts"], summary["skipped_parts"]) == (1, len(before) // 2)
    after = files(run_copy, f"{text_folder(t5)}/part-*")
    assert before.items() < after.items()
    assert verify_run(run_copy, more, num_pairs=0)["ok"]


def test_a_killed_encode_resumes_to_the_same_bytes(run_copy, small_recipe, in_process, t5, monkeypatch):
    monkeypatch.setattr("jobs.encode.texts.PART_TEXTS", 4)
    recipe = with_text(small_recipe, encoder=t5)
    encode_texts(run_copy, recipe, in_process)
    complete = files(run_copy, "text/*/*")
    assert len(complete) > 3
    run_copy.remove(f"{text_folder(t5)}/encoder.json")
    run_copy.remove(f"{text_folder(t5)}/part-00000.safetensors")
    assert encode_texts(run_copy, recipe, in_process)[t5]["computed_parts"] == 1
    assert files(run_copy, "text/*/*") == complete


def test_parts_of_other_weights_are_encoded_again(run_copy, small_recipe, in_process, tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.encode.texts.PART_TEXTS", 4)
    spec = write_t5(tmp_path / "t5")
    recipe = with_text(small_recipe, encoder=spec)
    encode_texts(run_copy, recipe, in_process)
    write_t5(tmp_path / "t5", seed=1)
    run_copy.remove(f"{text_folder(spec)}/part-00000.safetensors")
    summary = encode_texts(run_copy, recipe, in_process)[spec]
    assert summary["skipped_parts"] == 0
    assert verify_run(run_copy, recipe, num_pairs=0)["ok"]


def test_damaged_texts_are_repaired(run_copy, small_recipe, in_process, t5, monkeypatch):
    """A corrupted part, a lost text list and a missing part in one test, since each repair verifies the whole run."""
    monkeypatch.setattr("jobs.encode.texts.PART_TEXTS", 3)
    recipe = with_text(small_recipe, encoder=t5)
    encode_texts(run_copy, recipe, in_process)
    before = files(run_copy, "text/*/*")
    folder = text_folder(t5)
    name = f"{folder}/part-00000.safetensors"
    run_copy.write_bytes(name, run_copy.read_bytes(name)[:-1] + b"\x7f")
    run_copy.remove(f"{folder}/part-00001.safetensors")
    run_copy.remove(f"{folder}/part-00002.parquet")
    problems = [(p.kind, p.where.rsplit("/")[-1]) for p in check_encoded_texts(run_copy)]
    assert problems == [
        ("text_part_differs", "part-00000.safetensors"),
        ("part_missing", "part-00001.safetensors"),
        ("part_missing", "part-00002.parquet"),
    ]
    elsewhere = repair_run(run_copy, small_recipe, in_process, num_pairs=0)  # run.yaml has no text encoder
    assert "another text encoder" in " ".join(elsewhere["refused"].values())
    write_recipe(run_copy, recipe)
    summary = repair_run(run_copy, recipe, in_process, num_pairs=0)
    assert summary["ok"], summary
    assert files(run_copy, "text/*/*") == before


@pytest.mark.slow
def test_two_workers_on_ray_write_the_same_bytes_as_one_process(run_copy, small_recipe, in_process, t5):
    recipe = with_text(with_encode(small_recipe, dtype="int8"), encoder=t5)
    encode(run_copy, recipe, in_process)
    before = files(run_copy, f"{LATENTS}/**/*.*") | files(run_copy, "text/*/*")
    for folder in ("latents", "text"):
        run_copy.remove(folder)
    flags = ("--encode.dtype", "int8", "--encode.text.encoder", t5, "--num-workers", "2", "--no-progress")
    assert cli.main(["encode", "--run", run_copy.uri, *flags]) == 0
    assert files(run_copy, f"{LATENTS}/**/*.*") | files(run_copy, "text/*/*") == before
