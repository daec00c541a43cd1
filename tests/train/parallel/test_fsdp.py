"""FSDP2 on two gloo ranks against one rank: the same training, and checkpoints that either can resume from."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recaption.errors import UsageError
from tests.stand_ins.block_task import (
    BlockTask,
    settings,
    train_blocks,
    train_several,
    train_until_killed,
    train_until_killed_in_save,
)
from tests.stand_ins.packed_task import train_packed, train_several_packed
from tests.stand_ins.pretend_cuda import pretend_cuda
from tests.stand_ins.ranks import exit_codes, start_ranks
from train.backbones.diffit import DiffitSettings
from train.backbones.diffit_pixels import DiffitPixelsSettings
from train.backbones.mdt import MdtSettings
from train.backbones.registry import BACKBONES
from train.backbones.temporal import TemporalSettings
from train.backbones.uvit import UvitSettings
from train.engine.metrics import read_lines
from train.engine.trainer import train
from train.parallel import fsdp

OTHER_BACKBONES: dict[str, dict[str, object]] = {
    "temporal": {"temporal": TemporalSettings(freeze_base=False)},
    "uvit": {"num_registers": 1, "uvit": UvitSettings(conv=True)},
    "mdt": {"depth": 4, "mdt": MdtSettings(relative_bias=(1, 2, 2)), "conditions": ("none=0.5", "first=0.5")},
    "diffit": {"diffit": DiffitSettings(relative_bias=(1, 2, 2)), "absolute_positions": True},
    "separable": {"absolute_positions": True, "conditions": ("none=0.5", "first=0.5")},
    "diffit_pixels": {"depth": 1, "diffit_pixels": DiffitPixelsSettings(stages=2, window=2)},
}
"""Backbones beside `dit`, with settings that use all of their parts."""
CLOCKS = ("seconds", "tokens_per_second", "data_wait_share", "tflops_per_second")


def assert_same_training(one: Path, other: Path, step: int = 12, atol: float = 1e-6) -> None:
    """Weights, EMA, Adam moments and all logged numbers except times are equal."""
    for name in ("model", "ema", "optimizer"):
        files = [load_file(run / f"checkpoints/step-{step:06d}/{name}.safetensors") for run in (one, other)]
        assert files[0].keys() == files[1].keys()
        for key in files[0].keys() - {"num_calls"}:  # counted per rank
            torch.testing.assert_close(
                files[0][key], files[1][key], rtol=1e-5, atol=atol, msg=lambda m, key=key: f"{key}: {m}"
            )
    lines = [read_lines(str(run / "metrics.jsonl")) for run in (one, other)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for here, there in zip(*lines):
        for key in here.keys() - set(CLOCKS):
            actual, expected = (math.nan if line[key] is None else line[key] for line in (there, here))
            assert actual == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True), f"{key} of step {here['step']}"


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory) -> Path:
    """The reference: 12 uninterrupted steps of four batches."""
    folder = tmp_path_factory.mktemp("one_rank")
    train_blocks(str(folder / "whole"), {})
    return folder


def test_two_sharded_ranks_skip_the_steps_that_one_rank_skips_and_train_its_model(tmp_path):
    train_blocks(str(tmp_path / "one"), {}, bad_batches=(9, 10, 30))
    run = (str(tmp_path / "fsdp"), {"parallel": "fsdp", "accumulation": 2}, {"bad_batches": (9, 10, 30)})
    assert exit_codes(start_ranks(train_several, [run])) == [0, 0]
    assert_same_training(tmp_path / "one", tmp_path / "fsdp")
    assert read_lines(str(tmp_path / "fsdp" / "metrics.jsonl"))[-1]["skipped_steps"] == 2
    assert not list(tmp_path.glob("*/checkpoints/*.tmp"))


def test_activation_checkpointing_saves_fewer_tensors_and_changes_no_gradient(tmp_path):
    def num_saved_and_gradients(activation_checkpointing: bool) -> tuple[int, list[torch.Tensor]]:
        torch.manual_seed(0)
        model = torch.nn.Module()
        model.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Tanh()) for _ in range(3)
        )
        if activation_checkpointing:
            fsdp.apply_activation_checkpointing(model, name="x")
            fsdp.apply_activation_checkpointing(model, name="x")
        saved = []
        x = torch.ones(50, 8)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            for block in model.blocks:
                x = block(x)
            num_saved = len(saved)
            x.sum().backward()
        return num_saved, [parameter.grad for parameter in model.parameters()]

    plain, checkpointed = num_saved_and_gradients(False), num_saved_and_gradients(True)
    assert checkpointed[0] < plain[0]
    for one, other in zip(plain[1], checkpointed[1], strict=True):
        assert torch.equal(one, other)
    with pytest.raises(UsageError, match="the x model has no `blocks` to checkpoint"):
        fsdp.apply_activation_checkpointing(torch.nn.Linear(2, 2), name="x")


@pytest.mark.parametrize("parallel", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_killed_on_one_then_on_two_ranks_ends_as_if_never_killed(one_rank, tmp_path, parallel):
    """A save has finished when the next one begins, so the final resume is from a checkpoint that two ranks wrote."""
    folder, rng = tmp_path / "killed", random.Random()
    deaths = rng.choice((5, 6)), rng.choice((10, 11))
    one = start_ranks(train_until_killed, str(folder), {}, 4 * deaths[0] + rng.randrange(4), num_ranks=1)
    assert exit_codes(one) == [-9]
    two = start_ranks(train_until_killed, str(folder), {"parallel": parallel}, 4 * deaths[1] + 1)
    two[1].join(280)
    assert two[1].exitcode == -9
    two[0].kill()
    two[0].join()
    result = train_blocks(str(folder), {})
    assert result.resumed_from in (8, 10), deaths
    assert_same_training(one_rank / "whole", folder)


def test_rank_killed_while_writing_its_shards_leaves_the_previous_checkpoint(one_rank, tmp_path):
    changes = {"parallel": "fsdp", "accumulation": 2}
    ranks = start_ranks(train_until_killed_in_save, str(tmp_path), changes, 8)
    ranks[1].join(280)
    assert ranks[1].exitcode == -9
    ranks[0].kill()
    ranks[0].join()
    assert not (tmp_path / "checkpoints" / "step-000008").exists()
    assert train_blocks(str(tmp_path), {}).resumed_from == 6
    assert_same_training(one_rank / "whole", tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))


def test_packs_train_the_same_transformer_however_they_are_distributed(tmp_path):
    """One rank with two packs a step; two ranks with one each: DDP, FSDP, checkpointed; a run that changes its ranks."""
    train_packed(str(tmp_path / "one"), {})
    train_packed(str(tmp_path / "moved"), {"num_steps": 2})
    half = {"accumulation": 1}
    runs = [
        ("ddp", half | {"parallel": "ddp"}),
        ("fsdp", half | {"parallel": "fsdp"}),
        ("moved", half | {"parallel": "fsdp", "num_steps": 4, "activation_checkpointing": True}),
        ("bf16", half | {"parallel": "fsdp", "precision": "bf16"}),
    ]
    assert exit_codes(start_ranks(train_several_packed, [(str(tmp_path / name), how) for name, how in runs])) == [0, 0]
    assert train_packed(str(tmp_path / "moved"), {}).resumed_from == 4
    for name in ("ddp", "fsdp", "moved"):
        assert_same_training(tmp_path / "one", tmp_path / name, step=6)
    one, rounded = (read_lines(str(tmp_path / name / "metrics.jsonl")) for name in ("one", "bf16"))
    assert [line["loss"] for line in rounded] == pytest.approx([line["loss"] for line in one], rel=0.02)
    weights = load_file(tmp_path / "bf16" / "checkpoints" / "step-000006" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_each_other_backbone_trains_the_same_on_two_sharded_checkpointed_ranks(tmp_path):
    assert set(OTHER_BACKBONES) == set(BACKBONES) - {"dit", "temporal-unet"}, "a U-Net is read from a folder"
    runs = []
    for name, dit in OTHER_BACKBONES.items():
        train_packed(str(tmp_path / name), {"num_steps": 2}, {"backbone": name} | dit)
        how = {"num_steps": 2, "accumulation": 1, "parallel": "fsdp", "activation_checkpointing": True}
        runs.append((str(tmp_path / f"{name} sharded"), how, {"backbone": name} | dit))
    assert exit_codes(start_ranks(train_several_packed, runs)) == [0, 0]
    for name in OTHER_BACKBONES:
        # Adam makes steps of 1e-3 of gradients that are all rounding, too
        assert_same_training(tmp_path / name, tmp_path / f"{name} sharded", step=2, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at every tensor that goes in
@pytest.mark.parametrize("name", OTHER_BACKBONES)
def test_compiled_blocks_of_each_other_backbone_train_the_same(tmp_path, name):
    dit = {"backbone": name} | OTHER_BACKBONES[name]
    train_packed(str(tmp_path / "plain"), {"num_steps": 2}, dit)
    train_packed(str(tmp_path / "compiled"), {"num_steps": 2, "compile": True}, dit)
    # a tenth of a step: Adam makes whole ones of gradients that are nearly all rounding
    assert_same_training(tmp_path / "plain", tmp_path / "compiled", step=2, atol=1e-4)


@pytest.mark.slow
def test_compiled_blocks_train_the_same_transformer_with_ddp_fsdp_and_checkpointing(tmp_path):
    """By inductor, as on a GPU; under FSDP2 a block is compiled inside the hooks that gather its weights."""
    train_packed(str(tmp_path / "one"), {})
    how = {"accumulation": 1, "compile": True}
    runs = [
        (str(tmp_path / "ddp"), how | {"parallel": "ddp"}),
        (str(tmp_path / "fsdp"), how | {"parallel": "fsdp"}),
        (str(tmp_path / "checkpointed"), how | {"parallel": "fsdp", "activation_checkpointing": True}),
    ]
    assert exit_codes(start_ranks(train_several_packed, runs), timeout=580) == [0, 0]
    for folder, _ in runs:
        assert_same_training(tmp_path / "one", Path(folder), step=6)


def test_models_that_cannot_be_sharded_are_refused(tmp_path):
    with pytest.raises(UsageError, match="shards a model over ranks, and there is only one"):
        train(BlockTask(), settings(parallel="fsdp"), str(tmp_path), progress=False)
    with pytest.raises(UsageError, match=r"there are: auto, ddp, fsdp"):
        train(BlockTask(), settings(parallel="zero"), str(tmp_path), progress=False)


def test_a_model_is_sharded_by_setting_or_if_it_would_fill_the_device(monkeypatch):
    def chosen(parallel: str, model: torch.nn.Module, state_bytes: int = 10) -> bool:
        return fsdp.should_shard(parallel, model, name="x", state_bytes=state_bytes, device_bytes=100)

    with_blocks, without = BlockTask().model, torch.nn.Linear(2, 2)
    assert not chosen("auto", with_blocks, state_bytes=90), "one rank"
    monkeypatch.setattr(fsdp.process_group, "num_ranks", lambda: 2)
    assert chosen("auto", with_blocks, state_bytes=90)
    assert not chosen("auto", with_blocks)
    assert not chosen("ddp", with_blocks, state_bytes=90)
    assert chosen("fsdp", with_blocks)
    assert not chosen("auto", without, state_bytes=90)
    with pytest.raises(UsageError, match="the x model has no `blocks`"):
        chosen("fsdp", without)


def test_weights_that_lie_on_a_gpu_already_are_broadcast_too(monkeypatch):
    """In the device group: gloo's group of the control messages takes CPU tensors only."""
    groups = []

    class Stop(Exception):
        pass

    def stop(*args, **kwargs):
        raise Stop

    monkeypatch.setattr(fsdp, "broadcast_module", lambda model, group: groups.append(group))
    monkeypatch.setattr(fsdp, "init_device_mesh", stop)
    for on_gpu in (False, True):
        with pretend_cuda():
            model = BlockTask().model.to("cuda" if on_gpu else "cpu")
            with pytest.raises(Stop):
                fsdp.shard(model, device=torch.device("cuda"), precision="fp32", group="gloo")
    assert groups == ["gloo", None]
