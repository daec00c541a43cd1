from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from packing.loader.batch import PackedBatch, pack, patchify, unpack, unpatchify
from recaption.errors import SampleTooLongError, UsageError

SHAPES = [
    (1, 2, 2), (1, 4, 6), (1, 16, 16), (1, 2, 40), (1, 30, 2), (2, 2, 2), (2, 8, 6), (3, 4, 4), (3, 10, 18),
    (4, 6, 6), (5, 4, 8), (5, 18, 32), (6, 2, 2), (7, 4, 2), (8, 8, 8), (9, 6, 10), (9, 12, 12), (10, 2, 4), (12, 4, 4),
    (17, 2, 2),
]  # fmt: skip


def latents(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *shape, generator=generator).to(dtype) for shape in SHAPES]


def packed(**options: Any) -> PackedBatch:
    names = [f"clip-{i}" for i in range(len(SHAPES))]
    return pack(latents(), clip_ids=names, captions=[f"about {n}" for n in names], capacity=20_000, **options)


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (1, 1, 2)])
@pytest.mark.parametrize("pad_to_capacity", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_20_shapes_unpack_bit_for_bit(patch: tuple, pad_to_capacity: bool, dtype: torch.dtype) -> None:
    originals = latents(dtype)
    names = [str(i) for i in range(len(SHAPES))]
    batch = pack(
        originals, clip_ids=names, captions=names, capacity=20_000, patch=patch, pad_to_capacity=pad_to_capacity
    )
    restored = unpack(batch)
    assert len(restored) == 20
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(originals, restored))


def test_patch_in_time_round_trips() -> None:
    latent = torch.randn(4, 6, 8, 10)
    assert torch.equal(unpatchify(patchify(latent, (2, 4, 5)), (3, 2, 2), (2, 4, 5)), latent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 2, 4), (1, 4, 5), (3, 1, 8)])
def test_patchify_equals_the_plain_permutation(patch: tuple, dtype: torch.dtype) -> None:
    latent = torch.randn(3, 6, 8, 40).to(dtype)
    frames, rows, columns = (size // step for size, step in zip(latent.shape[1:], patch))
    blocks = latent.reshape(3, frames, patch[0], rows, patch[1], columns, patch[2])
    expected = blocks.permute(1, 3, 5, 0, 2, 4, 6).reshape(frames * rows * columns, -1)
    assert torch.equal(patchify(latent, patch), expected)
    strided = latent.transpose(0, 3).contiguous().transpose(0, 3)
    assert torch.equal(patchify(strided, patch), expected)


def test_token_contains_its_own_patch() -> None:
    latent = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    tokens = patchify(latent, (1, 2, 3))
    assert tokens.shape == (3 * 2 * 2, 2 * 6)
    # token of frame 2, row 1, column 0
    assert torch.equal(tokens[2 * 4 + 1 * 2 + 0], latent[:, 2, 2:4, 0:3].reshape(-1))


def test_segments_positions_and_offsets_agree() -> None:
    batch = packed(patch=(1, 2, 2))
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.cu_seqlens[0] == 0
    for s, (frames, rows, columns) in enumerate(SHAPES):
        start, end = batch.cu_seqlens[s], batch.cu_seqlens[s + 1]
        assert end - start == frames * rows * columns // 4
        assert (batch.segment_L[start:end] == s + 1).all()
        assert batch.position_L3[start].tolist() == [0, 0, 0]
        assert batch.position_L3[end - 1].tolist() == [frames - 1, rows // 2 - 1, columns // 2 - 1]
        assert batch.grid_S3[s].tolist() == [frames, rows // 2, columns // 2] == list(batch.token_shapes[s])
    assert batch.cu_seqlens[-1] == batch.num_tokens == len(batch.tokens_LD) == len(batch.segment_L)
    assert batch.fill == batch.num_tokens / 20_000


def test_padding_comes_last_with_segment_id_0() -> None:
    batch = packed(pad_to_capacity=True)
    plain = packed()
    num_tokens = plain.num_tokens
    assert len(batch.tokens_LD) == len(batch.position_L3) == len(batch.segment_L) == 20_000
    assert (batch.segment_L[num_tokens:] == 0).all()
    assert (batch.segment_L[:num_tokens] > 0).all()
    assert not batch.tokens_LD[num_tokens:].any()
    assert torch.equal(batch.cu_seqlens, plain.cu_seqlens)
    assert batch.num_tokens == num_tokens


def test_other_tokens_of_the_same_layout_unpack_too() -> None:
    batch = packed()
    wide = torch.cat([batch.tokens_LD, -batch.tokens_LD], dim=1)
    for latent, restored in zip(latents(), unpack(batch, wide)):
        assert torch.equal(restored, torch.cat([latent, -latent]))


def test_to_moves_every_tensor() -> None:
    batch = packed().to("meta")
    tensors = [getattr(batch, f.name) for f in dataclasses.fields(batch)]
    assert {t.device.type for t in tensors if isinstance(t, torch.Tensor)} == {"meta"}
    assert batch.num_tokens == packed().num_tokens


def test_invalid_packs_are_refused() -> None:
    latent = torch.zeros(1, 2, 4, 4)
    with pytest.raises(SampleTooLongError, match="64 tokens of a, b"):
        pack([latent, latent], clip_ids=["a", "b"], captions=["", ""], capacity=63)
    with pytest.raises(UsageError, match="1 captions"):
        pack([latent, latent], clip_ids=["a", "b"], captions=[""], capacity=99)
    with pytest.raises(UsageError, match="no pack"):
        pack([], clip_ids=[], captions=[], capacity=99)
    with pytest.raises(UsageError, match="does not divide"):
        pack([latent], clip_ids=["a"], captions=[""], capacity=99, patch=(1, 3, 1))


def test_kept_tokens_have_their_values_indices_and_positions() -> None:
    kept = [np.array([1, 4, 7]) if i == 3 else None for i in range(len(SHAPES))]
    batch = packed(
        kept_token_indices=kept, first_frames=[2 if i == 4 else 0 for i in range(len(SHAPES))], pad_to_capacity=True
    )
    whole = packed()
    assert batch.kept_token_index_L is not None
    assert batch.lengths[3] == 3
    assert batch.num_tokens == sum(batch.lengths) == whole.num_tokens - whole.lengths[3] + 3
    start = batch.cu_seqlens[3]
    of_whole = whole.cu_seqlens[3] + torch.tensor([1, 4, 7])
    assert torch.equal(batch.tokens_LD[start : start + 3], whole.tokens_LD[of_whole])
    assert torch.equal(batch.position_L3[start : start + 3], whole.position_L3[of_whole])
    assert batch.kept_token_index_L[start : start + 3].tolist() == [1, 4, 7]
    later = batch.position_L3[batch.cu_seqlens[4] : batch.cu_seqlens[5]]
    assert later[:, 0].unique().tolist() == [2]  # an image that is the third frame of its sample
    assert batch.grid_S3[3].tolist() == [1, 2, 40]  # the grid is that of all tokens
    with pytest.raises(UsageError, match="tokens were dropped"):
        unpack(batch)
    assert all(torch.equal(a, b) for a, b in zip(unpack(whole), latents()))


def test_to_moves_kept_token_indices_too() -> None:
    batch = packed(kept_token_indices=[np.array([0])] * len(SHAPES)).to("meta")
    assert batch.kept_token_index_L is not None
    assert batch.kept_token_index_L.device.type == "meta"
    assert batch.num_tokens == len(SHAPES)
