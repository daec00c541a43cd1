"""Attention backends against the loop, forward and backward, compared sample by sample."""

from __future__ import annotations

import torch
from table import NOT_HERE, RIGHT, WRONG, Check, Row, worst_error

from packing.grid import layer_flops_coefficients
from train.layers.attention import packed_attention, unsupported_reason
from train.layers.segments import Segments

HEAD_WIDTH = 64
CASES = (("varlen", torch.bfloat16, 2e-2), ("flex", torch.bfloat16, 2e-2), ("flex", torch.float32, 1e-3))
"""Backend, dtype, and the relative error per sample that its rounding explains (TF32 in flex)."""


def run(check: Check) -> None:
    for backend, dtype, tolerance in CASES:
        for kind in ("self", "cross"):
            name = f"attention {backend} {kind} {str(dtype).removeprefix('torch.')}"
            reason = unsupported_reason(backend, check.device, dtype)
            if reason:
                check.rows.append(Row(check=name, status=NOT_HERE, note=reason))
            else:
                check.one(name, lambda case=(name, backend, kind, dtype, tolerance): _row(check, *case))
    check.one("attention loop self", lambda: _row(check, "attention loop self", "loop", "self", torch.float32, 1e-6))
    check.one("block mask of 65,536 tokens", lambda: _block_mask(check))


def _row(check: Check, name: str, backend: str, kind: str, dtype: torch.dtype, tolerance: float) -> Row:
    size = check.size
    queries = Segments.from_lengths(size.lengths, check.device)
    text_lengths = [size.text_tokens + 3 * index for index in range(len(size.lengths))]
    keys = queries if kind == "self" else Segments.from_lengths(text_lengths, check.device)
    heads = size.width // HEAD_WIDTH
    generator = torch.Generator().manual_seed(0)
    q, k, v, weight = (
        torch.randn(num_tokens, heads, HEAD_WIDTH, generator=generator).to(check.device, dtype)
        for num_tokens in (queries.num_tokens, keys.num_tokens, keys.num_tokens, queries.num_tokens)
    )
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def forward_and_backward(which: str) -> tuple[torch.Tensor, ...]:
        out = packed_attention(*inputs, queries, keys, backend=which)
        return (out.detach(), *torch.autograd.grad((out * weight).sum(), inputs))

    expected = forward_and_backward("loop")
    got = forward_and_backward(backend)
    lengths = (queries.lengths, queries.lengths, keys.lengths, keys.lengths)
    worst = max(worst_error(one, other, of) for one, other, of in zip(got, expected, lengths, strict=True))
    seconds = check.seconds(lambda: forward_and_backward(backend))
    flops_per_second = None
    if kind == "self":
        _, per_pair = layer_flops_coefficients(size.width)
        flops_per_second = 3 * per_pair * sum(n * n for n in size.lengths) / seconds
    return Row(
        check=name,
        status=RIGHT if worst <= tolerance else WRONG,
        tokens_per_second=queries.num_tokens / seconds,
        flops_per_second=flops_per_second,
        peak_bytes=check.peak_bytes(),
        note=f"worst relative error of a sample {worst:.1e} (at most {tolerance:.0e})",
    )


def _block_mask(check: Check) -> Row:
    """flex's mask of a long pack takes memory per pair of blocks, not per pair of tokens."""
    lengths = [65_536 // 8] * 8 if not check.size.is_small else [256] * 3
    segments = Segments.from_lengths(lengths, check.device)
    before = torch.cuda.memory_allocated(check.device) if check.is_cuda else 0
    mask = segments.block_mask(segments)
    num_bytes = (check.peak_bytes() or 0) - before
    num_blocks = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    expected = sum((-(-length // 128)) ** 2 for length in lengths)
    is_right = num_blocks == expected and num_bytes < 64 << 20
    return Row(
        check="block mask of a long pack",
        status=RIGHT if is_right else WRONG,
        peak_bytes=check.peak_bytes(),
        note=f"{num_blocks} blocks, {expected} expected, {num_bytes / 2**20:.0f} MiB",
    )
