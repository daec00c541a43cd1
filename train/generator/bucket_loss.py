"""The flow loss bucket by bucket: which sizes a model has learned, and whether it listens to its captions there.

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
    """`DitTask.loss_on` at most `num_clips` clips of each bucket, drawn by `seed`, and how many they were.

    Clips longer than the plan's capacity are left out, as in training.
    """
    found = {}
    for bucket in sorted(task.buckets, key=lambda b: (b.height_px * b.width_px, b.num_frames, bucket_name(b))):
        shape = task.grid.latent_shape(bucket.num_frames, bucket.height_px, bucket.width_px)
        num_tokens = int(np.prod(token_shape_of_latent(shape, task.grid.patch)))
        mine = [i for i, other in enumerate(task.source.latent_shapes) if tuple(other) == shape]
        if not mine or num_tokens > task.plan.capacity:
            continue
        drawn = np.random.default_rng(seed).permutation(mine)[:num_clips].tolist()
        per_row = task.plan.capacity // num_tokens
        rows = [drawn[start : start + per_row] for start in range(0, len(drawn), per_row)]
        found[bucket_name(bucket)] = (task.loss_on(model, _batches(task, rows)), len(drawn))
    return found


def _batches(task: DitTask, rows: Sequence[Sequence[int]]) -> Iterator[DitBatch]:
    source = task.source
    for row in rows:
        batch = pack(
            [torch.from_numpy(source.read(index)) for index in row],
            clip_ids=[source.clip_ids[index] for index in row],
            captions=[source.captions[index] for index in row],
            capacity=task.plan.capacity,
            patch=task.grid.patch,
            dtype=torch.float32,
        )
        yield DitBatch.of(batch, task.encoder)
