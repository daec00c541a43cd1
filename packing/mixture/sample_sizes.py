"""What the planner knows of each sample before any is read: its size, its bucket, and the key of what chance decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from packing.mixture.rng import index_keys, name_keys
from recaption.errors import UsageError


@dataclass(frozen=True)
class SampleSizes:
    """Of N samples. Whatever but `num_tokens` is not known is None; rules that need it are refused.

    SampleSizes(np.array([64, 320]), num_frames=np.array([1, 5]), clip_ids=["a", "b"])
    """

    num_tokens: np.ndarray
    """Of the whole sample; may be a memory map."""
    num_frames: np.ndarray | None = None
    """Latent frames of the whole sample."""
    buckets: Sequence[str] | np.ndarray | None = None
    """Name of each sample's bucket."""
    clip_ids: Sequence[str] | None = field(default=None, repr=False)
    """Without them, what chance decides for a sample hangs on its place in the set."""
    patch_frames: int = 1
    """Latent frames of one token: samples are cut at multiples of it."""

    def __len__(self) -> int:
        return len(self.num_tokens)

    @cached_property
    def keys(self) -> np.ndarray:
        """uint64 (N)."""
        return index_keys(len(self)) if self.clip_ids is None else name_keys(self.clip_ids)

    @cached_property
    def _bucket_codes(self) -> tuple[dict[str, int], np.ndarray]:
        if self.buckets is None:
            raise UsageError("rules for buckets need a run folder: token counts alone do not name them")
        names, codes = np.unique(np.asarray(self.buckets), return_inverse=True)
        return {str(name): code for code, name in enumerate(names)}, codes.astype(np.int32)

    def in_bucket(self, name: str, at: np.ndarray) -> np.ndarray:
        """bool: which of the samples `at` these places are in this bucket. Raises UsageError where no sample is."""
        code_of, codes = self._bucket_codes
        if name not in code_of:
            raise UsageError(f"no sample is in bucket {name}; there are {', '.join(code_of)}")
        return codes[at] == code_of[name]

    def frames(self, wanted_by: str) -> np.ndarray:
        """`num_frames`, for what cannot do without.

        Raises:
            UsageError: it is not known, or tokens do not divide into frames.
        """
        if self.num_frames is None:
            raise UsageError(f"{wanted_by} needs the frames of each sample; token counts alone (--lengths) lack them")
        return self.num_frames

    def check_frames(self) -> None:
        """Raises UsageError where frames and tokens do not belong together."""
        if self.num_frames is None:
            return
        units = self.num_frames // self.patch_frames
        if len(units) and (units.min() < 1 or (self.num_frames % self.patch_frames).any()):
            raise UsageError(f"latents do not divide into patches of {self.patch_frames} frames")
        wrong = np.flatnonzero(self.num_tokens % np.maximum(1, units))
        if len(wrong):
            raise UsageError(
                f"sample {wrong[0]} has {self.num_tokens[wrong[0]]} tokens in {units[wrong[0]]} frames, which do not "
                "divide: the samples were counted with other strides or another patch than these settings name"
            )
