"""Two gloo ranks: the gradient of an epoch equals that of one rank with everything in one pack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from packing.buckets import Bucket
from packing.plan.settings import PlanSettings
from tests.stand_ins.memory_source import MemorySource
from tests.stand_ins.ranks import exit_codes, start_ranks
from train.backbones.diffit_pixels import DiffitPixelsSettings
from train.diffusion.process import DiffusionSettings
from train.generator.settings import DitSettings
from train.generator.task import DitTask
from train.parallel import process_group as distributed
from train.parallel.collectives import sum_gradients
from train.text.encoder import TextEncoder

BUCKETS = (Bucket(5, 16, 16, 8), Bucket(1, 16, 24, 8), Bucket(9, 8, 24, 8))
LEARNED = {
    "flow": {"diffusion": DiffusionSettings(shift_tokens=4), "num_registers": 2},
    "v": {
        "diffusion": DiffusionSettings(schedule="cosine", prediction="v", snr_gamma=5.0, shift_rule="area_time"),
        "loss_norm": "tokens^0.5",
    },
    "epsilon": {
        "diffusion": DiffusionSettings(schedule="linear", prediction="epsilon", discrete=True),
        "loss_norm": "token",
    },
    "diffit": {"backbone": "diffit"},
    "diffit_pixels": {
        "backbone": "diffit_pixels",
        "depth": 1,
        "diffit_pixels": DiffitPixelsSettings(stages=2, window=2),
    },
    "mdt": {"backbone": "mdt", "depth": 4, "conditions": ("none=0.5", "first=0.5")},
    "separable": {"backbone": "separable", "conditions": ("none=0.5", "first=0.5")},
    "uvit": {"backbone": "uvit", "num_registers": 1, "conditions": ("none=0.5", "first=0.5")},
}


class NumberTower:
    """One token per text, from its number."""

    width = pooled_width = 4

    def encode(self, texts):
        tokens = torch.tensor([[float(text) / 7, 1.0, float(text) % 2, 0.0] for text in texts])
        return tokens, torch.ones(len(texts), dtype=torch.int64), tokens


def make_task(capacity: int, **changes) -> DitTask:
    latents = []
    for index in range(11):
        bucket = BUCKETS[index % 3]
        shape = (4, 1 + (bucket.num_frames - 1) // 4, bucket.height_px // 8, bucket.width_px // 8)
        latents.append(np.random.default_rng(index).standard_normal(shape).astype(np.float32))
    names = [str(index) for index in range(11)]
    task = DitTask(
        MemorySource(latents, names, names),
        DitSettings(**({"width": 24, "depth": 2, "num_heads": 2, "caption_dropout": 0.25} | changes)),
        PlanSettings(capacity=capacity),
        compressor="patch:4",
        buckets=BUCKETS,
        encoder=TextEncoder(NumberTower(), spec="numbers", weights_hash="0"),
    )
    torch.manual_seed(1)
    for parameter in task.model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.2)
    return task


def epoch_gradient(capacity: int, **changes) -> dict[str, torch.Tensor]:
    """As in the trainer: sums over this rank's packs, then over ranks, divided by the total weight."""
    task = make_task(capacity, **changes)
    weight = torch.zeros(())
    for batch in task.batches(0, distributed.rank(), distributed.num_ranks()):
        if batch.epoch > 0:
            break
        parts = task.loss(batch, step=0, seed=0)
        parts.loss_sum.backward()
        weight += parts.weight
    sum_gradients(list(task.model.parameters()))
    if dist.is_initialized():
        dist.all_reduce(weight)
    return {name: parameter.grad / weight for name, parameter in task.model.named_parameters()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Gradients of two ranks, one per file."""
    folder = tmp_path_factory.mktemp("ranks")
    assert exit_codes(start_ranks(one_rank, str(folder))) == [0, 0]
    return folder


@pytest.mark.parametrize("name", LEARNED)
def test_ranks_and_accumulation_give_the_gradient_of_one_pack(folder, name):
    whole = epoch_gradient(500, **LEARNED[name])
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    assert largest > 0.01, "nothing to compare"
    for capacity in (12, 24):
        found = load_file(folder / f"{name}-{capacity}.safetensors")
        assert found.keys() == whole.keys()
        for parameter, expected in whole.items():
            difference = (found[parameter] - expected).abs().max()
            # some are 0 but for rounding: the bias of the keys shifts all scores of a query alike
            assert difference <= 1e-5 * expected.abs().max() + 1e-7 * largest, (capacity, parameter)


def one_rank(folder: str) -> None:
    with distributed.process_group("cpu"):
        for name, changes in LEARNED.items():
            for capacity in (12, 24):
                found = epoch_gradient(capacity, **changes)
                if distributed.rank() == 0:
                    save_file(found, f"{folder}/{name}-{capacity}.safetensors")
