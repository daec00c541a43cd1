"""The captioner's loss in one pass, in micro-batches and on two gloo ranks."""

from __future__ import annotations

import weakref

import pytest
import torch

from recaption.captioners.registry import load_captioner
from tests.stand_ins.ranks import exit_codes, start_ranks
from train.captioner.task import CaptionerSettings, CaptionerTask
from train.checkpoint import step_folder
from train.engine.metrics import read_lines
from train.engine.settings import TrainerSettings
from train.engine.trainer import train
from train.parallel.collectives import sum_gradients, sum_over_ranks
from train.parallel.process_group import process_group, rank

BATCH = 6


def task_of(**changes) -> CaptionerTask:
    settings = {
        "frame_px": 32, "num_frames": 2, "vision_width": 32, "vision_layers": 1, "num_queries": 5, "width": 32,
        "text_layers": 1, "decoder_layers": 1, "head_width": 16, "batch_size": BATCH, "num_workers": 0,
        "num_validation_scenes": 2, "stages": ("1:descriptive=2,short=1,fields=1",), **changes,
    }  # fmt: skip
    return CaptionerTask(CaptionerSettings(**settings))


def gradients(task: CaptionerTask, batch) -> tuple[float, dict[str, torch.Tensor]]:
    task.model.zero_grad()
    parts = task.loss(batch, step=0, seed=0)
    parts.loss_sum.backward()
    return float(parts.loss_sum.detach()), {name: p.grad.clone() for name, p in task.model.named_parameters()}


def steps(accumulation: int = 1, num_steps: int = 3) -> TrainerSettings:
    return TrainerSettings(
        num_steps=num_steps, accumulation=accumulation, lr=1e-3, warmup_steps=1, log_every=1, checkpoint_every=100,
        device="cpu", ema_decay=0.5, max_grad_norm=0.5,
    )  # fmt: skip


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Compares tensors by norm: single entries are sums of thousands of terms in another order."""
    assert one.keys() == other.keys()
    longest = max(float(gradient.norm()) for gradient in other.values())
    for name in one:
        assert float((one[name] - other[name]).norm()) <= 1e-4 * float(other[name].norm()) + 1e-6 * longest, name


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_give_the_gradient_of_one_pass(micro_batch):
    whole = task_of()
    batch = next(whole.batches(0, 0, 1))
    loss, expected = gradients(whole, batch)
    loss_in_parts, found = gradients(task_of(micro_batch=micro_batch), batch)
    assert loss_in_parts == pytest.approx(loss, rel=1e-5)
    assert_close(found, expected)


def test_logits_of_at_most_one_micro_batch_are_alive(monkeypatch):
    alive: weakref.WeakSet = weakref.WeakSet()
    num_alive, num_clips = [], []

    def track_logits(task):
        plain = task.model.caption_logits

        def caption_logits(images, texts):
            logits = plain(images, texts)
            alive.add(logits)
            num_alive.append(len(alive))
            num_clips.append(len(logits))
            return logits

        monkeypatch.setattr(task.model, "caption_logits", caption_logits)
        return task

    task = track_logits(task_of(micro_batch=2))
    gradients(task, next(task.batches(0, 0, 1)))
    assert num_clips == [2] * (2 * BATCH // 2)  # every micro-batch, once more in backward
    assert max(num_alive) == 1
    num_clips.clear()
    whole = track_logits(task_of())
    gradients(whole, next(whole.batches(0, 0, 1)))
    assert num_clips == [BATCH]


def test_saved_activations_are_those_of_a_micro_batch():
    saved: list[int] = []

    def saved_bytes(micro_batch: int) -> int:
        task = task_of(micro_batch=micro_batch)
        batch = next(task.batches(0, 0, 1))
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
            task.loss(batch, step=0, seed=0)
        return sum(saved)

    assert saved_bytes(1) < 0.1 * saved_bytes(0)


def test_the_prompt_prefix_has_no_loss():
    task = task_of(stages=("1:short=1", "1:descriptive=1"))
    task.stages = task.stages[:1]
    batch = next(task.batches(0, 0, 1))
    assert (batch["prefix_B"] >= 2).all()
    logits = {}
    plain = task.model.caption_logits

    def caption_logits(images, texts):
        logits["BMV"] = plain(images, texts)
        logits["BMV"].retain_grad()
        return logits["BMV"]

    task.model.caption_logits = caption_logits
    task.settings = CaptionerSettings(**{**vars(task.settings), "contrastive_weight": 0.0})
    task.loss(batch, step=0, seed=0).loss_sum.backward()
    has_gradient_BM = logits["BMV"].grad.abs().sum(dim=-1) > 0
    for row, (prefix, length) in enumerate(zip(batch["prefix_B"].tolist(), batch["length_B"].tolist(), strict=True)):
        assert has_gradient_BM[row].nonzero().flatten().tolist() == list(range(prefix, length - 1))


def test_two_ranks_have_the_gradient_of_one(tmp_path):
    """Half the batch each, in micro-batches: the other rank's clips are negatives and return gradients."""
    ranks = start_ranks(one_rank, str(tmp_path / "gradients.pt"))
    task = task_of()
    loss, expected = gradients(task, next(task.batches(1, 0, 1)))
    assert exit_codes(ranks) == [0, 0]
    found = torch.load(tmp_path / "gradients.pt")
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert_close(found["gradients"], expected)


def one_rank(path: str) -> None:
    with process_group("cpu"):
        task = task_of(batch_size=BATCH // 2, micro_batch=2)
        parts = task.loss(next(task.batches(1, rank(), 2)), step=1, seed=0)
        parts.loss_sum.backward()
        parameters = dict(task.model.named_parameters())
        sum_gradients(list(parameters.values()))
        loss = sum_over_ranks(parts.loss_sum.detach().clone())
        if rank() == 0:
            torch.save({"loss": float(loss), "gradients": {name: p.grad for name, p in parameters.items()}}, path)


def test_accumulation_is_the_mean_over_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(CaptionerTask, "validate", lambda self, model, step: {})
    task = task_of()
    one, two = (next(task.batches(number, 0, 1)) for number in (0, 1))
    (_, first), (_, second) = gradients(task, one), gradients(task, two)
    expected = {name: (first[name] + second[name]) / (2 * BATCH) for name in first}
    norm = torch.nn.utils.get_total_norm(list(expected.values()))
    train(task_of(), steps(accumulation=2, num_steps=1), str(tmp_path), progress=False)
    assert read_lines(str(tmp_path / "metrics.jsonl"))[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_resume_in_the_second_stage_is_exact(tmp_path, monkeypatch):
    """Stopped after two of four steps; stage, clip order, Adam moments and EMA continue exactly."""

    monkeypatch.setattr(CaptionerTask, "validate", lambda self, model, step: {})

    def run(folder, num_steps):
        settings = TrainerSettings(
            **{**vars(steps(num_steps=num_steps)), "schedule": "constant", "checkpoint_every": 2}
        )
        stages = ("0.25:short=1", "0.75:descriptive=2,short=1,fields=1")
        task = CaptionerTask(
            CaptionerSettings(**{**vars(task_of().settings), "stages": stages, "micro_batch": 4}), num_batches=4
        )
        return train(task, settings, str(tmp_path / folder), progress=False)

    run("whole", 4)
    run("cut", 2)
    assert run("cut", 4).resumed_from == 2
    whole, cut = (load_captioner(str(tmp_path / name)) for name in ("whole", "cut"))
    assert whole.weights_hash == cut.weights_hash
    for ema in (False, True):
        (_, one), (_, two) = (step_folder.load_model(str(tmp_path / name), ema=ema) for name in ("whole", "cut"))
        assert all(torch.equal(one[name], two[name]) for name in one)
