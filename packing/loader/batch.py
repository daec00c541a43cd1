"""One pack as tensors: tokens of several clips end to end, with everything that keeps them apart.

    batch = pack([latent_a, latent_b], clip_ids=("a", "b"), captions=("...", "..."), capacity=4096, patch=(1, 2, 2))
    batch.tokens_LD, batch.position_L3, batch.cu_seqlens          # what the transformer takes
    unpack(batch)                                                 # [latent_a, latent_b], bit for bit
    unpack(batch, velocity_LD)                                    # the same way back for what the transformer gives

Shapes: C channels, t h w of a latent, L tokens of the pack, D channels of a token (C x patch), S samples of the pack.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from packing.grid import Shape3, patch_shape, positions
from recaption.errors import SampleTooLongError, UsageError


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One pack. Padding, if there is any, comes last and belongs to no segment."""

    tokens_LD: Tensor
    """Patchified latents, sample after sample."""
    position_L3: Tensor
    """int64 (frame, row, column) of each token on its own whole sample's grid; 0 in padding."""
    segment_L: Tensor
    """int64: 1 for the first sample, 2 for the second, ...; 0 = padding."""
    cu_seqlens: Tensor
    """int32 (S+1): sample s is tokens_LD[cu_seqlens[s] : cu_seqlens[s+1]]; the last entry counts the real tokens."""
    grid_S3: Tensor
    """int64 tokens per sample along (frames, rows, columns), before any were dropped."""
    token_shapes: tuple[Shape3, ...]
    """The same as plain integers, for code that must not wait for the device."""
    clip_ids: tuple[str, ...]
    captions: tuple[str, ...]
    capacity: int
    """Most tokens a pack of this plan holds."""
    patch: Shape3 = (1, 1, 1)
    """Latent (frames, rows, columns) per token."""
    lengths: tuple[int, ...]
    """Tokens of each sample in this pack, the kept ones."""
    kept_L: Tensor | None = None
    """int64: the place of each token among all of its sample's; None where no token was dropped."""
    first_frames: tuple[int, ...]
    """Latent frame of the whole sample that each begins with: above 0 in later excerpts (packing/mixture/segments.py)."""
    draw_ids: tuple[str, ...]
    """Names for what chance decides: the clip_id, with #n where the epoch shows the clip for the n-th further time."""
    epoch: int = 0
    """Key, with the seed and the draw_id, of every random draw for a sample."""
    row: int = 0
    """Place in the endless sequence of rows that all ranks share."""

    @property
    def num_samples(self) -> int:
        return len(self.clip_ids)

    @property
    def num_tokens(self) -> int:
        """Real tokens, without padding. Known without looking at the device."""
        return sum(self.lengths)

    @property
    def fill(self) -> float:
        return self.num_tokens / self.capacity

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedBatch:
        """The same pack with its tensors on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """The same pack in memory that a GPU can fetch from by itself; a DataLoader asks for it by this name."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changed = {name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **changed)


_UNITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes: a type as wide as the columns of a patch, so that they move as one."""


def patchify(latent_CTHW: Tensor, patch: Shape3) -> Tensor:
    """tokens_LD of one latent: L over (frame, row, column), columns fastest; D over (channel, place in the patch).

    Whole rows are gathered first and turned second: 8 times as fast as one permuted copy, which moves single values.

    Raises:
        UsageError: the latent does not divide into patches.
    """
    channels, *latent_shape = latent_CTHW.shape
    frames, rows, columns = patch_shape((latent_shape[0], latent_shape[1], latent_shape[2]), patch)
    unit = _UNITS.get(patch[2] * latent_CTHW.element_size())
    if unit is None or latent_CTHW.is_complex() or not latent_CTHW.is_contiguous():
        blocks = latent_CTHW.reshape(channels, frames, patch[0], rows, patch[1], columns, patch[2])
        return blocks.permute(1, 3, 5, 0, 2, 4, 6).reshape(frames * rows * columns, -1)
    blocks = latent_CTHW.view(unit).reshape(channels, frames, patch[0], rows, patch[1], columns)
    lines = blocks.permute(1, 3, 0, 2, 4, 5).reshape(frames * rows, -1, columns)
    return lines.transpose(1, 2).contiguous().view(latent_CTHW.dtype).reshape(frames * rows * columns, -1)


def unpatchify(tokens_LD: Tensor, token_shape: Shape3, patch: Shape3) -> Tensor:
    """latent_CTHW: the inverse of `patchify`. `token_shape` counts tokens along (frames, rows, columns)."""
    frames, rows, columns = token_shape
    blocks = tokens_LD.reshape(frames, rows, columns, -1, *patch).permute(3, 0, 4, 1, 5, 2, 6)
    return blocks.reshape(blocks.shape[0], frames * patch[0], rows * patch[1], columns * patch[2])


def pack(
    latents: Sequence[Tensor],
    *,
    clip_ids: Sequence[str],
    captions: Sequence[str],
    capacity: int,
    patch: Shape3 = (1, 1, 1),
    pad_to_capacity: bool = False,
    dtype: torch.dtype | None = None,
    epoch: int = 0,
    row: int = 0,
    first_frames: Sequence[int] = (),
    kept: Sequence[np.ndarray | None] = (),
    draw_ids: Sequence[str] = (),
) -> PackedBatch:
    """Lay latents (C, t, h, w) of any sizes end to end.

    Args:
        pad_to_capacity: zeros after the last sample up to `capacity`, for kernels that need one length; by default
            there is no padding to compute.
        dtype: of the tokens; default: that of the latents.
        first_frames: latent frame of its whole sample that each latent begins with; default: 0.
        kept: which tokens of each latent to keep, ascending; None, and by default: all.
        draw_ids: default: the clip_ids.

    Raises:
        SampleTooLongError: together they exceed `capacity`.
        UsageError: no latents, or not one clip_id and caption for each.
    """
    if not latents or not len(latents) == len(clip_ids) == len(captions):
        raise UsageError(f"{len(latents)} latents, {len(clip_ids)} clip ids and {len(captions)} captions make no pack")
    shapes = [patch_shape((x.shape[1], x.shape[2], x.shape[3]), patch) for x in latents]
    first_frames = tuple(first_frames) or (0,) * len(latents)
    which = [None if places is None else torch.from_numpy(places) for places in kept or [None] * len(latents)]
    lengths = [math.prod(shape) if places is None else len(places) for shape, places in zip(shapes, which, strict=True)]
    num_tokens = sum(lengths)
    if num_tokens > capacity:
        raise SampleTooLongError(f"{num_tokens} tokens of {', '.join(clip_ids)} exceed the capacity of {capacity}")
    # zeros after the last sample where a pack is padded; every row before it is written below
    size = capacity if pad_to_capacity else num_tokens
    tokens_LD = torch.zeros(size, latents[0].shape[0] * math.prod(patch), dtype=dtype or latents[0].dtype)
    position_L3 = torch.zeros(size, 3, dtype=torch.int64)
    segment_L = torch.zeros(size, dtype=torch.int64)
    kept_L = torch.zeros(size, dtype=torch.int64) if any(places is not None for places in which) else None
    cu_seqlens = [0, *itertools.accumulate(lengths)]
    for number, (latent, shape, places) in enumerate(zip(latents, shapes, which)):
        span = slice(cu_seqlens[number], cu_seqlens[number + 1])
        tokens, position = patchify(latent, patch), _positions(shape)
        tokens_LD[span] = tokens if places is None else tokens[places]
        position_L3[span] = position if places is None else position[places]
        if first_frames[number]:
            position_L3[span, 0] += first_frames[number] // patch[0]
        segment_L[span] = number + 1
        if kept_L is not None:
            kept_L[span] = torch.arange(lengths[number]) if places is None else places
    return PackedBatch(
        tokens_LD=tokens_LD,
        position_L3=position_L3,
        segment_L=segment_L,
        cu_seqlens=torch.tensor(cu_seqlens, dtype=torch.int32),
        grid_S3=torch.tensor(shapes, dtype=torch.int64),
        token_shapes=tuple(shapes),
        clip_ids=tuple(clip_ids),
        captions=tuple(captions),
        capacity=capacity,
        patch=patch,
        lengths=tuple(lengths),
        kept_L=kept_L,
        first_frames=first_frames,
        draw_ids=tuple(draw_ids) or tuple(clip_ids),
        epoch=epoch,
        row=row,
    )


@lru_cache(maxsize=4096)
def _positions(shape: Shape3) -> Tensor:
    return torch.from_numpy(positions(shape))


def draw_id(clip_id: str, number: int) -> str:
    """Name of the `number`-th excerpt of a clip in an epoch, from 0."""
    return f"{clip_id}#{number}" if number else clip_id


def unpack(batch: PackedBatch, tokens_LD: Tensor | None = None) -> list[Tensor]:
    """Latents (C, t, h, w) of a pack, or of other tokens laid out like it (a predicted velocity, with any C).

    Raises:
        UsageError: tokens were dropped from this pack, so that its latents have holes.
    """
    if batch.lengths != tuple(math.prod(shape) for shape in batch.token_shapes):
        raise UsageError(
            "tokens were dropped from this pack (--plan.keep), it does not unpack into latents; "
            "batch.kept_L says where in its sample each token belongs"
        )
    tokens_LD = batch.tokens_LD if tokens_LD is None else tokens_LD
    pieces = tokens_LD[: batch.num_tokens].split(list(batch.lengths))
    return [unpatchify(piece, shape, batch.patch) for piece, shape in zip(pieces, batch.token_shapes)]
