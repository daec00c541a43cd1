"""Validation loss per bucket, with and without captions.

loss_per_bucket(task, model, num_clips=32)     # {"17f-64x64-8fps": ({"loss": 0.5, ...}, 32), ...}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from packing.buckets import bucket_name
from packing.grid import token_shape_of_latent
from packing.loader.batch import pack
from train.generator.batch import DitBatch
from train.generator.task import DitTask


def loss_per_bucket(
    task: DitTask, model: nn.Module, *, num_clips: int, seed: int = 0
) -> dict[str, tuple[dict[str, float], int]]:
    """Bucket -> (`DitTask.validation_loss`, number of clips), over at most `num_clips` random clips of each bucket.

    Buckets whose clips exceed the plan's capacity are skipped, as in training.
    """
    found = {}
    for bucket in sorted(task.buckets, key=lambda b: (b.height_px * b.width_px, b.num_frames, bucket_name(b))):
        shape = task.grid.latent_shape(bucket.num_frames, bucket.height_px, bucket.width_px)
        num_tokens = int(np.prod(token_shape_of_latent(shape, task.grid.patch)))
        in_bucket = [i for i, other in enumerate(task.source.latent_shapes) if tuple(other) == shape]
        if not in_bucket or num_tokens > task.plan.capacity:
            continue
        chosen = np.random.default_rng(seed).permutation(in_bucket)[:num_clips].tolist()
        per_pack = task.plan.capacity // num_tokens
        packs = [chosen[start : start + per_pack] for start in range(0, len(chosen), per_pack)]
        found[bucket_name(bucket)] = (task.validation_loss(model, _batches(task, packs)), len(chosen))
    return found


def _batches(task: DitTask, packs: Sequence[Sequence[int]]) -> Iterator[DitBatch]:
    source = task.source
    for indices in packs:
        batch = pack(
            [torch.from_numpy(source.read(index)) for index in indices],
            clip_ids=[source.clip_ids[index] for index in indices],
            captions=[source.captions[index] for index in indices],
            capacity=task.plan.capacity,
            patch=task.grid.patch,
            dtype=torch.float32,
        )
        yield DitBatch.from_packed(batch, task.encoder)
