"""Validation loss per bucket: over the clips of that bucket alone."""

import numpy as np
import pytest
import torch
from torch import nn

from packing.buckets import Bucket
from packing.plan.settings import PlanSettings
from tests.stand_ins.memory_source import MemorySource
from train.compressors.registry import load
from train.generator.bucket_loss import loss_per_bucket
from train.generator.settings import DitSettings
from train.generator.task import DitTask
from train.text.encoder import TextEncoder

BUCKETS = [Bucket(5, 16, 24, 8), Bucket(5, 16, 16, 8), Bucket(5, 64, 64, 8)]
SETTINGS = DitSettings(width=24, depth=1, num_heads=2)


class LengthTower:
    """One token per text: its length."""

    width = pooled_width = 2

    def encode(self, texts):
        tokens = torch.tensor([[1.0, float(len(text))] for text in texts])
        return tokens, torch.ones(len(texts), dtype=torch.int64), tokens


def make_task(scales=(1.0, 1.0)):
    """Ten clips of each of the first two buckets, and one of the third, which exceeds the capacity of a pack."""
    channels = load("patch:4").num_channels
    rng = np.random.default_rng(0)
    shapes = [(2, 2, 3)] * 10 + [(2, 2, 2)] * 10 + [(2, 8, 8)]
    scale_of = [scales[0]] * 10 + [scales[1]] * 10 + [1.0]
    latents = [rng.standard_normal((channels, *shape)).astype(np.float32) * s for shape, s in zip(shapes, scale_of)]
    source = MemorySource(latents, [f"clip-{i}" for i in range(21)], ["a caption"] * 21)
    encoder = TextEncoder(LengthTower(), spec="lengths", weights_hash="0")
    task = DitTask(source, SETTINGS, PlanSettings(capacity=40), compressor="patch:4", buckets=BUCKETS, encoder=encoder)
    torch.manual_seed(0)
    for parameter in task.model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.2)
    return task


def test_each_bucket_has_its_own_loss_and_number_of_clips():
    task = make_task()
    found = loss_per_bucket(task, task.model, num_clips=8)
    assert {name: num for name, (_, num) in found.items()} == {"5f-16x16-8fps": 8, "5f-16x24-8fps": 8}
    louder = make_task(scales=(3.0, 1.0))
    assert loss_per_bucket(louder, task.model, num_clips=8)["5f-16x16-8fps"] == found["5f-16x16-8fps"]
    assert (
        loss_per_bucket(louder, task.model, num_clips=8)["5f-16x24-8fps"][0]["loss"]
        > 2 * found["5f-16x24-8fps"][0]["loss"]
    )


def test_the_same_seed_selects_the_same_clips():
    task = make_task()
    assert loss_per_bucket(task, task.model, num_clips=4) == loss_per_bucket(task, task.model, num_clips=4)
    other = loss_per_bucket(task, task.model, num_clips=4, seed=1)
    assert other["5f-16x16-8fps"][0]["loss"] != pytest.approx(
        loss_per_bucket(task, task.model, num_clips=4)["5f-16x16-8fps"][0]["loss"], rel=1e-9
    )
