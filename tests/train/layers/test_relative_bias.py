"""Relative position bias: packed attention with it against one dense softmax, in every backend that has it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from recaption.errors import UsageError
from tests.stand_ins.packed_inputs import grid_positions
from train.layers import attention
from train.layers.attention import choose_backend, packed_attention, unsupported_reason
from train.layers.relative_bias import PackedPositions, RelativePositionBias
from train.layers.segments import Segments

HEADS, WIDTH, REACH = 2, 16, (2, 3, 3)
GRIDS = ((1, 2, 3), (2, 2, 2), (1, 2, 3), (3, 4, 1))
"""Two of equal length and position, one of equal length alone would be (1, 6, 1); the last goes beyond the reach."""


def make(grids=GRIDS, seed=0):
    torch.manual_seed(seed)
    parts = [grid_positions(grid) for grid in grids]
    segments = Segments.from_lengths([len(part) for part in parts])
    q, k, v = (torch.randn(segments.num_tokens, HEADS, WIDTH, requires_grad=True) for _ in range(3))
    module = RelativePositionBias(HEADS, REACH)
    torch.nn.init.normal_(module.table_NH)
    return q, k, v, segments, PackedPositions(torch.cat(parts), segments), module


def dense(q, k, v, segments, positions, module, gain_SH=None):
    """One softmax over the whole pack, the table read with loops."""
    frames, rows, columns = (2 * width - 1 for width in REACH)
    table = module.table_NH.view(frames, rows, columns, HEADS)
    rows_LL = []
    for i, here in enumerate(positions.position_L3.tolist()):
        row = []
        for there in positions.position_L3.tolist():
            offset = [max(-w + 1, min(w - 1, a - b)) + w - 1 for a, b, w in zip(here, there, REACH)]
            gain = 1 if gain_SH is None else 1 + gain_SH[segments.segment_ids_L[i]]
            row.append(table[tuple(offset)] * gain)
        rows_LL.append(torch.stack(row))
    scores = torch.einsum("qhd,khd->hqk", q, k) / WIDTH**0.5 + torch.stack(rows_LL).permute(2, 0, 1)
    scores = scores.masked_fill(segments.segment_ids_L[:, None] != segments.segment_ids_L, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def flex_by_definition(q, k, v, *, score_mod, block_mask):
    heads, length = torch.arange(q.shape[1])[:, None, None], torch.arange(q.shape[2])
    where = torch.tensor(0), heads, length[:, None], length[None]
    scores = score_mod(q @ k.transpose(2, 3) / WIDTH**0.5, *where)
    return scores.masked_fill(~block_mask.mask_mod(*where), -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("has_gain", [False, True])
@pytest.mark.parametrize("backend", ["loop", "flex"])
def test_biased_attention_equals_a_dense_softmax_forward_and_backward(monkeypatch, backend, has_gain):
    """`flex` as torch defines it: its kernel has no backward on a CPU."""
    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: flex_by_definition)
    monkeypatch.setattr(attention, "choose_backend", lambda *_, **__: backend)
    q, k, v, segments, positions, module = make()
    gain_SH = torch.randn(len(segments), HEADS, requires_grad=True) if has_gain else None
    wanted = [q, k, v, module.table_NH, *([gain_SH] if has_gain else [])]
    weight = torch.randn(q.shape)
    results = []
    for out in (
        packed_attention(q, k, v, segments, segments, bias=module(positions, gain_SH)),
        dense(q, k, v, segments, positions, module, gain_SH),
    ):
        results.append((out, *torch.autograd.grad((out * weight).sum(), wanted)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_samples_share_a_call_only_where_their_positions_are_equal_too(monkeypatch):
    calls = []
    attend = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda *args: calls.append(len(args[0])) or attend(*args))
    q, k, v, segments, positions, module = make(((1, 2, 3), (1, 3, 2), (1, 2, 3), (1, 6, 1)))
    packed_attention(q, k, v, segments, segments, bias=module(positions))
    assert sorted(calls) == [1, 1, 2]
    assert positions.same_as_S == (0, 1, 0, 2)
    moved = PackedPositions(positions.position_L3 + torch.tensor([0, 8, 4]), segments)
    assert moved.same_as_S == (0, 1, 0, 2), "windows elsewhere on the grid are the same window"


def test_distances_beyond_the_reach_take_the_number_at_the_rim():
    _, _, _, _, positions, module = make(((1, 1, 9),))
    bias_HLL = module(positions).of_sample(0)
    assert torch.equal(bias_HLL[:, 0, 2:], bias_HLL[:, 0, 2:3].expand(-1, 7))
    assert not torch.equal(bias_HLL[:, 0, 1], bias_HLL[:, 0, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_bfloat16_attention_that_is_written_out_has_the_bias_too(dtype):
    q, k, v, segments, positions, module = make()
    got = packed_attention(*(x.to(dtype) for x in (q, k, v)), segments, segments, bias=module(positions))
    torch.testing.assert_close(got.float(), dense(q, k, v, segments, positions, module), atol=0.05, rtol=0.05)


@pytest.mark.slow
def test_the_compiled_kernel_of_a_cpu_has_the_same_bias():
    """Inductor's CPU kernel, forward only."""
    q, k, v, segments, positions, module = make(((1, 8, 16), (1, 10, 5)))
    bias = module(positions)
    with torch.no_grad():
        out = torch.compile(flex_attention, dynamic=True)(
            *(x.detach().transpose(0, 1)[None] for x in (q, k, v)),
            score_mod=bias.score_mod(), block_mask=segments.block_mask(segments),
        )[0].transpose(0, 1)  # fmt: skip
        expected = packed_attention(q, k, v, segments, segments, bias=bias)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_varlen_refuses_a_bias_and_auto_passes_it_over(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert "no relative position bias; use 'flex'" in str(
        unsupported_reason("varlen", "cuda", torch.bfloat16, has_bias=True)
    )
    assert choose_backend("auto", "cuda", torch.bfloat16) == "varlen"
    assert choose_backend("auto", "cuda", torch.bfloat16, has_bias=True) == "flex"


@pytest.mark.parametrize("reach", [(1, 16), (0, 4, 4)])
def test_a_reach_that_is_no_grid_is_refused(reach):
    with pytest.raises(UsageError, match="three numbers"):
        RelativePositionBias(2, reach)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_flex_on_a_gpu_has_the_bias_of_the_loop_forward_and_backward():
    q, k, v, segments, positions, module = make(((1, 8, 16), (2, 10, 5)))
    module.to("cuda")
    segments = segments.to("cuda")
    positions = PackedPositions(positions.position_L3.cuda(), segments)
    heads = [x.detach().cuda().requires_grad_() for x in (q, k, v)]
    results = []
    for backend in ("loop", "flex"):
        out = packed_attention(*heads, segments, segments, backend=backend, bias=module(positions))
        results.append((out, *torch.autograd.grad(out.square().sum(), [*heads, module.table_NH])))
    for got, expected in zip(*results, strict=True):
        assert (got - expected).norm() < 1e-3 * expected.norm()
