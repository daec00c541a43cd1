"""Captioner folders come from anywhere: their code is never run, and damage is one sentence."""

from __future__ import annotations

import ast
import builtins
import io
import json
import os
import pickle
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch

from jobs.recipe.presets import load_recipe
from recaption.captioners.registry import load_captioner
from recaption.captioners.videococa.checkpoint import TINY_FOLDER
from recaption.errors import UsageError
from recaption.prompts.expand import load_expander
from train.text.encoder import load as load_text_encoder

ROOT = Path(__file__).parents[3]
PACKAGES = ("recaption", "packing", "train", "jobs", "examples")
WITHOUT_REMOTE_CODE = {"train/compressors/pretrained.py", "train/backbones/pretrained/unet.py"}
"""diffusers' model classes (not its AutoModel and pipelines) take no such argument: they have no code of a folder to run."""
SPECS = ("vlm", "git", "t5", "transformers")


def test_every_from_pretrained_says_that_remote_code_is_not_trusted():
    calls = []
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("from_pretrained", "from_config"):
                calls.append((path.relative_to(ROOT).as_posix(), node))
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
    transformers_calls = [call for name, call in calls if name not in WITHOUT_REMOTE_CODE]
    own = [call for call in transformers_calls if ast.unparse(call.func).startswith(("PretrainedCompressor", "cls."))]
    checked = [call for call in transformers_calls if call not in own]
    assert len(checked) >= 8
    for call in checked:
        assert "trust_remote_code" in [keyword.arg for keyword in call.keywords], ast.unparse(call)


@pytest.fixture
def remote_code(tmp_path):
    folder = tmp_path / "remote"
    folder.mkdir()
    names = ("AutoConfig", "AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")
    auto_map = dict.fromkeys(names, "evil.Evil")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": auto_map, "architectures": ["E"]})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    return folder


def open_spec(kind, folder):
    if kind == "t5":
        return load_text_encoder(f"t5:{folder}")
    return load_expander(f"transformers:{folder}") if kind == "transformers" else load_captioner(f"{kind}:{folder}")


@pytest.mark.parametrize("kind", SPECS)
def test_code_of_a_model_folder_is_refused_without_a_question(kind, remote_code, monkeypatch):
    asked = []
    monkeypatch.setattr(builtins, "input", lambda *_: asked.append(1) or "y")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UsageError, match="code of its own") as refused:
        open_spec(kind, remote_code)
    assert "\n" not in str(refused.value)
    assert asked == []
    assert not (remote_code.parent / "ran").exists()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def header(tensors, length=None):
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def pickled():
    buffer = io.BytesIO()
    torch.save({"state_dict": Evil()}, buffer)
    return buffer.getvalue()


WEIGHTS = {
    "header of 2^63 bytes": header({}, 2**63),
    "shape 2^40 in 4 bytes": header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}) + b"\0" * 4,
    "offsets beyond the end": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
    "another model": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + b"\0" * 4,
    "header is a list": struct.pack("<Q", 2) + b"[]",
    "a zip with a pickle": pickled(),
    "a pickle": pickle.dumps(Evil()),
    "empty": b"",
}
TINY_CONFIG = json.loads((TINY_FOLDER / "config.json").read_text())


def nested(config, **changed):
    copy = json.loads(json.dumps(config))
    copy["coca"]["text_cfg"] |= changed
    return copy


CONFIGS = {
    "a list": [],
    "a number": 7,
    "null": None,
    "empty": {},
    "no coca": {key: value for key, value in TINY_CONFIG.items() if key != "coca"},
    "coca is a list": TINY_CONFIG | {"coca": []},
    "vocabulary of 10^10": nested(TINY_CONFIG, vocab_size=10**10),
    "vocabulary of 10^15": nested(TINY_CONFIG, vocab_size=10**15),
    "a negative width": nested(TINY_CONFIG, width=-64),
    "a width that is text": nested(TINY_CONFIG, width="wide"),
    "other width": nested(TINY_CONFIG, width=96),
    "framing is null": TINY_CONFIG | {"framing": None},
    "frames are text": TINY_CONFIG | {"num_frames": "eight"},
}
TEXTS = {
    "not JSON": "{",
    "not UTF-8": b"\xff\xfe\x00",
    "deep": "[" * 100_000,
    "a YAML tag": "!!python/object/apply:os.mkdir [evil]",
}
SIDE_FILES = ("tokenizer.json", "training_anchors.safetensors")


@pytest.fixture
def tiny_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the pickles would make their folder
    shutil.copytree(TINY_FOLDER, tmp_path / "own")
    return tmp_path / "own"


def refused(folder):
    with pytest.raises(UsageError) as error:
        load_captioner(str(folder))
    assert len(str(error.value).splitlines()) == 1, error.value
    assert not Path("evil").exists()


@pytest.mark.parametrize("case", WEIGHTS)
def test_damaged_weights_are_one_sentence(case, tiny_copy):
    (tiny_copy / "model.safetensors").write_bytes(WEIGHTS[case])
    refused(tiny_copy)


@pytest.mark.parametrize("case", CONFIGS)
def test_lying_configs_are_one_sentence(case, tiny_copy):
    (tiny_copy / "config.json").write_text(json.dumps(CONFIGS[case]))
    refused(tiny_copy)


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_side_files_that_are_no_json_are_one_sentence(name, case, tiny_copy):
    content = TEXTS[case]
    (tiny_copy / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(tiny_copy)


def test_tokenizer_that_is_missing_or_empty_and_damaged_anchors_are_one_sentence(tiny_copy):
    tokenizer = (tiny_copy / "tokenizer.json").read_bytes()
    (tiny_copy / "tokenizer.json").write_text("{}")
    refused(tiny_copy)
    (tiny_copy / "tokenizer.json").unlink()
    refused(tiny_copy)
    (tiny_copy / "tokenizer.json").write_bytes(tokenizer)
    for anchors in (path for path in tiny_copy.iterdir() if "anchor" in path.name):
        anchors.write_bytes(b"")
        refused(tiny_copy)


@pytest.mark.parametrize("kind", ["frozenbilm", "mplug2"])
def test_folders_of_other_backends_too(kind, small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = Path(small_model(kind))
    config = json.loads((whole / "config.json").read_text())
    damages = [("model.safetensors", content) for content in WEIGHTS.values()]
    damages += [
        ("config.json", json.dumps(value).encode())
        for value in ([], {"format": config["format"]}, config | {"num_tokens": 10**10})
    ]
    damages += [("tokenizer.json", b"{}"), ("tokenizer.json", b""), ("config.json", b"{")]
    for number, (name, content) in enumerate(damages):
        folder = tmp_path / f"{number}"
        shutil.copytree(whole, folder)
        (folder / name).write_bytes(content)
        refused(f"{kind}:{folder}")


@pytest.mark.parametrize("kind", ["git", "smolvlm"])
def test_folders_of_transformers_too(kind, small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = Path(small_model(kind))
    damages = [
        ("model.safetensors", content)
        for case, content in WEIGHTS.items()
        if case in ("empty", "header of 2^63 bytes", "a pickle")
    ]
    damages += [
        ("config.json", content) for content in (b"[]", b"{", b'{"model_type": "git", "vocab_size": 10000000000}')
    ]
    damages += [("tokenizer.json", b"{"), ("tokenizer.json", b"{}")]
    for number, (name, content) in enumerate(damages):
        folder = tmp_path / f"{number}"
        shutil.copytree(whole, folder)
        (folder / name).write_bytes(content)
        refused(f"{'git' if kind == 'git' else 'vlm'}:{folder}")


@pytest.mark.parametrize("text", ["recipe: !!python/object/apply:os.mkdir [evil]\n", "a: [\n", "\x00\x01", "- 1\n"])
def test_a_recipe_that_is_no_recipe_is_one_sentence(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"is not a run\.yaml"):
        load_recipe(str(tmp_path / "run.yaml"))
    assert not Path("evil").exists()
