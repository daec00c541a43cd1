"""Segments of a pack: which tokens belong to which sample.

    segments = Segments.from_lengths([6, 2])       # pack of 8 tokens, two samples
    segments.cu_seqlens                            # tensor([0, 6, 8])
    segments.segment_ids_L                         # tensor([0, 0, 0, 0, 0, 0, 1, 1])

Shape suffixes: L, M tokens of a pack, S samples of a pack, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from train.layers.block_mask import block_diagonal_mask
from train.parallel.transfer import copied


@dataclass(frozen=True, eq=False)
class Segments:
    """Lengths of the samples of a pack, as Python numbers and as tensors.

    Both, so that no training step has to read a length back from the device (a host sync).
    """

    lengths: tuple[int, ...]
    """Tokens of each sample, in the order of the pack."""
    cu_seqlens: Tensor
    """int32 (S+1): 0, then the cumulative sum of `lengths`; on the device of the pack."""
    segment_ids_L: Tensor
    """int64 (L): 0-based index of the sample that each token belongs to."""
    _block_masks: dict[int, tuple[Segments | None, Any]] = field(default_factory=dict, repr=False)
    _prefixed: dict[int, tuple[Segments, Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _repeated: dict[int, Segments] = field(default_factory=dict, repr=False)
    _joined: dict[int, tuple[Segments, Segments, Tensor, Tensor]] = field(default_factory=dict, repr=False)
    text_selections: dict[tuple[bool, ...], Any] = field(default_factory=dict, repr=False)
    """Of the samples' texts, by which of them are dropped (text_condition.py): a solver asks for the same every step."""

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Segments:
        """Raises ValueError where a length is negative."""
        lengths = tuple(int(n) for n in lengths)
        if any(n < 0 for n in lengths):
            raise ValueError(f"{lengths = } has a negative length")
        cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        segment_ids_L = torch.repeat_interleave(
            torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64), output_size=sum(lengths)
        )
        return cls(lengths, copied(cu_seqlens, device), copied(segment_ids_L, device))

    @classmethod
    def of(cls, segments: Segments | Tensor) -> Segments:
        """`Segments` as it is, or from a cu_seqlens tensor, which is read back once (a host sync on a GPU)."""
        if isinstance(segments, Segments):
            return segments
        bounds = segments.tolist()
        if not bounds or bounds[0] != 0:
            raise ValueError(f"cu_seqlens must start with 0 and end with the length of the pack, got {bounds}")
        return cls.from_lengths([end - start for start, end in itertools.pairwise(bounds)], segments.device)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return int(self.segment_ids_L.shape[0])

    @property
    def max_length(self) -> int:
        return max(self.lengths, default=0)

    def to(self, device: torch.device | str) -> Segments:
        """On another device, with what `with_prefix_tokens` has been asked for already."""
        prefixed = {
            num_tokens: (longer.to(device), copied(old_L, device), copied(new_L, device))
            for num_tokens, (longer, old_L, new_L) in self._prefixed.items()
        }
        cu_seqlens, segment_ids_L = copied(self.cu_seqlens, device), copied(self.segment_ids_L, device)
        return Segments(self.lengths, cu_seqlens, segment_ids_L, _prefixed=prefixed)

    def repeated(self, times: int) -> Segments:
        """The same samples `times` times in one pack, for classifier-free guidance. Built once."""
        if times not in self._repeated:
            self._repeated[times] = Segments.from_lengths(self.lengths * times, self.cu_seqlens.device)
        return self._repeated[times]

    def with_prefix_tokens(self, num_tokens: int) -> tuple[Segments, Tensor, Tensor]:
        """Segments with `num_tokens` more tokens in front of every sample. Built once.

        Returns:
            The longer segments, and the indices in them of the old and of the new tokens, both in order.
        """
        if num_tokens not in self._prefixed:
            self._prefixed[num_tokens] = self._with_prefix_tokens(num_tokens)
        return self._prefixed[num_tokens]

    def _with_prefix_tokens(self, num_tokens: int) -> tuple[Segments, Tensor, Tensor]:
        longer, prefix_index, old_index = self._equal(num_tokens)._join(self)
        return longer, old_index, prefix_index

    def _equal(self, num_tokens: int) -> Segments:
        """As many samples, of `num_tokens` tokens each; made on the device."""
        device = self.cu_seqlens.device
        cu_seqlens = num_tokens * torch.arange(len(self) + 1, device=device, dtype=torch.int32)
        segment_ids_L = torch.arange(len(self), device=device).repeat_interleave(num_tokens)
        return Segments((num_tokens,) * len(self), cu_seqlens, segment_ids_L)

    def joined(self, other: Segments) -> tuple[Segments, Tensor, Tensor]:
        """Segments with each sample's tokens here in front of its tokens in `other`. Built once, on the device.

        Returns:
            The longer segments, and the indices in them of these tokens and of the other ones, both in order.

        Raises:
            ValueError: another number of samples.
        """
        if len(self) != len(other):
            raise ValueError(f"{len(self)} samples joined with {len(other)}")
        if id(other) not in self._joined:
            # The reference to `other` keeps its id valid.
            self._joined[id(other)] = (other, *self._join(other))
        return self._joined[id(other)][1:]

    def _join(self, other: Segments) -> tuple[Segments, Tensor, Tensor]:
        device = self.cu_seqlens.device
        own_index = torch.arange(self.num_tokens, device=device) + other.cu_seqlens[:-1][self.segment_ids_L]
        other_index = torch.arange(other.num_tokens, device=device) + self.cu_seqlens[1:][other.segment_ids_L]
        ids = self.segment_ids_L.new_empty(self.num_tokens + other.num_tokens)
        ids.index_copy_(0, own_index, self.segment_ids_L).index_copy_(0, other_index, other.segment_ids_L)
        lengths = tuple(own + others for own, others in zip(self.lengths, other.lengths))
        return Segments(lengths, self.cu_seqlens + other.cu_seqlens, ids), own_index, other_index

    def selected(self, samples: Sequence[int], sample_N: Tensor) -> tuple[Segments, Tensor]:
        """Segments of some samples, in any order and with repeats, and the tokens of theirs in this pack.

        Args:
            samples: N samples; `sample_N` holds the same numbers on the device, so that nothing is copied.
        """
        lengths = tuple(self.lengths[sample] for sample in samples)
        starts_N, length_N = self.cu_seqlens[:-1][sample_N], torch.diff(self.cu_seqlens)[sample_N]
        cu_seqlens = torch.nn.functional.pad(length_N.cumsum(0), (1, 0)).to(torch.int32)
        token_L = torch.arange(sum(lengths), device=sample_N.device)
        ids_L = torch.searchsorted(cu_seqlens[1:].long(), token_L, right=True)  # repeat_interleave reads lengths back
        index_L = token_L + (starts_N - cu_seqlens[:-1])[ids_L]
        return Segments(lengths, cu_seqlens, ids_L), index_L

    def sum(self, values_LD: Tensor) -> Tensor:
        """Sum over the tokens of each sample: (L, D) -> (S, D).

        A product with the 0/1 membership matrix: deterministic (atomic adds are not), no host sync, and
        S*L*D operations against the 12*L*D^2 of a block. The number of samples comes from a tensor's shape, which
        torch.compile keeps dynamic; taken from `lengths`, every other number of samples would be compiled again.
        """
        samples = torch.arange(self.cu_seqlens.shape[0] - 1, device=values_LD.device)
        with torch.autocast(values_LD.device.type, enabled=False):  # autocast would sum in bfloat16
            return (self.segment_ids_L == samples[:, None]).to(values_LD.dtype) @ values_LD

    def mean(self, values_L: Tensor) -> Tensor:
        """Mean over the tokens of each sample: (L,) -> (S,)."""
        lengths_S = torch.diff(self.cu_seqlens).to(values_L.dtype)
        return self.sum(values_L[:, None])[:, 0] / lengths_S

    def block_mask(self, keys: Segments) -> Any:
        """flex_attention's block mask: queries attend to the keys of their own sample. Built once per pair of packs."""
        cached = self._block_masks.get(id(keys))
        if cached is None:
            mask = block_diagonal_mask(self.lengths, keys.lengths, self.segment_ids_L, keys.segment_ids_L)
            # The reference to `keys` keeps its id valid; none to `self`, so that it is freed with its batch.
            cached = self._block_masks[id(keys)] = (None if keys is self else keys, mask)
        return cached[1]
