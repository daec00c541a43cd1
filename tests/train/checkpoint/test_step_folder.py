from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from recaption.errors import CheckpointMismatchError, UsageError
from train.checkpoint import safetensors_storage as tensor_files
from train.checkpoint import step_folder as checkpoint
from train.checkpoint.weights import load_weights


def write(folder: Path, step: int, *, keep: int = 3, task: str = "dit", with_ema: bool = True) -> str:
    weights = {"w": torch.full((2, 3), float(step)), "b": torch.arange(3.0)}
    average = {name: tensor + 0.5 for name, tensor in weights.items()}
    return checkpoint.write(
        str(folder / "checkpoints"),
        step=step,
        config={"task": task, "width": 4},
        state={"skipped": 0},
        model=weights,
        ema=average if with_ema else None,
        optimizer={"w.step": torch.tensor(3.0), "w.exp_avg": torch.full((2, 3), 0.25)},
        keep=keep,
    )


def test_load_model_takes_a_step_folder_a_training_folder_or_its_checkpoints(tmp_path):
    write(tmp_path, 5)
    newest = write(tmp_path, 12)
    for path in (newest, tmp_path, tmp_path / "checkpoints", newest + "/"):
        config, weights = checkpoint.load_model(str(path), task="dit")
        assert config == {"task": "dit", "width": 4}
        assert weights["w"][0, 0] == 12.5
    assert checkpoint.load_model(newest, ema=False)[1]["w"][0, 0] == 12.0


def test_without_an_average_the_weights_themselves_are_loaded(tmp_path):
    write(tmp_path, 5, with_ema=False)
    assert checkpoint.load_model(str(tmp_path))[1]["w"][0, 0] == 5.0


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 15, 1000000):
        write(tmp_path, step, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000015", "step-1000000"]
    assert checkpoint.find(str(tmp_path)).step == 1000000


def test_damaged_newest_is_passed_over_and_said(tmp_path, caplog):
    write(tmp_path, 5)
    damaged = Path(write(tmp_path, 10)) / checkpoint.EMA
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert checkpoint.find(str(tmp_path)).step == 5
    assert "ema.safetensors is damaged" in caplog.text
    with pytest.raises(CheckpointMismatchError, match=r"ema\.safetensors is damaged: \d+ bytes on disk"):
        checkpoint.load_model(str(damaged.parent))


def test_tied_weights_and_views_survive(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    weights = model.state_dict() | {"view": torch.arange(10.0)[2:5], "transposed": torch.arange(6.0).reshape(2, 3).T}
    path = checkpoint.write(str(tmp_path), step=1, config={}, state={}, model=weights, ema=None, optimizer={}, keep=1)
    loaded = checkpoint.load_model(path)[1]
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_wrong_paths_and_kinds_get_one_clear_sentence(tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        checkpoint.load_model(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="holds no checkpoint"):
        checkpoint.load_model(str(tmp_path))
    path = write(tmp_path, 5, task="captioner")
    with pytest.raises(CheckpointMismatchError, match="is a checkpoint of task 'captioner', where 'dit' is needed"):
        checkpoint.load_model(path, task="dit")
    (Path(path) / checkpoint.STATE).write_text(json.dumps({"some": "file"}))
    with pytest.raises(CheckpointMismatchError, match="is not a whole checkpoint of this project"):
        checkpoint.load_model(path)


def test_weights_of_another_shape_are_refused(tmp_path):
    with pytest.raises(CheckpointMismatchError, match=r"here does not fit the model: .*size mismatch"):
        load_weights(nn.Linear(2, 2), {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, "here")


def test_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 5)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_files_are_plain_safetensors_with_nothing_pickled(tmp_path):
    path = Path(write(tmp_path, 5))
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}
    assert load_file(path / checkpoint.OPTIMIZER)["w.step"] == 3.0


def test_tensors_are_read_into_the_memory_of_a_training(tmp_path):
    found = checkpoint.read(write(tmp_path, 5))
    tensors = {
        "model.safetensors/w": torch.zeros(2, 3), "model.safetensors/b": torch.zeros(3),
        "optimizer.safetensors/w.step": torch.zeros(()), "optimizer.safetensors/w.exp_avg": torch.zeros(3, 2).T,
    }  # fmt: skip
    found.read_into(tensors)
    assert torch.equal(tensors["model.safetensors/b"], torch.arange(3.0))
    assert tensors["optimizer.safetensors/w.step"] == 3.0
    assert (tensors["optimizer.safetensors/w.exp_avg"] == 0.25).all()
    for change, message in (
        ({"model.safetensors/w": torch.zeros(3, 3)}, r"w is \(2, 3\), the model has \(3, 3\)"),
        ({"model.safetensors/c": torch.zeros(1)}, r"c is not there"),
        ({"moments.safetensors/w": torch.zeros(1)}, r"holds no moments.safetensors: an earlier version"),
    ):
        with pytest.raises(CheckpointMismatchError, match=message):
            found.read_into(tensors | change)


@given(st.data())
def test_runs_of_a_box_are_its_elements_in_order(data):
    shape = data.draw(st.lists(st.integers(1, 5), max_size=4))
    box = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    offsets, sizes = [a for a, _ in box], [b - a for a, b in box]
    whole = torch.arange(math.prod(shape)).reshape(shape)
    part = whole[tuple(slice(a, b) for a, b in box)].reshape(-1)
    found = torch.full_like(part, -1)
    for start, inside, length in tensor_files.runs(offsets, sizes, shape):
        found[inside : inside + length] = whole.reshape(-1)[start : start + length]
    assert torch.equal(found, part)
