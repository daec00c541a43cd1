"""A short training of the generator on made-up latents, for the sections that train and sample."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from table import Check

from packing.buckets import Bucket
from packing.plan.settings import PlanSettings
from tests.stand_ins.memory_source import MemorySource
from train.engine.settings import TrainerSettings
from train.engine.trainer import TrainResult, train
from train.generator.settings import DitSettings
from train.generator.task import DitTask
from train.text.encoder import TextEncoder

COMPRESSOR = "patch:24,whitening=0.5"
CHANNELS = 24
COLOURS = ("red", "green", "blue", "yellow", "white", "black")


class HashedWords:
    """A text tower without weights: random numbers seeded by each word."""

    def __init__(self, width: int) -> None:
        self.width = self.pooled_width = width
        self.weights_hash = "hashed words"

    def encode(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        words = [text.split() for text in texts]
        tokens = [torch.stack([self._word(word) for word in of_text]) for of_text in words]
        return (
            torch.cat(tokens),
            torch.tensor([len(one) for one in words]),
            torch.stack([one.mean(0) for one in tokens]),
        )

    def _word(self, word: str) -> torch.Tensor:
        seed = int.from_bytes(word.encode()[:6].ljust(6), "little")
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))


def buckets(check: Check) -> list[Bucket]:
    if check.size.is_small:
        return [Bucket(9, 32, 32, 8), Bucket(1, 32, 48, 8)]
    return [Bucket(33, 256, 448, 8), Bucket(17, 128, 128, 8), Bucket(1, 256, 448, 8)]


def make_task(check: Check) -> DitTask:
    latents, captions, names = [], [], []
    sizes = buckets(check)
    rng = np.random.default_rng(0)
    for index in range(24):
        bucket = sizes[index % len(sizes)]
        shape = CHANNELS, 1 + (bucket.num_frames - 1) // 4, bucket.height_px // 8, bucket.width_px // 8
        level = COLOURS.index(COLOURS[index % len(COLOURS)]) - 2.5
        latents.append((0.3 * rng.standard_normal(shape) + 0.3 * level).astype(np.float32))
        captions.append(f"a {COLOURS[index % len(COLOURS)]} field")
        names.append(f"{index:016x}-0000000-{bucket.num_frames:07d}")
    small = check.size.is_small
    settings = DitSettings(
        width=64 if small else 768, depth=2 if small else 12, num_heads=2 if small else 12, patch=(1, 2, 2),
        conditions=("none=0.7", "first=0.3"), num_registers=2, validation_packs=1,
    )  # fmt: skip
    encoder = TextEncoder(HashedWords(16 if small else 512), spec="hashed words", weights_hash="hashed words")
    return DitTask(
        MemorySource(latents, names, captions),
        settings,
        PlanSettings(capacity=64 if small else 16_384, cost_model_width=settings.width),
        compressor=COMPRESSOR,
        buckets=sizes,
        encoder=encoder,
        device=str(check.device),
    )


def settings(check: Check, num_steps: int) -> TrainerSettings:
    return TrainerSettings(
        num_steps=num_steps, lr=2e-4, warmup_steps=2, schedule="constant", precision="bf16", log_every=1,
        checkpoint_every=10_000, device=str(check.device), accumulation=1,
    )  # fmt: skip


def train_for(check: Check, folder: str, num_steps: int) -> TrainResult:
    return train(make_task(check), settings(check, num_steps), folder, progress=False)


_folders: dict[int, tempfile.TemporaryDirectory[str]] = {}


def trained_folder(check: Check) -> str:
    """A training's folder, trained once for all sections."""
    if id(check) not in _folders:
        _folders[id(check)] = tempfile.TemporaryDirectory(prefix="gpu-check-")
        train_for(check, _folders[id(check)].name, check.size.num_steps)
    return _folders[id(check)].name


@contextmanager
def own_text_encoder(check: Check) -> Iterator[None]:
    """Context in which a checkpoint's text encoder is the made-up one."""
    encoder = make_task(check).encoder
    with mock.patch("train.text.encoder.load", return_value=encoder):
        yield


def new_folder() -> str:
    return tempfile.mkdtemp(prefix="gpu-check-")
