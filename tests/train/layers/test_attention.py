"""Packed attention: no leakage between samples, and unsupported backends are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recaption.errors import UsageError
from train.layers import attention
from train.layers.attention import choose_backend, packed_attention, unsupported_reason
from train.layers.block_mask import block_diagonal_mask, document_mask
from train.layers.segments import Segments

HEADS, WIDTH = 2, 8


def random_heads(num_tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(num_tokens, HEADS, WIDTH, generator=torch.Generator().manual_seed(seed))


def dense_attention(q_LHD, k_MHD, v_MHD, segment_ids_L, segment_ids_M):
    """Reference: one L x M mask, written out."""
    mask = (segment_ids_L[:, None] == segment_ids_M)[None]
    q, k, v = (x.transpose(0, 1) for x in (q_LHD, k_MHD, v_MHD))
    scores = (q @ k.transpose(1, 2)) / WIDTH**0.5
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v).transpose(0, 1)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=6))
def test_loop_equals_a_dense_mask_for_self_and_cross_attention(lengths):
    queries = Segments.from_lengths([n for n, _ in lengths])
    keys = Segments.from_lengths([m for _, m in lengths])
    q = random_heads(queries.num_tokens, 0)
    for segments, seed in ((queries, 1), (keys, 2)):
        k, v = random_heads(segments.num_tokens, seed), random_heads(segments.num_tokens, seed + 10)
        got = packed_attention(q, k, v, queries, segments, backend="loop")
        expected = dense_attention(q, k, v, queries.segment_ids_L, segments.segment_ids_L)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_samples_are_independent_forward_and_backward():
    segments = Segments.from_lengths([5, 3, 4])
    q, k, v = (random_heads(12, seed).requires_grad_() for seed in range(3))
    first = packed_attention(q, k, v, segments, segments)
    first[5:8].sum().backward()
    for x in (q, k, v):
        assert x.grad is not None
        assert x.grad[:5].abs().max() == 0
        assert x.grad[8:].abs().max() == 0
    assert v.grad[5:8].abs().min() > 0
    changed = [x.detach().clone().index_fill(0, torch.tensor([5, 6, 7]), 9.0) for x in (q, k, v)]
    second = packed_attention(*changed, segments, segments)
    assert torch.equal(first[:5], second[:5])
    assert torch.equal(first[8:], second[8:])
    assert not torch.allclose(first[5:8], second[5:8])


def test_cu_seqlens_tensors_equal_segments():
    segments = Segments.from_lengths([5, 3])
    q, k, v = (random_heads(8, seed) for seed in range(3))
    cu_seqlens = torch.tensor([0, 5, 8], dtype=torch.int32)
    assert torch.equal(packed_attention(q, k, v, cu_seqlens, cu_seqlens), packed_attention(q, k, v, segments, segments))
    assert Segments.of(cu_seqlens).lengths == (5, 3)


def test_sums_and_means_are_per_sample():
    segments = Segments.from_lengths([2, 3])
    values = torch.arange(5.0)[:, None]
    assert segments.sum(values)[:, 0].tolist() == [1.0, 9.0]
    assert segments.mean(values[:, 0]).tolist() == [0.5, 3.0]
    assert segments.repeated(2).lengths == (2, 3, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert segments.sum(torch.full((5, 1), 1.001)).dtype == torch.float32


def test_flex_mask_is_the_document_mask():
    queries, keys = Segments.from_lengths([3, 2]), Segments.from_lengths([1, 4])
    mask_mod = document_mask(queries.segment_ids_L, keys.segment_ids_L)
    zero = torch.tensor(0)
    got = [[bool(mask_mod(zero, zero, torch.tensor(i), torch.tensor(j))) for j in range(5)] for i in range(5)]
    assert got == (queries.segment_ids_L[:, None] == keys.segment_ids_L).tolist()
    assert queries.block_mask(keys) is queries.block_mask(keys)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 300)), min_size=1, max_size=6))
def test_block_mask_from_lengths_is_the_one_that_torch_reads_off_the_whole_mask(lengths):
    queries, keys = (Segments.from_lengths(side) for side in zip(*lengths))
    ours = block_diagonal_mask(queries.lengths, keys.lengths, queries.segment_ids_L, keys.segment_ids_L)
    theirs = create_block_mask(
        ours.mask_mod, B=None, H=None, Q_LEN=queries.num_tokens, KV_LEN=keys.num_tokens, device="cpu"
    )
    assert ours.seq_lengths == theirs.seq_lengths
    for side in ("kv", "full_kv", "q", "full_q"):
        counts, indices = (getattr(ours, f"{side}_{what}")[0, 0] for what in ("num_blocks", "indices"))
        assert torch.equal(counts, getattr(theirs, f"{side}_num_blocks")[0, 0])
        for count, ours_row, theirs_row in zip(counts, indices, getattr(theirs, f"{side}_indices")[0, 0], strict=True):
            assert torch.equal(ours_row[:count], theirs_row[:count])


def test_block_mask_of_a_long_pack_needs_no_tensor_of_tokens_by_tokens():
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
            return out

    with Watch():
        segments = Segments.from_lengths([30_000, 5_000, 30_536])
        mask = segments.block_mask(segments)
    assert largest <= 513 * 513, "one number per pair of blocks, and one per token"
    assert mask.kv_num_blocks.shape == (1, 1, 512)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [[200, 64, 130]])
def test_flex_attends_as_the_loop_does(lengths):
    """The kernel that inductor makes for a CPU reads the same blocks; compared sample by sample."""
    flex_attention = torch.compile(torch.nn.attention.flex_attention.flex_attention)
    segments, text = Segments.from_lengths(lengths), Segments.from_lengths([7, 150, 33][: len(lengths)])
    q = torch.randn(segments.num_tokens, HEADS, 16)
    for keys, (k, v) in ((segments, torch.randn(2, *q.shape)), (text, torch.randn(2, text.num_tokens, HEADS, 16))):
        heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]
        out = flex_attention(*heads_first, block_mask=segments.block_mask(keys))[0].transpose(0, 1)
        expected = packed_attention(q, k, v, segments, keys, backend="loop")
        for got, wanted in zip(out.split(lengths), expected.split(lengths), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_repeated_segments_are_made_once_so_that_their_masks_are_too():
    segments = Segments.from_lengths([3, 2])
    assert segments.repeated(2) is segments.repeated(2)
    assert segments.repeated(2).with_prefix_tokens(1)[0] is segments.repeated(2).with_prefix_tokens(1)[0]
    moved = segments.to("cpu")
    assert moved.lengths == segments.lengths


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
@pytest.mark.parametrize("backend", ["varlen", "flex"])
def test_backends_that_do_not_run_on_cpu_say_why(backend):
    segments = Segments.from_lengths([4])
    q = random_heads(4, 0)
    with pytest.raises(UsageError, match="needs a CUDA device and the tensors are on 'cpu'"):
        packed_attention(q, q, q, segments, segments, backend=backend)
    assert choose_backend("auto", "cpu", torch.float32) == "loop"


def test_varlen_refuses_float32_and_unknown_names_are_refused():
    assert "bfloat16 or float16" in str(unsupported_reason("varlen", "cuda", torch.float32))
    with pytest.raises(UsageError, match="choose one of auto, loop, varlen, flex"):
        choose_backend("xformers", "cpu", torch.float32)


def test_tensors_that_do_not_fit_their_segments_are_refused():
    q = random_heads(4, 0)
    with pytest.raises(ValueError, match="cover 3 tokens, the pack has 4"):
        packed_attention(q, q, q, Segments.from_lengths([3]), Segments.from_lengths([4]))
    with pytest.raises(ValueError, match="sample 1 has 2 queries and no keys"):
        packed_attention(q, q, q, Segments.from_lengths([2, 2]), Segments.from_lengths([4, 0]))
    with pytest.raises(ValueError, match="samples of queries"):
        packed_attention(q, q, q, Segments.from_lengths([2, 2]), Segments.from_lengths([4]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    ("backend", "dtype"), [("varlen", torch.bfloat16), ("flex", torch.bfloat16), ("flex", torch.float32)]
)
def test_cuda_backends_equal_the_loop_forward_and_backward(backend, dtype):
    segments = Segments.from_lengths([200, 64, 130], "cuda")
    inputs = [torch.randn(394, 2, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
    results = []
    for name in ("loop", backend):
        out = packed_attention(*inputs, segments, segments, backend=name)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), inputs)))
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    for got, expected in zip(results[1], results[0]):
        for one, wanted in zip(got.float().split(segments.lengths), expected.float().split(segments.lengths)):
            assert (one - wanted).norm() < tolerance * wanted.norm(), "of each sample, however small"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_of_one_length_are_batched_wherever_they_are(monkeypatch, dtype):
    """Empty ones too; the gradient is that of each sample alone."""
    lengths, text_lengths = [4, 4, 0, 200, 4, 4, 200, 7], [3, 3, 2, 3, 3, 5, 3, 3]
    queries, keys = Segments.from_lengths(lengths), Segments.from_lengths(text_lengths)
    calls = []
    attend = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda q, k, v: calls.append(len(q)) or attend(q, k, v))
    q, k, v = (
        random_heads(n, seed).to(dtype).requires_grad_()
        for seed, n in enumerate((sum(lengths), *[sum(text_lengths)] * 2))
    )
    batched = packed_attention(q, k, v, queries, keys, backend="loop")
    assert sorted(calls) == [1, 1, 2, 3]
    weight = random_heads(len(q), 9)
    gradients = torch.autograd.grad((batched * weight).sum(), (q, k, v))
    alone = dense_attention(*(x.detach().double() for x in (q, k, v)), queries.segment_ids_L, keys.segment_ids_L)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(batched.double(), alone, atol=tolerance, rtol=tolerance)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out = dense_attention(*exact, queries.segment_ids_L, keys.segment_ids_L)
    for got, expected in zip(gradients, torch.autograd.grad((out * weight).sum(), exact), strict=True):
        torch.testing.assert_close(got.double(), expected, atol=10 * tolerance, rtol=tolerance)
