"""Attention over packed rows: many samples in one row, and no sample sees another.

    segments = Segments.from_lengths([6, 2])                     # row of 8 tokens, two samples
    out_LHD = packed_attention(q_LHD, k_LHD, v_LHD, segments, segments)
    out_LHD = packed_attention(q_LHD, k_MHD, v_MHD, segments, text_segments)   # cross-attention to packed text

Shape suffixes: L tokens of a row, M tokens of packed text, S samples (segments) of a row, H heads, D width of a head.

Three backends, one result. `loop` runs torch's own attention once per sample, or once for all samples of one length: it
is the reference, costs exactly the sum of l^2, and is the fastest on CPU (3.3x to 33x over a dense mask at 4096 tokens).
`varlen` (flash attention with cu_seqlens) and `flex` (a compiled document mask) are for CUDA. No backend ever builds an
L x L mask.
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


SHORT = 128
"""Up to so many queries times as many keys the formula is used where torch's bfloat16 kernel for CPUs would be slower, forth
and back: by 7x at 16 tokens, 4x at 64, 1.8x at 256, where the scores that are kept begin to count. At 1,024 it is faster."""


def why_not(backend: str, device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Why `backend` cannot train on this device with this dtype, or None where it can."""
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
    """The backend that will run: `auto` takes varlen, flex, loop, whichever of them can run first.

    Raises:
        UsageError: the backend is unknown, or cannot run here; the sentence says why.
    """
    if backend == "auto":
        if torch.device(device).type != "cuda":
            return "loop"
        return "varlen" if why_not("varlen", device, dtype) is None else "flex"
    if backend not in BACKENDS:
        raise UsageError(f"unknown attention backend {backend!r}: choose one of auto, {', '.join(BACKENDS)}")
    reason = why_not(backend, device, dtype)
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
    """softmax(q k^T / sqrt(D)) v, where sample s of the queries sees sample s of the keys and nothing else.

    Args:
        segments_q, segments_k: a `Segments` each, or bare cu_seqlens tensors (read back once: a host sync on a GPU).
        backend: `auto`, `loop`, `varlen` or `flex`.

    Raises:
        ValueError: rows and segments do not fit, or a sample has queries but no keys.
        UsageError: the backend cannot run here.
    """
    segments_q, segments_k = Segments.of(segments_q), Segments.of(segments_k)
    _check_rows(q_LHD, k_MHD, segments_q, segments_k)
    backend = choose_backend(backend, q_LHD.device, q_LHD.dtype)
    if backend == "varlen":
        return _varlen(q_LHD, k_MHD, v_MHD, segments_q, segments_k)
    if backend == "flex":
        return _flex(q_LHD, k_MHD, v_MHD, segments_q, segments_k)
    return _loop(q_LHD, k_MHD, v_MHD, segments_q, segments_k)


def _check_rows(q_LHD: Tensor, k_MHD: Tensor, segments_q: Segments, segments_k: Segments) -> None:
    if len(segments_q) != len(segments_k):
        raise ValueError(f"{len(segments_q)} samples of queries but {len(segments_k)} samples of keys")
    for name, rows, segments in (("queries", q_LHD, segments_q), ("keys", k_MHD, segments_k)):
        if rows.shape[0] != segments.num_tokens:
            raise ValueError(
                f"the segments of the {name} cover {segments.num_tokens} tokens, the row has {rows.shape[0]}"
            )
    for sample, (num_queries, num_keys) in enumerate(zip(segments_q.lengths, segments_k.lengths)):
        if num_queries and not num_keys:
            raise ValueError(f"sample {sample} has {num_queries} queries and no key: its softmax has no value")


def _loop(q_LHD: Tensor, k_MHD: Tensor, v_MHD: Tensor, segments_q: Segments, segments_k: Segments) -> Tensor:
    """Samples of one length are a batch: 48 of 16 tokens take a ninth of the time that 48 calls do. Neighbours of one
    length are a view of the row; only those that others stand between are copied together."""
    runs = [
        (lengths, sum(1 for _ in same))
        for lengths, same in itertools.groupby(zip(segments_q.lengths, segments_k.lengths))
    ]
    # `split` and not slices: the backward of slices would write a gradient of the whole row for each.
    q_parts, k_parts, v_parts = (
        [
            part.unflatten(0, (number, lengths[side])).transpose(1, 2)
            for part, (lengths, number) in zip(rows.split([n * lengths[side] for lengths, n in runs]), runs)
        ]
        for rows, side in ((q_LHD, 0), (k_MHD, 1), (v_MHD, 1))
    )
    alike: dict[tuple[int, int], list[int]] = {}
    for place, (lengths, _) in enumerate(runs):
        if lengths[0]:
            alike.setdefault(lengths, []).append(place)
    if not alike:
        return q_LHD * 0
    outputs: dict[int, Tensor] = {}
    for places in alike.values():
        together = (_joined([parts[place] for place in places]) for parts in (q_parts, k_parts, v_parts))
        out_SLHD = _attend(*together).transpose(1, 2)
        outputs |= zip(places, out_SLHD.split([runs[place][1] for place in places]))
    return _joined([outputs[place].flatten(0, 1) for place in sorted(outputs)])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _attend(q_SHLD: Tensor, k_SHMD: Tensor, v_SHMD: Tensor) -> Tensor:
    """Attention of samples of one length, by torch's own kernel or, where that is slower, by its formula."""
    is_short = q_SHLD.shape[2] * k_SHMD.shape[2] <= SHORT**2
    if is_short and q_SHLD.device.type == "cpu" and q_SHLD.dtype == torch.bfloat16:
        scores_SHLM = (q_SHLD * q_SHLD.shape[3] ** -0.5) @ k_SHMD.transpose(2, 3)
        return scores_SHLM.softmax(dim=3) @ v_SHMD
    return F.scaled_dot_product_attention(q_SHLD, k_SHMD, v_SHMD)


def _varlen(q_LHD: Tensor, k_MHD: Tensor, v_MHD: Tensor, segments_q: Segments, segments_k: Segments) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(
        q_LHD,
        k_MHD,
        v_MHD,
        segments_q.cu_seqlens,
        segments_k.cu_seqlens,
        segments_q.max_length,
        segments_k.max_length,
    )


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled, flex_attention writes out the whole L x L score matrix. dynamic: rows differ in length.
    return torch.compile(flex_attention, dynamic=True)


def _flex(q_LHD: Tensor, k_MHD: Tensor, v_MHD: Tensor, segments_q: Segments, segments_k: Segments) -> Tensor:
    q, k, v = (rows.transpose(0, 1)[None] for rows in (q_LHD, k_MHD, v_MHD))
    return _compiled_flex_attention()(q, k, v, block_mask=segments_q.block_mask(segments_k))[0].transpose(0, 1)
