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

A relative position bias (relative_bias.py) is a float mask in `loop`, which then batches only samples of equal positions,
and a `score_mod` in `flex`; `varlen` has none, so `auto` passes it over.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from recaption.errors import UsageError
from train.layers.relative_bias import PositionBias
from train.layers.segments import Segments

BACKENDS = ("loop", "varlen", "flex")
MAX_WRITTEN_OUT = 128
"""Up to this many queries times as many keys, bfloat16 attention on a CPU is written out: torch's kernel takes 7x as long,
forward and backward, at 16 tokens, 4x at 64, 1.8x at 256 (where the saved scores begin to count), less at 1,024."""


def unsupported_reason(
    backend: str, device: torch.device | str, dtype: torch.dtype, *, has_bias: bool = False
) -> str | None:
    """Why `backend` does not run on this device with this dtype, or None where it does."""
    device = torch.device(device)
    if backend == "loop":
        return None
    if backend == "varlen" and has_bias:
        return "attention backend 'varlen' has no relative position bias; use 'flex', or a model without relative_bias"
    if device.type != "cuda":
        return f"attention backend {backend!r} needs a CUDA device and the tensors are on {device.type!r}; use 'loop'"
    if backend == "flex":
        return None
    if dtype not in (torch.bfloat16, torch.float16):
        return f"attention backend 'varlen' takes bfloat16 or float16, not {dtype}; use precision bf16, or 'flex'"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "attention backend 'varlen' needs compute capability 8.0 (Ampere) or newer; use 'flex'"
    return None


def choose_backend(backend: str, device: torch.device | str, dtype: torch.dtype, *, has_bias: bool = False) -> str:
    """The backend that will run: `auto` is the first of varlen, flex and loop that is supported.

    Args:
        has_bias: attention with a relative position bias.

    Raises:
        UsageError: the backend is unknown or not supported here; the message says why.
    """
    if backend == "auto":
        if torch.device(device).type != "cuda":
            return "loop"
        return "varlen" if unsupported_reason("varlen", device, dtype, has_bias=has_bias) is None else "flex"
    if backend not in BACKENDS:
        raise UsageError(f"unknown attention backend {backend!r}: choose one of auto, {', '.join(BACKENDS)}")
    reason = unsupported_reason(backend, device, dtype, has_bias=has_bias)
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
    bias: PositionBias | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v, where sample s of the queries attends to sample s of the keys and nothing else.

    Args:
        segments_q, segments_k: `Segments`, or cu_seqlens tensors (read back once: a host sync on a GPU).
        backend: `auto`, `loop`, `varlen` or `flex`.
        bias: of self-attention, for the positions of this pack.

    Raises:
        ValueError: tensors and segments do not fit, or a sample has queries but no keys.
        UsageError: the backend is not supported here.
    """
    segments_q, segments_k = Segments.of(segments_q), Segments.of(segments_k)
    _check_lengths(q_LHD, k_MHD, segments_q, segments_k)
    backend = choose_backend(backend, q_LHD.device, q_LHD.dtype, has_bias=bias is not None)
    if not segments_q.num_tokens:
        return q_LHD + 0 * (k_MHD.sum() + v_MHD.sum())  # all of them stay in the graph: DDP waits for every gradient
    attend = {"varlen": _varlen, "flex": _flex, "loop": _loop}[backend]
    with_bias = {} if bias is None else {"bias": bias}
    return attend(q_LHD, k_MHD, v_MHD, segments_q, segments_k, **with_bias)


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


def _loop(
    q_LHD: Tensor,
    k_MHD: Tensor,
    v_MHD: Tensor,
    segments_q: Segments,
    segments_k: Segments,
    bias: PositionBias | None = None,
) -> Tensor:
    """Samples of one length as a batch: 48 of 16 tokens take a ninth of the time that 48 calls do.

    Neighbours of one length are a view of the pack; only those that are apart are copied together. With a bias, samples
    of one batch have equal positions too.
    """
    same_as_S = (0,) * len(segments_q) if bias is None else bias.positions.same_as_S
    runs = [
        (kind, sum(1 for _ in group))
        for kind, group in itertools.groupby(zip(segments_q.lengths, segments_k.lengths, same_as_S))
    ]
    # `split` and not slices: the backward of a slice writes a gradient of the whole pack.
    q_parts, k_parts, v_parts = (
        [
            part.unflatten(0, (number, kind[side])).transpose(1, 2)
            for part, (kind, number) in zip(tokens.split([n * kind[side] for kind, n in runs]), runs)
        ]
        for tokens, side in ((q_LHD, 0), (k_MHD, 1), (v_MHD, 1))
    )
    runs_of_kind: dict[tuple[int, int, int], list[int]] = {}
    for run, (kind, _) in enumerate(runs):
        if kind[0]:
            runs_of_kind.setdefault(kind, []).append(run)
    if not runs_of_kind:
        return q_LHD * 0
    first_samples = list(itertools.accumulate((number for _, number in runs), initial=0))
    outputs: dict[int, Tensor] = {}
    for same_kind in runs_of_kind.values():
        batch = (_concatenate([parts[run] for run in same_kind]) for parts in (q_parts, k_parts, v_parts))
        samples = [sample for run in same_kind for sample in range(first_samples[run], first_samples[run + 1])]
        masks = () if bias is None else (_bias_mask(bias, samples),)
        out_SLHD = _attend(*batch, *masks).transpose(1, 2)
        outputs |= zip(same_kind, out_SLHD.split([runs[run][1] for run in same_kind]))
    return _concatenate([outputs[run].flatten(0, 1) for run in sorted(outputs)])


def _bias_mask(bias: PositionBias, samples: Sequence[int]) -> Tensor:
    """(1, H, L, L) of samples with equal positions, or (samples, H, L, L) where each has a gain of its own."""
    bias_1HLL = bias.of_sample(samples[0])[None]
    return bias_1HLL if bias.gain_SH is None else bias_1HLL * (1 + bias.gain_SH[list(samples)])[:, :, None, None]


def _concatenate(parts: Sequence[Tensor]) -> Tensor:
    """torch.cat, without a copy of a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _attend(q_SHLD: Tensor, k_SHMD: Tensor, v_SHMD: Tensor, bias_SHLM: Tensor | None = None) -> Tensor:
    """Attention of samples of one length: torch's kernel, or written out where that is faster."""
    is_short = q_SHLD.shape[2] * k_SHMD.shape[2] <= MAX_WRITTEN_OUT**2
    if is_short and q_SHLD.device.type == "cpu" and q_SHLD.dtype == torch.bfloat16:
        scores_SHLM = (q_SHLD * q_SHLD.shape[3] ** -0.5) @ k_SHMD.transpose(2, 3)
        if bias_SHLM is not None:
            scores_SHLM = scores_SHLM + bias_SHLM.to(scores_SHLM.dtype)
        return scores_SHLM.softmax(dim=3) @ v_SHMD
    mask = None if bias_SHLM is None else bias_SHLM.to(q_SHLD.dtype)
    return F.scaled_dot_product_attention(q_SHLD, k_SHMD, v_SHMD, attn_mask=mask)


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


def _flex(
    q_LHD: Tensor,
    k_MHD: Tensor,
    v_MHD: Tensor,
    segments_q: Segments,
    segments_k: Segments,
    bias: PositionBias | None = None,
) -> Tensor:
    q, k, v = (tokens.transpose(0, 1)[None] for tokens in (q_LHD, k_MHD, v_MHD))
    score_mod = None if bias is None else bias.score_mod()
    block_mask = segments_q.block_mask(segments_k)
    return _compiled_flex_attention()(q, k, v, score_mod=score_mod, block_mask=block_mask)[0].transpose(0, 1)
