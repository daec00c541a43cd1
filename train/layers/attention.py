"""Attention over packs: every sample attends to itself (or its own text) only.

    segments = Segments.from_lengths([6, 2])                     # pack of 8 tokens, two samples
    out_LHD = packed_attention(q_LHD, k_LHD, v_LHD, segments, segments)
    out_LHD = packed_attention(q_LHD, k_MHD, v_MHD, segments, text_segments)   # cross-attention to packed text

Shape suffixes: L tokens of a pack, M tokens of packed text, S samples (segments) of a pack, H heads, D width of a head.

Three backends, one result. `loop` runs torch's own attention once per sample length: it is the reference, costs exactly
the sum of l^2, and is the fastest on CPU (3.3x to 33x over a dense mask at 4096 tokens). `varlen` (flash attention with
cu_seqlens) and `flex` (flex_attention with a document mask) are for CUDA. None of them makes an L x L tensor: the block mask
of `flex` is built from the lengths (block_mask.py). Which one runs is decided when it runs, by device and dtype; it is no
part of a model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from recaption.errors import UsageError
from train.layers.segments import Segments

BACKENDS = ("loop", "varlen", "flex")
MAX_WRITTEN_OUT = 128
"""Up to this many queries times as many keys, bfloat16 attention on a CPU is written out: torch's kernel takes 7x as long,
forward and backward, at 16 tokens, 4x at 64, 1.8x at 256 (where the saved scores begin to count), less at 1,024."""


def unsupported_reason(backend: str, device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Why `backend` does not run on this device with this dtype, or None where it does."""
    device = torch.device(device)
    if backend == "loop":
        return None
    if device.type != "cuda":
        return f"attention backend {backend!r} needs a CUDA device and the tensors are on {device.type!r}; use 'loop'"
    if backend == "flex":
        return None
    if dtype not in (torch.bfloat16, torch.float16):
        return f"attention backend 'varlen' takes bfloat16 or float16, not {dtype}; use precision bf16, or 'flex'"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "attention backend 'varlen' needs compute capability 8.0 (Ampere) or newer; use 'flex'"
    return None


def choose_backend(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend that will run: `auto` is the first of varlen, flex and loop that is supported.

    Raises:
        UsageError: the backend is unknown or not supported here; the message says why.
    """
    if backend == "auto":
        if torch.device(device).type != "cuda":
            return "loop"
        return "varlen" if unsupported_reason("varlen", device, dtype) is None else "flex"
    if backend not in BACKENDS:
        raise UsageError(f"unknown attention backend {backend!r}: choose one of auto, {', '.join(BACKENDS)}")
    reason = unsupported_reason(backend, device, dtype)
    if reason is not None:
        raise UsageError(reason)
    return backend


def packed_attention(
    q_LHD: Tensor,
    k_MHD: Tensor,
    v_MHD: Tensor,
    segments_q: Segments | Tensor,
    segments_k: Segments | Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, where sample s of the queries attends to sample s of the keys and nothing else.

    Args:
        segments_q, segments_k: `Segments`, or cu_seqlens tensors (read back once: a host sync on a GPU).
        backend: `auto`, `loop`, `varlen` or `flex`.

    Raises:
        ValueError: tensors and segments do not fit, or a sample has queries but no keys.
        UsageError: the backend is not supported here.
    """
    segments_q, segments_k = Segments.of(segments_q), Segments.of(segments_k)
    _check_lengths(q_LHD, k_MHD, segments_q, segments_k)
    backend = choose_backend(backend, q_LHD.device, q_LHD.dtype)
    if backend == "varlen":
        return _varlen(q_LHD, k_MHD, v_MHD, segments_q, segments_k)
    if backend == "flex":
        return _flex(q_LHD, k_MHD, v_MHD, segments_q, segments_k)
    return _loop(q_LHD, k_MHD, v_MHD, segments_q, segments_k)


def _check_lengths(q_LHD: Tensor, k_MHD: Tensor, segments_q: Segments, segments_k: Segments) -> None:
    if len(segments_q) != len(segments_k):
        raise ValueError(f"{len(segments_q)} samples of queries but {len(segments_k)} samples of keys")
    for name, tokens, segments in (("queries", q_LHD, segments_q), ("keys", k_MHD, segments_k)):
        if tokens.shape[0] != segments.num_tokens:
            raise ValueError(
                f"the segments of the {name} cover {segments.num_tokens} tokens, the pack has {tokens.shape[0]}"
            )
    for sample, (num_queries, num_keys) in enumerate(zip(segments_q.lengths, segments_k.lengths)):
        if num_queries and not num_keys:
            raise ValueError(f"sample {sample} has {num_queries} queries and no keys: its softmax is undefined")


def _loop(q_LHD: Tensor, k_MHD: Tensor, v_MHD: Tensor, segments_q: Segments, segments_k: Segments) -> Tensor:
    """Samples of one length as a batch: 48 of 16 tokens take a ninth of the time that 48 calls do.

    Neighbours of one length are a view of the pack; only those that are apart are copied together.
    """
    runs = [
        (lengths, sum(1 for _ in group))
        for lengths, group in itertools.groupby(zip(segments_q.lengths, segments_k.lengths))
    ]
    # `split` and not slices: the backward of a slice writes a gradient of the whole pack.
    q_parts, k_parts, v_parts = (
        [
            part.unflatten(0, (number, lengths[side])).transpose(1, 2)
            for part, (lengths, number) in zip(tokens.split([n * lengths[side] for lengths, n in runs]), runs)
        ]
        for tokens, side in ((q_LHD, 0), (k_MHD, 1), (v_MHD, 1))
    )
    runs_of_length: dict[tuple[int, int], list[int]] = {}
    for run, (lengths, _) in enumerate(runs):
        if lengths[0]:
            runs_of_length.setdefault(lengths, []).append(run)
    if not runs_of_length:
        return q_LHD * 0
    outputs: dict[int, Tensor] = {}
    for same_length in runs_of_length.values():
        batch = (_concatenate([parts[run] for run in same_length]) for parts in (q_parts, k_parts, v_parts))
        out_SLHD = _attend(*batch).transpose(1, 2)
        outputs |= zip(same_length, out_SLHD.split([runs[run][1] for run in same_length]))
    return _concatenate([outputs[run].flatten(0, 1) for run in sorted(outputs)])


def _concatenate(parts: Sequence[Tensor]) -> Tensor:
    """torch.cat, without a copy of a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _attend(q_SHLD: Tensor, k_SHMD: Tensor, v_SHMD: Tensor) -> Tensor:
    """Attention of samples of one length: torch's kernel, or written out where that is faster."""
    is_short = q_SHLD.shape[2] * k_SHMD.shape[2] <= MAX_WRITTEN_OUT**2
    if is_short and q_SHLD.device.type == "cpu" and q_SHLD.dtype == torch.bfloat16:
        scores_SHLM = (q_SHLD * q_SHLD.shape[3] ** -0.5) @ k_SHMD.transpose(2, 3)
        return scores_SHLM.softmax(dim=3) @ v_SHMD
    return F.scaled_dot_product_attention(q_SHLD, k_SHMD, v_SHMD)


def _varlen(q_LHD: Tensor, k_MHD: Tensor, v_MHD: Tensor, segments_q: Segments, segments_k: Segments) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(
        q_LHD, k_MHD, v_MHD, segments_q.cu_seqlens, segments_k.cu_seqlens, segments_q.max_length, segments_k.max_length
    )


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled, flex_attention computes the whole L x L score matrix. dynamic: packs differ in length.
    return torch.compile(flex_attention, dynamic=True)


def _flex(q_LHD: Tensor, k_MHD: Tensor, v_MHD: Tensor, segments_q: Segments, segments_k: Segments) -> Tensor:
    q, k, v = (tokens.transpose(0, 1)[None] for tokens in (q_LHD, k_MHD, v_MHD))
    return _compiled_flex_attention()(q, k, v, block_mask=segments_q.block_mask(segments_k))[0].transpose(0, 1)
