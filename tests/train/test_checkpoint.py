from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from recaption.errors import CheckpointMismatchError, UsageError
from train import checkpoint


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
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
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
        checkpoint.load_weights(nn.Linear(2, 2), {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, "here")


def test_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 5)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_optimizer_state_is_read_without_pickle(tmp_path):
    found = checkpoint.read(write(tmp_path, 5))
    assert found.optimizer()["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.99)}]
