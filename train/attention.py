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
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recaption.errors import UsageError

BACKENDS = ("loop", "varlen", "flex")
SHORT = 128
"""Up to so many queries times as many keys the formula is used where torch's bfloat16 kernel for CPUs would be slower, forth
and back: by 7x at 16 tokens, 4x at 64, 1.8x at 256, where the scores that are kept begin to count. At 1,024 it is faster."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Where each sample of a packed row starts and ends, for the device and for Python.

    Both are kept so that nothing inside a step has to ask the device for a length (a host sync).
    """

    lengths: tuple[int, ...]
    """Tokens of each sample, in row order."""
    cu_seqlens: Tensor
    """int32 (S+1): 0, then the running sum of `lengths`; on the device of the row."""
    index_L: Tensor
    """int64 (L): the 0-based sample that each token belongs to."""
    _block_masks: dict[int, tuple[Segments | None, Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Segments:
        """Raises ValueError where a length is negative."""
        lengths = tuple(int(n) for n in lengths)
        if any(n < 0 for n in lengths):
            raise ValueError(f"{lengths = } has a negative length")
        cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        index_L = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
        return cls(lengths, cu_seqlens.to(device, non_blocking=True), index_L.to(device, non_blocking=True))

    @classmethod
    def of(cls, segments: Segments | Tensor) -> Segments:
        """A `Segments` as it is; a bare cu_seqlens tensor is read back once (a host sync where it lies on a GPU)."""
        if isinstance(segments, Segments):
            return segments
        bounds = segments.tolist()
        if not bounds or bounds[0] != 0:
            raise ValueError(f"cu_seqlens starts with 0 and ends with the row's length, got {bounds}")
        return cls.from_lengths([end - start for start, end in itertools.pairwise(bounds)], segments.device)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return int(self.index_L.shape[0])

    @property
    def max_length(self) -> int:
        return max(self.lengths, default=0)

    def to(self, device: torch.device | str) -> Segments:
        return Segments(
            self.lengths,
            self.cu_seqlens.to(device, non_blocking=True),
            self.index_L.to(device, non_blocking=True),
        )

    def repeated(self, times: int) -> Segments:
        """The same samples `times` over in one row, as guidance needs them."""
        return Segments.from_lengths(self.lengths * times, self.cu_seqlens.device)

    def with_extra(self, num_tokens: int) -> tuple[Segments, Tensor, Tensor]:
        """Room for `num_tokens` more in front of every sample.

        Returns:
            The longer segments, and the rows in them of what was there and of what is new, both in row order.
        """
        longer = Segments.from_lengths([length + num_tokens for length in self.lengths])
        starts = longer.cu_seqlens[:-1].long()
        extra_rows = (starts[:, None] + torch.arange(num_tokens)).flatten()
        is_old = torch.ones(longer.num_tokens, dtype=torch.bool)
        is_old[extra_rows] = False
        device = self.cu_seqlens.device
        return longer.to(device), is_old.nonzero()[:, 0].to(device), extra_rows.to(device)

    def sum(self, values_LD: Tensor) -> Tensor:
        """Sum over the tokens of each sample: (L, D) -> (S, D).

        A product with the 0/1 membership matrix: the same sum every time (atomic adds are not), no host sync, and
        S*L*D operations beside the 12*L*D^2 of a block. The number of samples comes from a tensor's shape, which
        torch.compile may leave open; from `lengths`, every row of another number would be compiled anew.
        """
        samples = torch.arange(self.cu_seqlens.shape[0] - 1, device=values_LD.device)
        with torch.autocast(values_LD.device.type, enabled=False):  # autocast would sum in bfloat16
            return (self.index_L == samples[:, None]).to(values_LD.dtype) @ values_LD

    def mean(self, values_L: Tensor) -> Tensor:
        """Mean over the tokens of each sample: (L,) -> (S,)."""
        lengths_S = torch.diff(self.cu_seqlens).to(values_L.dtype)
        return self.sum(values_L[:, None])[:, 0] / lengths_S

    def block_mask(self, keys: Segments) -> Any:
        """flex_attention's block mask: a query sees the keys of its own sample. Built once per pair of rows."""
        known = self._block_masks.get(id(keys))
        if known is None:
            mask_of = document_mask(self.index_L, keys.index_L)
            from torch.nn.attention.flex_attention import create_block_mask

            mask = create_block_mask(
                mask_of, B=None, H=None, Q_LEN=self.num_tokens, KV_LEN=keys.num_tokens, device=self.index_L.device
            )
            # `keys` is held so that its id stays its own; itself it does not hold, so that it dies with its batch.
            known = self._block_masks[id(keys)] = (None if keys is self else keys, mask)
        return known[1]


def document_mask(index_L: Tensor, index_M: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """flex_attention's `mask_mod` that keeps samples apart."""

    def same_sample(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return index_L[query] == index_M[key]

    return same_sample


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
