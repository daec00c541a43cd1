"""The training loop on a toy task. Run as a script, this file is the process that tests kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from recaption.errors import CheckpointMismatchError, ErrorBudgetError, UsageError
from train.checkpoint import step_folder
from train.engine.settings import TrainerSettings
from train.engine.task import LossParts
from train.engine.trainer import train


class ToyTask:
    """Regression with dropout, a buffer and an unused embedding."""

    name = "toy"

    def __init__(self, width: int = 8, batch_size: int = 6) -> None:
        torch.manual_seed(0)
        self.model = ToyModel(width)
        self.config = {"width": width, "shape": (1, 2)}
        self.batch_size = batch_size
        self.batch_numbers: list[int] = []
        self.before_loss = lambda step: None

    def batches(self, start_step, rank, num_ranks):
        number = start_step
        while True:
            generator = torch.Generator().manual_seed(number * num_ranks + rank)
            x = torch.randn(self.batch_size, 4, generator=generator)
            yield {"x": x, "y": x.sum(1, keepdim=True), "number": number}
            number += 1

    def loss(self, batch, *, step, seed):
        assert batch["number"] == step
        self.batch_numbers.append(step)
        self.before_loss(step)
        error = (self.model(batch["x"]) - batch["y"]).square().mean(1)
        logs = {"error": error.detach().mean()}
        return LossParts(
            loss_sum=error.sum(), weight=len(error), logs=logs, num_tokens=len(error), capacity_tokens=2 * len(error)
        )

    def validate(self, model, step):
        assert not model.training
        return {"weight": float(model.out.weight.abs().sum())}


class ToyModel(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp = nn.Linear(4, width)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(width, 1)
        self.unused = nn.Embedding(3, 2)
        self.register_buffer("num_calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.num_calls += 1
        return self.out(self.drop(torch.relu(self.inp(x))))


SETTINGS = TrainerSettings(num_steps=16, lr=1e-2, warmup_steps=3, checkpoint_every=5, log_every=3, device="cpu")


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(lines: list[dict]) -> list[dict]:
    clocks = ("seconds", "tokens_per_second", "data_wait_share", "tflops_per_second")
    return [{k: v for k, v in line.items() if k not in clocks} for line in lines]


def run_child(folder: Path, mode: str, **options: object) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen([sys.executable, __file__, str(folder), mode], env=environment, **options)


def test_loss_falls_and_the_folder_holds_all_documented_files(tmp_path):
    settings = TrainerSettings(num_steps=150, lr=2e-2, checkpoint_every=50, device="cpu", log_every=10)
    result = train(ToyTask(), settings, str(tmp_path), progress=False)
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [1, *range(10, 151, 10)]
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]
    assert {"step", "loss", "lr", "grad_norm", "tokens_per_second", "fill", "data_wait_share", "seconds"} <= set(
        lines[0]
    )
    assert lines[1]["fill"] == 0.5
    assert lines[-1]["val/weight"] == result.validation["weight"]
    assert result.steps == 150
    assert result.loss == lines[-1]["loss"]
    assert result.checkpoint == str(tmp_path / "checkpoints" / "step-000150")
    assert result.tokens_per_second > 0
    assert result.resumed_from is None
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000100", "step-000150"]
    assert sorted(p.name for p in Path(result.checkpoint).iterdir()) == [
        "config.json", "ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert "width: 8" in (tmp_path / "config.yaml").read_text()


def test_killed_twice_and_resumed_gives_the_same_bits_as_never_killed(tmp_path):
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    train(ToyTask(), SETTINGS, str(undisturbed), progress=False)
    assert run_child(killed, "die_in_step_7").wait() == 9
    assert [line["step"] for line in lines_of(killed)] == [1, 3, 6]
    assert run_child(killed, "die_before_rename_of_step_10").wait() == 9
    assert sorted(p.name for p in (killed / "checkpoints").iterdir())[0] == "step-000005"
    assert len(list((killed / "checkpoints").iterdir())) == 2  # the other one is the unfinished step 10
    result = train(ToyTask(), SETTINGS, str(killed), progress=False)
    assert result.resumed_from == 5
    for name in ("model", "ema"):
        path = f"checkpoints/step-000016/{name}.safetensors"
        assert (undisturbed / path).read_bytes() == (killed / path).read_bytes()
    assert without_times(lines_of(undisturbed)) == without_times(lines_of(killed))
    assert not list((killed / "checkpoints").glob("*.tmp"))


def test_full_disk_ends_the_run_with_its_error_and_leaves_no_partial_checkpoint(tmp_path, monkeypatch):
    """Saving is asynchronous: its error is raised by the next save, long before the last step."""

    def full(*args: object) -> int:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    task = ToyTask()
    with pytest.raises(OSError, match="No space left"):
        train(task, SETTINGS, str(tmp_path), progress=False)
    assert max(task.batch_numbers) < 10
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_sigterm_saves_a_checkpoint_and_the_next_call_resumes(tmp_path):
    child = run_child(tmp_path, "slow")
    while not (tmp_path / "metrics.jsonl").exists() or len(lines_of(tmp_path)) < 1:
        time.sleep(0.05)
        assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM
    (saved,) = (tmp_path / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert 1 <= step < 16
    undisturbed = tmp_path / "undisturbed"
    train(ToyTask(), SETTINGS, str(undisturbed), progress=False)
    assert train(ToyTask(), SETTINGS, str(tmp_path), progress=False).resumed_from == step
    path = "checkpoints/step-000016/model.safetensors"
    assert (undisturbed / path).read_bytes() == (tmp_path / path).read_bytes()


def test_ctrl_c_saves_a_checkpoint_and_raises_keyboard_interrupt(tmp_path):
    task = ToyTask()
    task.before_loss = lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 6 else None
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(task, SETTINGS, str(tmp_path), progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    assert step_folder.find(str(tmp_path)).step == 7


def test_trains_in_a_thread_where_signals_cannot_be_handled(tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(train(ToyTask(), SETTINGS, str(tmp_path), progress=False).steps)
    )
    thread.start()
    thread.join()
    assert results == [16]


def test_finished_run_computes_nothing_when_called_again(tmp_path):
    first = train(ToyTask(), SETTINGS, str(tmp_path), progress=False)
    task = ToyTask()
    again = train(task, SETTINGS, str(tmp_path), progress=False)
    assert task.batch_numbers == []
    assert again.resumed_from == 16
    assert (again.loss, again.checkpoint, again.validation) == (first.loss, first.checkpoint, first.validation)


def test_a_finished_run_can_be_extended(tmp_path):
    train(ToyTask(), SETTINGS, str(tmp_path), progress=False)
    longer = TrainerSettings(num_steps=20, lr=1e-2, warmup_steps=3, log_every=3, device="cpu")
    task = ToyTask()
    assert train(task, longer, str(tmp_path), progress=False).resumed_from == 16
    assert task.batch_numbers == [16, 17, 18, 19]


def test_accumulation_gives_the_gradient_of_one_big_batch(tmp_path):
    """Batches of unequal size: a mean of means would differ."""

    class Uneven(ToyTask):
        def __init__(self, sizes):
            super().__init__()
            self.sizes = sizes
            self.model.drop.p = 0.0

        def batches(self, start_step, rank, num_ranks):
            x = torch.randn(12, 4, generator=torch.Generator().manual_seed(5))
            number = start_step
            while True:
                part = x.split(self.sizes)[number % len(self.sizes)]
                yield {"x": part, "y": part.sum(1, keepdim=True), "number": number}
                number += 1

    weights = []
    for name, sizes in (("one", [12]), ("many", [1, 8, 3])):
        settings = TrainerSettings(
            num_steps=4, accumulation=len(sizes), warmup_steps=0, max_grad_norm=0.5, device="cpu"
        )
        task = Uneven(sizes)
        result = train(task, settings, str(tmp_path / name), progress=False)
        weights.append((result.loss, task.model.inp.weight.detach()))
    assert weights[0][0] == pytest.approx(weights[1][0], rel=1e-6)
    torch.testing.assert_close(weights[0][1], weights[1][1], rtol=1e-5, atol=1e-7)


def test_step_with_a_non_finite_loss_is_skipped_and_counted(tmp_path):
    class Broken(ToyTask):
        bad_steps = (4, 9)

        def loss(self, batch, *, step, seed):
            parts = super().loss(batch, step=step, seed=seed)
            factor = float("nan") if step in self.bad_steps else 1.0
            return LossParts(loss_sum=parts.loss_sum * factor, weight=parts.weight)

    result = train(Broken(), SETTINGS, str(tmp_path / "some"), progress=False)
    assert result.skipped_steps == 2
    weights = step_folder.load_model(str(tmp_path / "some"))[1]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert all(line["loss"] > 0 for line in lines_of(tmp_path / "some"))
    task = Broken()
    task.bad_steps = range(100)
    settings = TrainerSettings(num_steps=50, max_skipped_steps=3, log_every=1, device="cpu")
    before = {k: v.clone() for k, v in task.model.state_dict().items() if k != "num_calls"}
    with pytest.raises(ErrorBudgetError, match=r"4 of 4 steps had a non-finite loss"):
        train(task, settings, str(tmp_path / "all"), progress=False)
    for name, tensor in before.items():
        assert torch.equal(tensor, task.model.state_dict()[name])


def test_ema_differs_from_the_weights_except_where_they_are_frozen(tmp_path):
    task = ToyTask()
    task.model.inp.requires_grad_(False)
    frozen = task.model.inp.weight.clone()
    train(task, SETTINGS, str(tmp_path), progress=False)
    assert torch.equal(task.model.inp.weight, frozen)
    _, ema = step_folder.load_model(str(tmp_path))
    _, raw = step_folder.load_model(str(tmp_path), ema=False)
    assert torch.equal(ema["inp.weight"], frozen)
    assert not torch.equal(ema["out.weight"], raw["out.weight"])
    assert torch.equal(ema["num_calls"], raw["num_calls"])
    assert raw["num_calls"] == 16


def test_bf16_trains_with_float32_weights(tmp_path):
    class Bf16(ToyTask):
        def loss(self, batch, *, step, seed):
            assert self.model.inp(batch["x"]).dtype == torch.bfloat16
            return super().loss(batch, step=step, seed=seed)

    settings = TrainerSettings(num_steps=2, precision="bf16", device="cpu")
    train(Bf16(), settings, str(tmp_path), progress=False)
    assert step_folder.load_model(str(tmp_path))[1]["inp.weight"].dtype == torch.float32


def test_state_of_the_data_order_is_saved_and_checked(tmp_path):
    class Planned(ToyTask):
        plan = "a1"

        def state_dict(self):
            return {"plan_hash": self.plan}

        def load_state_dict(self, state):
            if state["plan_hash"] != self.plan:
                raise CheckpointMismatchError(f"plan {state['plan_hash']} there, {self.plan} now")

    train(Planned(), SETTINGS, str(tmp_path), progress=False)
    task = Planned()
    task.plan = "b2"
    with pytest.raises(CheckpointMismatchError, match="plan a1 there, b2 now"):
        train(task, SETTINGS, str(tmp_path), progress=False)


def test_videos_sampled_during_training_become_tensorboard_animations(tmp_path):
    class SamplingTask(ToyTask):
        def sample(self, model, step):
            return {"sample/0": (np.full((3, 8, 16, 3), step, np.uint8), 8)}

    settings = TrainerSettings(num_steps=4, validate_every=2, device="cpu")
    train(SamplingTask(), settings, str(tmp_path), progress=False)
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert events.read_bytes().count(b"GIF89a") == 2
    assert [path.parent.name for path in sorted(tmp_path.glob("samples/*/sample-0.gif"))] == [
        "step-000002",
        "step-000004",
    ]


def test_sampling_has_its_own_interval(tmp_path):
    class SamplingTask(ToyTask):
        def __init__(self):
            super().__init__()
            self.validated, self.sampled = [], []

        def validate(self, model, step):
            self.validated.append(step)
            return {}

        def sample(self, model, step):
            self.sampled.append(step)
            return {}

    task = SamplingTask()
    settings = TrainerSettings(num_steps=7, validate_every=2, sample_every=3, device="cpu")
    train(task, settings, str(tmp_path / "a"), progress=False)
    assert (task.validated, task.sampled) == ([2, 4, 6, 7], [3, 6, 7])
    with pytest.raises(UsageError, match="the toy task cannot sample"):
        train(ToyTask(), settings, str(tmp_path / "b"), progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps = 0"),
        ({"lr": -1.0}, "lr = -1.0 is negative"),
        ({"schedule": "linear"}, "there are: cosine, wsd, constant"),
        ({"precision": "fp8"}, "there are: fp32, bf16"),
        ({"decay_fraction": 0.0}, "decay_fraction = 0.0 must be above 0"),
        ({"activation_checkpointing": True}, "the toy model has no `blocks`"),
        ({"device": "warp9"}, "'warp9'"),
        ({"ema_decay": 1.5}, "ema_decay = 1.5"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, change, message):
    settings = TrainerSettings(**({"device": "cpu"} | change))
    with pytest.raises(UsageError, match=message):
        train(ToyTask(), settings, str(tmp_path), progress=False)
    assert not list(tmp_path.iterdir())


def test_resume_with_another_model_or_seed_is_refused(tmp_path):
    train(ToyTask(), SETTINGS, str(tmp_path), progress=False)
    with pytest.raises(CheckpointMismatchError, match=r"width: 8 there, 9 now"):
        train(ToyTask(width=9), SETTINGS, str(tmp_path), progress=False)
    with pytest.raises(CheckpointMismatchError, match=r"seed = 0, now it is 1"):
        train(ToyTask(), TrainerSettings(num_steps=16, seed=1, device="cpu"), str(tmp_path), progress=False)
    with pytest.raises(UsageError, match=r"already holds step 16"):
        train(ToyTask(), SETTINGS, str(tmp_path), progress=False, resume=False)
    with pytest.raises(UsageError, match=r"past num_steps = 9"):
        train(ToyTask(), TrainerSettings(num_steps=9, device="cpu"), str(tmp_path), progress=False)


def main(folder: str, mode: str) -> None:
    task = ToyTask()
    if mode == "die_in_step_7":
        task.before_loss = lambda step: os._exit(9) if step == 7 else None
    elif mode == "die_before_rename_of_step_10":
        replace = os.replace
        os.replace = lambda a, b: os._exit(9) if str(b).endswith("step-000010") else replace(a, b)
    elif mode == "slow":
        task.before_loss = lambda step: time.sleep(0.3)
    train(task, SETTINGS, folder, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])


def test_a_damaged_newest_checkpoint_is_set_aside_and_written_again(tmp_path, caplog):
    settings = TrainerSettings(**(vars(SETTINGS) | {"num_steps": 10}))
    first = train(ToyTask(), settings, str(tmp_path), progress=False)
    expected = step_folder.load_model(first.checkpoint)[1]
    model = Path(first.checkpoint) / "model.safetensors"
    os.truncate(model, model.stat().st_size - 7)
    second = train(ToyTask(), settings, str(tmp_path), progress=False)
    assert (second.resumed_from, second.steps, second.checkpoint) == (5, 10, first.checkpoint)
    assert "step-000010.damaged" in caplog.text
    again = step_folder.load_model(second.checkpoint)[1]
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-000005", "step-000010", "step-000010.damaged",
    ]  # fmt: skip


def test_a_checkpoint_without_the_state_of_a_training_is_refused_in_one_sentence(tmp_path):
    train(ToyTask(), TrainerSettings(**(vars(SETTINGS) | {"num_steps": 5})), str(tmp_path), progress=False)
    state = tmp_path / "checkpoints" / "step-000005" / "state.json"
    state.write_text(json.dumps({"step": 5, "num_bytes": {}}))
    with pytest.raises(CheckpointMismatchError, match=r"state\.json lacks settings, skipped, .* move the folder away"):
        train(ToyTask(), SETTINGS, str(tmp_path), progress=False)
