"""DDP on two gloo ranks against one rank; whose GPU a rank gets; timeouts."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

from recaption.errors import UsageError
from tests.stand_ins.ranks import exit_codes, start_ranks
from train.checkpoint import step_folder
from train.engine.metrics import read_lines
from train.engine.settings import TrainerSettings
from train.engine.task import LossParts
from train.engine.trainer import train
from train.parallel import collectives, control, process_group
from train.parallel.collectives import sum_gradients

NUM_SAMPLES = (5, 3, 2, 1)
"""Samples in the four quarters of every step: unequal, so that a mean of means would be wrong."""


class SplitTask:
    """Each step has four quarters, on whichever ranks and in whichever batches."""

    name = "split"

    def __init__(self, *, ranks: int, accumulation: int, pause: float = 0.0) -> None:
        torch.manual_seed(process_group.rank())  # ranks differ on purpose: rank 0's weights must be broadcast
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1), nn.Linear(1, 1))
        self.config = {"ranks": ranks, "accumulation": accumulation}
        self.quarters_per_batch = 4 // (ranks * accumulation)
        self.pause = pause

    def batches(self, start_step, rank, num_ranks):
        number = start_step
        while True:
            first = (number * num_ranks + rank) * self.quarters_per_batch
            x = torch.cat([quarter(k) for k in range(first, first + self.quarters_per_batch)])
            yield x, rank
            number += 1

    def loss(self, batch, *, step, seed):
        time.sleep(self.pause)
        x, rank = batch
        # Only rank 0's batches reach the third layer's bias and the last layer.
        hidden = self.model[:3](x)
        error = ((self.model[3](hidden) if rank == 0 else hidden) - x.sum(1, keepdim=True)).square()
        return LossParts(loss_sum=error.sum(), weight=len(x), num_tokens=len(x), logs={"rows": len(x)})

    def validate(self, model, step):
        return {}


def quarter(index: int) -> torch.Tensor:
    return torch.randn(NUM_SAMPLES[index % 4], 4, generator=torch.Generator().manual_seed(index))


def settings(accumulation: int, num_steps: int = 8) -> TrainerSettings:
    return TrainerSettings(
        num_steps=num_steps, accumulation=accumulation, lr=1e-2, warmup_steps=2, checkpoint_every=4, log_every=2,
        max_grad_norm=0.5, device="cpu",
    )  # fmt: skip


def one_rank(folder: str, pause: float = 0.0, num_steps: int = 8) -> None:
    with process_group.process_group("cpu"):
        task = SplitTask(ranks=2, accumulation=1, pause=pause)
        train(task, settings(accumulation=1, num_steps=num_steps), folder, progress=False)


class OneRankTask(SplitTask):
    """The batches of both ranks, one after the other."""

    def batches(self, start_step, rank, num_ranks):
        for x, _ in super().batches(start_step, rank, num_ranks):
            number = start_step
            start_step += 1
            yield x, number % 2


def test_two_ranks_train_the_model_of_one(tmp_path):
    assert exit_codes(start_ranks(one_rank, str(tmp_path / "two"))) == [0, 0]
    task = OneRankTask(ranks=1, accumulation=4)
    # Quarters 0, 1 went to rank 0 and 2, 3 to rank 1: with one rank and accumulation 2 they are batches 0 and 1.
    task.quarters_per_batch = 2
    train(task, settings(accumulation=2), str(tmp_path / "one"), progress=False)
    for ema in (False, True):
        _, one = step_folder.load_model(str(tmp_path / "one"), ema=ema)
        _, two = step_folder.load_model(str(tmp_path / "two"), ema=ema)
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-7)
    for one_line, two_line in zip(*(read_lines(str(tmp_path / name / "metrics.jsonl")) for name in ("one", "two"))):
        assert one_line["loss"] == pytest.approx(two_line["loss"], rel=1e-5)
        assert one_line["grad_norm"] == pytest.approx(two_line["grad_norm"], rel=1e-5)
        assert one_line["log/rows"] == two_line["log/rows"] == 5.5
    assert not list(Path(tmp_path / "two" / "checkpoints").glob("*.tmp"))


def test_sigterm_to_one_rank_stops_both_at_the_same_step(tmp_path):
    ranks = start_ranks(one_rank, str(tmp_path), 0.1, 500)
    while not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text():
        time.sleep(0.05)
        assert [rank.exitcode for rank in ranks] == [None, None]
    ranks[1].terminate()
    assert exit_codes(ranks) == [128 + signal.SIGTERM] * 2
    assert step_folder.find(str(tmp_path)).step < 500


def test_flat_buckets_return_every_gradient_to_its_parameter(monkeypatch):
    """The same gradients for any bucket size; doubling stands in for the sum over two ranks."""

    pending = []

    class Done:
        def wait(self):
            pending.remove(self)

    def double(flat, async_op):
        flat.mul_(2)
        pending.append(Done())
        assert len(pending) <= collectives.MAX_PENDING_BUCKETS, "not all gradients a second time at once"
        return pending[-1]

    monkeypatch.setattr(collectives, "num_ranks", lambda: 2)
    monkeypatch.setattr(collectives.dist, "all_reduce", double)
    for num_bytes in (1, 40, 1 << 20):
        monkeypatch.setattr(collectives, "BUCKET_BYTES", num_bytes)
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in [(3,), (2, 5), (), (4, 1, 2)]]
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, index + 1.0)
        sum_gradients(parameters)
        assert [float(p.grad.sum()) for p in parameters] == [6.0, 40.0, 6.0, 64.0]


def test_missing_devices_are_refused():
    assert process_group.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="is not a torch device"):
        process_group.choose_device("gpu0")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="finds no CUDA device"):
            process_group.choose_device("cuda")


@pytest.fixture
def machine_of_eight_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_each_rank_gets_its_own_gpu_or_a_sentence(machine_of_eight_gpus):
    setenv = machine_of_eight_gpus.setenv
    assert process_group.choose_device("cuda:3") == torch.device("cuda", 3)
    assert process_group.choose_device("auto") == torch.device("cuda", 0)
    with pytest.raises(UsageError, match="there are only 8 CUDA devices"):
        process_group.choose_device("cuda:8")
    setenv("LOCAL_WORLD_SIZE", "8")
    for local_rank in range(8):
        setenv("LOCAL_RANK", str(local_rank))
        assert process_group.choose_device("cuda") == torch.device("cuda", local_rank)
        with pytest.raises(UsageError, match="'cuda:0' would put all 8 ranks of this machine on one GPU; pass cuda"):
            process_group.choose_device("cuda:0")
    setenv("LOCAL_RANK", "8")
    with pytest.raises(UsageError, match="LOCAL_RANK 8 has no GPU of its own: this machine has 8"):
        process_group.choose_device("auto")


def test_groups_are_made_with_the_timeout_and_the_device(machine_of_eight_gpus):
    made = {}
    machine_of_eight_gpus.setattr(torch.cuda, "set_device", lambda device: None)
    machine_of_eight_gpus.setattr(process_group.dist, "destroy_process_group", lambda: None)
    machine_of_eight_gpus.setattr(
        process_group.dist, "init_process_group", lambda backend, **options: made.update(backend=backend, **options)
    )
    machine_of_eight_gpus.setenv("WORLD_SIZE", "2")
    machine_of_eight_gpus.setenv("LOCAL_RANK", "1")
    with process_group.process_group("auto", timeout_minutes=7):
        pass
    assert made == {"backend": "nccl", "timeout": timedelta(minutes=7), "device_id": torch.device("cuda", 1)}
    with process_group.process_group("cpu", timeout_minutes=7):
        pass
    assert made == {"backend": "gloo", "timeout": timedelta(minutes=7), "device_id": None}
    with pytest.raises(UsageError, match="timeout_minutes = 0 must be above 0"):
        TrainerSettings(timeout_minutes=0).check()


def hang(folder: str, which: str) -> None:
    """Rank 1 comes late to `which`, later than the timeout of a collective."""
    with process_group.process_group("cpu", timeout_minutes=1 / 60):
        group = control.ControlGroup(timeout_minutes=1 / 60)
        if process_group.rank() == 1:
            time.sleep(2.5)
        start = time.monotonic()
        getattr(group, which)(*((False,) if which == "any" else (120.0,)))
        Path(folder, f"rank-{process_group.rank()}").write_text(f"{time.monotonic() - start}")


def test_a_collective_times_out_and_waiting_for_rank_0_does_not(tmp_path):
    codes = exit_codes(start_ranks(hang, str(tmp_path), "any"), timeout=60)
    assert codes[0] != 0, "rank 0 gave up"
    assert not (tmp_path / "rank-0").exists()
    assert exit_codes(start_ranks(hang, str(tmp_path), "wait_for_main"), timeout=60) == [0, 0]
    assert float((tmp_path / "rank-0").read_text()) > 1.5


def resume_after_damage(folder: str) -> None:
    """Two ranks resume; only rank 0 may look at the folder."""
    if os.environ["RANK"] == "1":
        step_folder.newest = step_folder.set_damaged_aside = step_folder.remove_temporary = None  # type: ignore[assignment]
    one_rank(folder)


def test_rank_0_alone_sets_a_damaged_checkpoint_aside_and_both_resume_from_the_one_before(tmp_path):
    assert exit_codes(start_ranks(one_rank, str(tmp_path))) == [0, 0]
    _, expected = step_folder.load_model(str(tmp_path))
    model = tmp_path / "checkpoints" / "step-000008" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-7])
    assert exit_codes(start_ranks(resume_after_damage, str(tmp_path))) == [0, 0]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000004", "step-000008", "step-000008.damaged",
    ]  # fmt: skip
    _, weights = step_folder.load_model(str(tmp_path))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
