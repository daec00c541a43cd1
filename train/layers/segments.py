"""Segments: which tokens of a pack belong to which sample."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


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
