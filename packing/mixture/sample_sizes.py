"""Token count, latent frames, bucket and RNG key of each sample: all that the planner knows before any sample is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from recaption.errors import UsageError
from recaption.rng import keys_from_indices, keys_from_names


@dataclass(frozen=True)
class SampleSizes:
    """Of N samples. Only `num_tokens` is required; a rule that needs a field which is None is refused.

    SampleSizes(np.array([64, 320]), num_frames=np.array([1, 5]), clip_ids=["a", "b"])
    """

    num_tokens: np.ndarray
    """Of the whole sample; may be a memory map."""
    num_frames: np.ndarray | None = None
    """Latent frames of the whole sample."""
    buckets: Sequence[str] | np.ndarray | None = None
    """Name of each sample's bucket."""
    clip_ids: Sequence[str] | None = field(default=None, repr=False)
    """Seeds of each sample's random numbers; None: its index in the set instead."""
    patch_frames: int = 1
    """Latent frames of one token: temporal crops start and end at multiples of it."""

    def __len__(self) -> int:
        return len(self.num_tokens)

    @cached_property
    def keys(self) -> np.ndarray:
        """uint64 (N): RNG keys."""
        return keys_from_indices(len(self)) if self.clip_ids is None else keys_from_names(self.clip_ids)

    @cached_property
    def _bucket_codes(self) -> tuple[dict[str, int], np.ndarray]:
        if self.buckets is None:
            raise UsageError("rules for buckets need a run folder: token counts alone do not name them")
        names, codes = np.unique(np.asarray(self.buckets), return_inverse=True)
        return {str(name): code for code, name in enumerate(names)}, codes.astype(np.int32)

    def in_bucket(self, name: str, sample_indices: np.ndarray) -> np.ndarray:
        """bool: which of these samples are in bucket `name`.

        Raises:
            UsageError: no sample of the set is in it.
        """
        code_of, codes = self._bucket_codes
        if name not in code_of:
            raise UsageError(f"no sample is in bucket {name}; there are {', '.join(code_of)}")
        return codes[sample_indices] == code_of[name]

    def require_num_frames(self, required_by: str) -> np.ndarray:
        """`num_frames`, or a UsageError that names what needs them."""
        if self.num_frames is None:
            raise UsageError(f"{required_by} needs the frames of each sample; token counts alone (--lengths) lack them")
        return self.num_frames

    def check_frames(self) -> None:
        """Raises UsageError where `num_tokens` is not a multiple of the token frames, or `num_frames` of `patch_frames`."""
        if self.num_frames is None:
            return
        token_frames = self.num_frames // self.patch_frames
        if len(token_frames) and (token_frames.min() < 1 or (self.num_frames % self.patch_frames).any()):
            raise UsageError(f"latents do not divide into patches of {self.patch_frames} frames")
        wrong = np.flatnonzero(self.num_tokens % np.maximum(1, token_frames))
        if len(wrong):
            raise UsageError(
                f"sample {wrong[0]} has {self.num_tokens[wrong[0]]} tokens in {token_frames[wrong[0]]} frames, which do "
                "not divide: the samples were counted with other strides or another patch than these settings name"
            )
