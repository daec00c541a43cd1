from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from recaption.errors import CheckpointMismatchError, UsageError
from train.checkpoint import step_folder
from train.checkpoint.step_folder import with_file_prefix
from train.checkpoint.weights import load_weights


def write(folder: Path, step: int, *, keep_last: int = 3, task: str = "dit", with_ema: bool = True) -> str:
    weights = {"w": torch.full((2, 3), float(step)), "b": torch.arange(3.0)}
    ema = {name: tensor + 0.5 for name, tensor in weights.items()} if with_ema else {}
    optimizer = {"w.step": torch.tensor(3.0), "w.exp_avg": torch.full((2, 3), 0.25)}
    return step_folder.write(
        str(folder / "checkpoints"),
        step=step,
        config={"task": task, "width": 4},
        state={"skipped": 0},
        tensors=with_file_prefix(step_folder.MODEL_FILE, weights)
        | with_file_prefix(step_folder.EMA_FILE, ema)
        | with_file_prefix(step_folder.OPTIMIZER_FILE, optimizer),
        keep_last=keep_last,
    )


def test_load_model_accepts_a_step_folder_a_training_folder_or_its_checkpoints_folder(tmp_path):
    write(tmp_path, 5)
    newest = write(tmp_path, 12)
    for path in (newest, tmp_path, tmp_path / "checkpoints", newest + "/"):
        config, weights = step_folder.load_model(str(path), task="dit")
        assert config == {"task": "dit", "width": 4}
        assert weights["w"][0, 0] == 12.5
    assert step_folder.load_model(newest, ema=False)[1]["w"][0, 0] == 12.0


def test_without_ema_the_trained_weights_are_loaded(tmp_path):
    write(tmp_path, 5, with_ema=False)
    assert step_folder.load_model(str(tmp_path))[1]["w"][0, 0] == 5.0


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (5, 10, 15, 1000000):
        write(tmp_path, step, keep_last=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000015", "step-1000000"]
    assert step_folder.find(str(tmp_path)).step == 1000000


def test_damaged_newest_checkpoint_is_skipped_with_a_warning(tmp_path, caplog):
    write(tmp_path, 5)
    damaged = Path(write(tmp_path, 10)) / step_folder.EMA_FILE
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert step_folder.find(str(tmp_path)).step == 5
    assert "ema.safetensors is damaged" in caplog.text
    with pytest.raises(CheckpointMismatchError, match=r"ema\.safetensors is damaged: \d+ bytes on disk"):
        step_folder.load_model(str(damaged.parent))


def test_tied_weights_and_views_are_saved_whole(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    weights = model.state_dict() | {"view": torch.arange(10.0)[2:5], "transposed": torch.arange(6.0).reshape(2, 3).T}
    tensors = with_file_prefix(step_folder.MODEL_FILE, weights)
    path = step_folder.write(str(tmp_path), step=1, config={}, state={}, tensors=tensors, keep_last=1)
    loaded = step_folder.load_model(path)[1]
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_wrong_paths_and_tasks_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        step_folder.load_model(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="holds no checkpoint"):
        step_folder.load_model(str(tmp_path))
    path = write(tmp_path, 5, task="captioner")
    with pytest.raises(CheckpointMismatchError, match="is a checkpoint of task 'captioner', where 'dit' is needed"):
        step_folder.load_model(path, task="dit")
    (Path(path) / step_folder.STATE_FILE).write_text(json.dumps({"some": "file"}))
    with pytest.raises(CheckpointMismatchError, match="is not a complete checkpoint of this project"):
        step_folder.load_model(path)


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


def test_files_are_plain_safetensors_without_pickle(tmp_path):
    path = Path(write(tmp_path, 5))
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}
    assert load_file(path / step_folder.OPTIMIZER_FILE)["w.step"] == 3.0


def test_tensors_are_loaded_in_place(tmp_path):
    saved = step_folder.read(write(tmp_path, 5))
    tensors = {
        "model.safetensors/w": torch.zeros(2, 3), "model.safetensors/b": torch.zeros(3),
        "optimizer.safetensors/w.step": torch.zeros(()), "optimizer.safetensors/w.exp_avg": torch.zeros(3, 2).T,
    }  # fmt: skip
    saved.load_into(tensors)
    assert torch.equal(tensors["model.safetensors/b"], torch.arange(3.0))
    assert tensors["optimizer.safetensors/w.step"] == 3.0
    assert (tensors["optimizer.safetensors/w.exp_avg"] == 0.25).all()
    for change, message in (
        ({"model.safetensors/w": torch.zeros(3, 3)}, r"w has shape \(2, 3\) in the checkpoint, \(3, 3\) in the model"),
        ({"model.safetensors/c": torch.zeros(1)}, r"c has shape None in the checkpoint"),
        ({"moments.safetensors/w": torch.zeros(1)}, r"moments.safetensors cannot be read"),
    ):
        with pytest.raises(CheckpointMismatchError, match=message):
            saved.load_into(tensors | change)


def test_another_format_version_is_refused_in_one_sentence_and_never_skipped(tmp_path):
    write(tmp_path, 5)
    config = Path(write(tmp_path, 10)) / step_folder.CONFIG_FILE
    written = json.loads(config.read_text())
    assert written["format_version"] == step_folder.FORMAT_VERSION
    for version in (step_folder.FORMAT_VERSION + 1, None):
        config.write_text(json.dumps(written | {"format_version": version}))
        for path in (tmp_path, config.parent):
            with pytest.raises(
                CheckpointMismatchError, match=rf"format_version {version}, .* reads 1: .*another --name"
            ):
                step_folder.load_model(str(path))


DAMAGES = {
    "empty weights": ("model.safetensors", lambda old: b""),
    "truncated": ("model.safetensors", lambda old: old[:-1]),
    "header of 2^63 bytes": ("ema.safetensors", lambda old: b"\xff" * 7 + b"\x7f" + old[8:]),
    "pickle of the same size": ("optimizer.safetensors", lambda old: b"\x80\x04K\x01.".ljust(len(old), b"\0")),
    "config is a list": ("config.json", lambda old: b"[]".ljust(len(old))),
    "config is text": ("config.json", lambda old: b"x" * len(old)),
    "state is a list": ("state.json", lambda old: b"[1]"),
    "state is nested without end": ("state.json", lambda old: b"[" * 100_000),
    "state is not UTF-8": ("state.json", lambda old: b"\xff\xfe\x00"),
}


def damage(path: str | Path, name: str) -> None:
    file, change = DAMAGES[name]
    target = Path(path) / file
    target.write_bytes(change(target.read_bytes()))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_step_folder_is_one_sentence_and_is_set_aside_when_its_step_is_written_again(tmp_path, name):
    write(tmp_path, 5)
    path = write(tmp_path, 10)
    damage(path, name)
    with pytest.raises(CheckpointMismatchError) as refused:
        step_folder.load_model(path)
    assert "\n" not in str(refused.value)
    assert step_folder.find(str(tmp_path)).step == 5
    assert write(tmp_path, 10) == path
    assert step_folder.read(path).step == 10
    damage(path, name)
    folder = tmp_path / "checkpoints"
    assert step_folder.set_damaged_aside(str(folder)) == [f"{path}.damaged-2"]
    assert sorted(one.name for one in folder.iterdir()) == [
        "step-000005", "step-000010.damaged", "step-000010.damaged-2",
    ]  # fmt: skip


def test_a_whole_step_folder_is_not_written_again(tmp_path):
    path = Path(write(tmp_path, 5))
    before = (path / "state.json").stat().st_mtime_ns
    write(tmp_path, 5)
    assert (path / "state.json").stat().st_mtime_ns == before
