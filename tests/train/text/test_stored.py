"""Precomputed text encodings are read in place of the encoder that made them, and only of that one."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
import safetensors.torch
import torch
from small_text_encoders import write_t5

from recaption.errors import UsageError, WeightsUnreachableError
from recaption.ledger.encoded_texts import TEXTS_SCHEMA, check_encoded_texts, plan_hash, text_folder
from recaption.run_folder import RunFolder
from train.text import encoder as text_encoder
from train.text import stored, towers

PARTS = [["red", "blue circle"], ["red circle blue"]]


def store(run: RunFolder, spec: str, dtype: str = "float16") -> None:
    folder, tower = text_folder(spec), towers.load_tower(spec)
    for number, texts in enumerate(PARTS):
        run.write_table(f"{folder}/part-{number:05d}.parquet", pa.table({"text": texts}, schema=TEXTS_SCHEMA))
        metadata = {"spec": spec, "plan_hash": plan_hash(spec, dtype, texts)}
        payload = stored.encode_part(tower, texts, dtype=dtype, batch_size=1, metadata=metadata)
        run.write_bytes(f"{folder}/part-{number:05d}.safetensors", payload)
    manifest = {"spec": spec, "weights_hash": tower.weights_hash, "width": 16, "pooled_width": 16, "dtype": dtype}
    manifest |= {"num_parts": 2, "num_texts": 3, "num_tokens": 9}
    run.write_bytes(f"{folder}/encoder.json", json.dumps(manifest).encode())


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path):
    return RunFolder(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path.name}")


@pytest.mark.parametrize(("dtype", "precision"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_precomputed_texts_are_read_and_the_encoder_is_not_loaded(run, spec, dtype, precision, monkeypatch):
    store(run, spec, dtype)
    assert list(check_encoded_texts(run)) == []
    part = safetensors.torch.load(run.read_bytes(f"{text_folder(spec)}/part-00000.safetensors"))
    assert part["lengths"].tolist() == [2, 3]
    assert part["tokens"].shape == (5, 16)
    texts = [text for part in PARTS for text in part]
    fresh = text_encoder.load(spec)
    expected = fresh.encode([*texts, " "])
    monkeypatch.setattr(towers, "T5Encoder", None)
    encoder = text_encoder.load(spec, run=run)
    found = encoder.encode([*texts, " "])
    assert encoder.config == fresh.config
    assert found.segments.lengths == expected.segments.lengths
    torch.testing.assert_close(found.text_MC, expected.text_MC, rtol=precision, atol=precision)
    torch.testing.assert_close(found.pooled_SC, expected.pooled_SC, rtol=precision, atol=precision)


def test_a_missing_text_loads_the_encoder_once_with_a_message(run, spec, capsys):
    store(run, spec)
    encoder = text_encoder.load(spec, run=run)
    capsys.readouterr()
    encoder.encode(["red"])
    assert capsys.readouterr().err == ""
    found = encoder.encode(["circle", "red", "blue blue"])
    assert capsys.readouterr().err.count("loading t5:") == 1
    torch.testing.assert_close(found.text_MC[:2], text_encoder.load(spec).encode(["circle"]).text_MC)


def test_without_the_encoder_only_precomputed_texts_can_be_encoded(run, tmp_path, monkeypatch):
    spec = write_t5(tmp_path / "t5")
    store(run, spec)
    (tmp_path / "t5").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = text_encoder.load(spec, run=run)
    assert encoder.encode(["red"]).segments.lengths == (2,)
    with pytest.raises(WeightsUnreachableError, match=r"'circle' is not among the texts in .*recaption encode"):
        encoder.encode(["circle"])


def test_other_weights_under_the_same_name_are_refused(run, tmp_path):
    spec = write_t5(tmp_path / "t5")
    store(run, spec)
    write_t5(tmp_path / "t5", seed=1)
    encoder = text_encoder.load(spec, run=run)
    with pytest.raises(UsageError, match="was encoded with weights"):
        encoder.encode(["circle"])
    with pytest.raises(UsageError, match="trained with 000000000000"):
        text_encoder.load(spec, run=run, weights_hash="000000000000")


def test_an_encoder_without_stored_texts_is_loaded(run, spec, tmp_path):
    store(run, spec)
    other = write_t5(tmp_path / "other", seed=1)
    assert text_encoder.load(other, run=run).weights_hash == text_encoder.load(other).weights_hash


def test_encodings_that_overflow_half_precision_are_refused(run, spec, monkeypatch):
    tower = towers.load_tower(spec)
    monkeypatch.setattr(
        tower, "encode", lambda texts: (torch.full((1, 16), 1e5), torch.tensor([1]), torch.zeros(1, 16))
    )
    with pytest.raises(UsageError, match=r"overflows float16.*bfloat16"):
        stored.encode_part(tower, ["red"], dtype="float16", batch_size=1, metadata={})
    assert stored.encode_part(tower, ["red"], dtype="bfloat16", batch_size=1, metadata={})


def truncate(payload: bytes) -> bytes:
    return payload[:-7]


def flip(payload: bytes) -> bytes:
    return payload[:-40] + bytes([payload[-40] ^ 1]) + payload[-39:]


@pytest.mark.parametrize(
    ("change", "what"), [(truncate, "according to its header"), (flip, "not the one that was recorded")]
)
def test_damage_is_found_and_truncated_parts_are_not_read(run, spec, change, what):
    store(run, spec)
    name = f"{text_folder(spec)}/part-00001.safetensors"
    run.write_bytes(name, change(run.read_bytes(name)))
    (problem,) = check_encoded_texts(run)
    assert (problem.kind, problem.where) == ("text_part_differs", name)
    assert what in problem.detail
    if change is truncate:
        with pytest.raises(UsageError, match="verify --repair"):
            text_encoder.load(spec, run=run)
