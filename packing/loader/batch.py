"""One pack as tensors: tokens of several clips concatenated, with their positions, segment ids and `cu_seqlens`.

    batch = pack([latent_a, latent_b], clip_ids=("a", "b"), captions=("...", "..."), capacity=4096, patch=(1, 2, 2))
    batch.tokens_LD, batch.position_L3, batch.cu_seqlens          # what the transformer takes
    unpack(batch)                                                 # [latent_a, latent_b], bit for bit
    unpack(batch, velocity_LD)                                    # the same for a prediction of the transformer

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

from packing.grid import Shape3, positions, token_shape_of_latent
from recaption.errors import SampleTooLongError, UsageError


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One pack. Padding, if there is any, comes last and has segment id 0."""

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
    """Tokens of each sample in this pack, without dropped ones."""
    kept_token_index_L: Tensor | None = None
    """int64: index of each token among all tokens of its sample; None where no token was dropped."""
    first_frames: tuple[int, ...]
    """Latent frame of the whole sample that each begins with: above 0 where it is cropped (packing/mixture/segments.py)."""
    rng_keys: tuple[str, ...]
    """Seed, with the epoch and the run's seed, of all random numbers for a sample: `rng_key(clip_id, occurrence)`."""
    epoch: int = 0
    pack_index: int = 0
    """Index in the endless sequence of packs that all ranks share."""

    @property
    def num_samples(self) -> int:
        return len(self.clip_ids)

    @property
    def num_tokens(self) -> int:
        """Real tokens, without padding. Needs no host sync."""
        return sum(self.lengths)

    @property
    def fill(self) -> float:
        return self.num_tokens / self.capacity

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedBatch:
        """The same pack with its tensors on `device`."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """The same pack in page-locked memory. A DataLoader with pin_memory=True calls this method."""
        return self._map_tensors(Tensor.pin_memory)

    def _map_tensors(self, function: Callable[[Tensor], Tensor]) -> PackedBatch:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        mapped = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **mapped)


_INT_OF_BYTES = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""An integer type as wide as the columns of a patch, so that these are copied as one value."""


def patchify(latent_CTHW: Tensor, patch: Shape3) -> Tensor:
    """tokens_LD of one latent: L over (frame, row, column), columns fastest; D over (channel, position in the patch).

    Copies whole rows, then transposes: 8 times as fast as one permuted copy, which moves single values.

    Raises:
        UsageError: the latent does not divide into patches.
    """
    channels, *latent_shape = latent_CTHW.shape
    frames, rows, columns = token_shape_of_latent((latent_shape[0], latent_shape[1], latent_shape[2]), patch)
    unit = _INT_OF_BYTES.get(patch[2] * latent_CTHW.element_size())
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
    pack_index: int = 0,
    first_frames: Sequence[int] = (),
    kept_token_indices: Sequence[np.ndarray | None] = (),
    rng_keys: Sequence[str] = (),
) -> PackedBatch:
    """Pack latents (C, t, h, w) of any sizes into one sequence of tokens.

    Args:
        pad_to_capacity: append zeros up to `capacity`, for kernels that need one length; by default there is no padding.
        dtype: of the tokens; default: that of the latents.
        first_frames: latent frame of its whole sample that each latent begins with; default: 0.
        kept_token_indices: which tokens of each latent to keep, ascending; None, and by default: all.
        rng_keys: default: the clip_ids.

    Raises:
        SampleTooLongError: together they exceed `capacity`.
        UsageError: no latents, or not one clip_id and caption for each.
    """
    if not latents or not len(latents) == len(clip_ids) == len(captions):
        raise UsageError(f"{len(latents)} latents, {len(clip_ids)} clip ids and {len(captions)} captions make no pack")
    first_frames = tuple(first_frames) or (0,) * len(latents)
    kept = [None if x is None else torch.from_numpy(x) for x in kept_token_indices or [None] * len(latents)]
    layout = _Layout.of(latents, patch, kept)
    if layout.num_tokens > capacity:
        raise SampleTooLongError(
            f"{layout.num_tokens} tokens of {', '.join(clip_ids)} exceed the capacity of {capacity}"
        )
    size = capacity if pad_to_capacity else layout.num_tokens
    return PackedBatch(
        tokens_LD=_pack_tokens(latents, layout, patch, size, dtype or latents[0].dtype),
        position_L3=_pack_positions(layout, size, [frame // patch[0] for frame in first_frames]),
        segment_L=_pack_segment_ids(layout, size),
        cu_seqlens=torch.tensor(layout.cu_seqlens, dtype=torch.int32),
        grid_S3=torch.tensor(layout.token_shapes, dtype=torch.int64),
        token_shapes=tuple(layout.token_shapes),
        clip_ids=tuple(clip_ids),
        captions=tuple(captions),
        capacity=capacity,
        patch=patch,
        lengths=tuple(layout.lengths),
        kept_token_index_L=_pack_kept_indices(layout, size),
        first_frames=first_frames,
        rng_keys=tuple(rng_keys) or tuple(clip_ids),
        epoch=epoch,
        pack_index=pack_index,
    )


@dataclass(frozen=True)
class _Layout:
    """Where in a pack the tokens of each sample are."""

    token_shapes: list[Shape3]
    """Before any tokens are dropped."""
    kept: list[Tensor | None]
    """Indices of the kept tokens of each sample; None: all."""
    lengths: list[int]

    @classmethod
    def of(cls, latents: Sequence[Tensor], patch: Shape3, kept: list[Tensor | None]) -> _Layout:
        shapes = [token_shape_of_latent((x.shape[1], x.shape[2], x.shape[3]), patch) for x in latents]
        lengths = [math.prod(shape) if some is None else len(some) for shape, some in zip(shapes, kept, strict=True)]
        return cls(shapes, kept, lengths)

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def cu_seqlens(self) -> list[int]:
        return [0, *itertools.accumulate(self.lengths)]

    @property
    def spans(self) -> list[slice]:
        return [slice(start, end) for start, end in itertools.pairwise(self.cu_seqlens)]


# Each function below allocates zeros for `size` tokens, so that padding is 0, and writes every token before the padding.


def _pack_tokens(latents: Sequence[Tensor], layout: _Layout, patch: Shape3, size: int, dtype: torch.dtype) -> Tensor:
    tokens_LD = torch.zeros(size, latents[0].shape[0] * math.prod(patch), dtype=dtype)
    for span, latent, kept in zip(layout.spans, latents, layout.kept):
        tokens = patchify(latent, patch)
        tokens_LD[span] = tokens if kept is None else tokens[kept]
    return tokens_LD


def _pack_positions(layout: _Layout, size: int, first_frames: Sequence[int]) -> Tensor:
    position_L3 = torch.zeros(size, 3, dtype=torch.int64)
    for span, shape, kept, first_frame in zip(layout.spans, layout.token_shapes, layout.kept, first_frames):
        position = _positions(shape)
        position_L3[span] = position if kept is None else position[kept]
        if first_frame:
            position_L3[span, 0] += first_frame
    return position_L3


def _pack_segment_ids(layout: _Layout, size: int) -> Tensor:
    segment_L = torch.zeros(size, dtype=torch.int64)
    for number, span in enumerate(layout.spans, start=1):
        segment_L[span] = number
    return segment_L


def _pack_kept_indices(layout: _Layout, size: int) -> Tensor | None:
    if all(kept is None for kept in layout.kept):
        return None
    kept_token_index_L = torch.zeros(size, dtype=torch.int64)
    for span, kept, length in zip(layout.spans, layout.kept, layout.lengths):
        kept_token_index_L[span] = torch.arange(length) if kept is None else kept
    return kept_token_index_L


@lru_cache(maxsize=4096)
def _positions(shape: Shape3) -> Tensor:
    return torch.from_numpy(positions(shape))


def rng_key(clip_id: str, occurrence: int) -> str:
    """RNG key of a segment: the clip_id; for further segments of the clip in the same epoch `clip_id#1`, `clip_id#2`, ..."""
    return f"{clip_id}#{occurrence}" if occurrence else clip_id


def unpack(batch: PackedBatch, tokens_LD: Tensor | None = None) -> list[Tensor]:
    """Latents (C, t, h, w) of a pack, or of other tokens with the same layout (a predicted velocity, with any C).

    Raises:
        UsageError: tokens were dropped from this pack, so that its latents are incomplete.
    """
    if batch.lengths != tuple(math.prod(shape) for shape in batch.token_shapes):
        raise UsageError(
            "tokens were dropped from this pack (--plan.token-keep-rate), it does not unpack into latents; "
            "batch.kept_token_index_L has the index of each token in its sample"
        )
    tokens_LD = batch.tokens_LD if tokens_LD is None else tokens_LD
    pieces = tokens_LD[: batch.num_tokens].split(list(batch.lengths))
    return [unpatchify(piece, shape, batch.patch) for piece, shape in zip(pieces, batch.token_shapes)]
