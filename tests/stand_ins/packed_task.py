"""`DitTask` on a few latents in memory, for tests with several ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from packing.buckets import Bucket
from packing.plan.settings import PlanSettings
from tests.stand_ins.memory_source import MemorySource
from train.diffusion.process import DiffusionSettings
from train.engine.settings import TrainerSettings
from train.engine.trainer import TrainResult, train
from train.generator.settings import DitSettings
from train.generator.task import DitTask
from train.parallel import process_group as distributed
from train.text.encoder import TextEncoder

BUCKETS = (Bucket(5, 16, 16, 8), Bucket(1, 16, 24, 8))
NUM_CHANNELS = 8
DIFFUSION = DiffusionSettings(shift_tokens=4)


class WordTower:
    """One token per word of the caption, made of its letters."""

    width = pooled_width = 4

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        words = [[[float(ord(c)) / 100 for c in word[:4].ljust(4)] for word in text.split()] for text in texts]
        tokens = torch.tensor([word for text in words for word in text])
        pooled = torch.stack([torch.tensor(text).mean(0) for text in words])
        return tokens, torch.tensor([len(text) for text in words]), pooled


def packed_task(**dit: Any) -> DitTask:
    """Ten clips of two sizes, captions of several lengths, packs of one to four clips, no zero weights.

    Args:
        dit: settings of the transformer that differ.
    """
    rng = np.random.default_rng(0)
    latents, captions = [], []
    for index in range(10):
        bucket = BUCKETS[index % 3 == 2]
        shape = (1 + (bucket.num_frames - 1) // 4, bucket.height_px // 8, bucket.width_px // 8)
        latents.append(rng.normal(size=(NUM_CHANNELS, *shape)).astype(np.float32))
        captions.append(" ".join(["tree", "blue", "hill"][: 1 + index % 3]))
    task = DitTask(
        MemorySource(latents, [f"clip-{index}" for index in range(10)], captions),
        DitSettings(
            **({"width": 24, "depth": 2, "num_heads": 2, "caption_dropout": 0.25, "diffusion": DIFFUSION} | dit)
        ),
        PlanSettings(capacity=20),
        compressor=f"patch:{NUM_CHANNELS}",
        buckets=BUCKETS,
        encoder=TextEncoder(WordTower(), spec="words", weights_hash="0"),
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in task.model.parameters():
        if not parameter.detach().any():
            parameter.data.normal_(std=0.2, generator=generator)
    return task


def train_packed(folder: str, changes: dict[str, Any], dit: dict[str, Any] | None = None) -> TrainResult:
    settings = {
        "num_steps": 6, "accumulation": 2, "lr": 1e-3, "warmup_steps": 2, "schedule": "constant",
        "checkpoint_every": 2, "log_every": 1, "ema_decay": 0.9, "device": "cpu",
    }  # fmt: skip
    return train(packed_task(**(dit or {})), TrainerSettings(**(settings | changes)), folder, progress=False)


def train_several_packed(runs: list[tuple[Any, ...]]) -> None:
    """`train_packed` several times in one process group."""
    with distributed.process_group("cpu"):
        for arguments in runs:
            train_packed(*arguments)
