"""Every backbone by typed commands: trains, resumes after kill -9 with the same weights, and samples."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import types
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs import cli
from jobs.commands import Common
from tests.stand_ins.packed_inputs import SIZES, TRANSFORMERS
from train.generator.task import DitTask

BACKBONES = [name for name in TRANSFORMERS if name != "temporal"]
"""`temporal` trains over an image model: test_train.py."""
SHARED = ("width", "depth", "num_heads")


def flags(name: str) -> list[str]:
    """The smallest settings of a backbone, as flags; those that it alone has under its name."""
    found = ["--backbone", name]
    for setting, value in SIZES[name].items():
        group = "" if setting in SHARED else f"{name}."
        found += [f"--train-dit.dit.{group}{setting}".replace("_", "-"), str(value)]
    return found


def train_until_killed(arguments: list[str], step: int) -> None:
    """The command in this process, which dies in the loss of that step."""
    loss = DitTask.loss

    def dying(task, batch, **how):
        if how["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(task, batch, **how)

    DitTask.loss = dying
    Common.cluster = lambda _: contextlib.nullcontext(types.SimpleNamespace(address=None))
    cli.main(arguments)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.jobs.train.test_backbones"])
    return context


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_trains_resumes_after_a_kill_and_samples(run_copy, command, processes, name):
    train = ["train", "dit", "--run", run_copy.uri, *flags(name), "--train-dit.dit.validation-packs", "0",
             "--train-dit.dit.conditions", "none=0.7", "first=0.3", "--train-dit.trainer.device", "cpu",
             "--train-dit.trainer.checkpoint-every", "1", "--steps", "3"]  # fmt: skip
    killed = processes.Process(target=train_until_killed, args=([*train, "--json", "--no-progress"], 2))
    killed.start()
    code, whole, err = command(*train, "--name", "whole")
    assert (code, whole["steps"]) == (0, 3), err
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    code, resumed, err = command(*train)
    assert (code, resumed["steps"]) == (0, 3), err
    assert resumed["resumed_from"] in (1, 2)
    one, other = (load_file(Path(run["checkpoint"]) / "model.safetensors") for run in (whole, resumed))
    assert all((one[key] == other[key]).all() for key in one.keys() | other.keys())
    assert json.loads((Path(whole["checkpoint"]) / "config.json").read_text())["backbone"]["name"] == name

    code, sampled, err = command(
        "sample", "--checkpoint", resumed["checkpoint"], "--prompt", "a red circle", "--num-steps", "2", "--num-frames",
        "5", "--expander", "none",
    )  # fmt: skip
    assert code == 0, err
    assert Path(sampled["videos"][0]).stat().st_size > 0


def test_an_option_of_another_backbone_and_an_unknown_one_are_one_sentence(run_copy, command):
    train = ("train", "dit", "--run", run_copy.uri, "--steps", "1")
    code, _, err = command(*train, "--train-dit.dit.uvit.no-skips")
    assert code == 2
    assert "settings of uvit have no effect with backbone 'dit': leave them out, or choose uvit" in err
    code, _, err = command(*train, "--backbone", "unet")
    assert code == 2
    assert "unknown backbone 'unet': choose one of dit" in err
    code, _, err = command(*train, "--backbone", "separable", "--train-dit.dit.num-registers", "2")
    assert code == 2
    assert "backbone 'separable' has no num_registers: leave it out" in err
    code, _, err = command("train", "dit", "--run", run_copy.uri, "--eval", "--backbone", "uvit")
    assert code == 2
    assert "--backbone has no effect" in err
