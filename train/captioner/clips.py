"""Sources of captioned clips: the CaptionClips protocol and epoch shuffling.

    clips = SceneClips()                                    # or RunClips(...)
    clip = clips.clip(7, framing, num_frames=8)
    clip.pixels_THWC                                        # uint8, framed
    clip.captions["descriptive"], clip.captions["short"]    # tuples of equally valid texts

`shuffled_index` maps a position in the endless training stream to a clip number of a finite source; every epoch has its
own order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from recaption.captioners.preprocess import FramePreprocessor
from recaption.records import CaptionFields


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedClip:
    """One preprocessed clip and its reference captions."""

    clip_id: str
    pixels_THWC: np.ndarray
    """uint8, `num_frames` frames, framed for the captioner."""
    captions: Mapping[str, Sequence[str]]
    """Kind (one of `captions.text.KINDS`) -> equally valid texts. Training samples one; evaluation uses all as references.
    Kinds that the clip lacks are absent."""
    truth: CaptionFields = field(default_factory=CaptionFields)
    """Ground-truth fields (scenes); empty if unknown."""


class CaptionClips(Protocol):
    """A source of clips for training or evaluating a captioner; pickled to DataLoader workers."""

    name: str
    kinds: tuple[str, ...]
    """Caption kinds that its clips may have."""
    fields: str
    """`scenes` if captions use the closed vocabulary that `recaption.scenes.captions.fields_in` parses, else ""."""
    num_clips: int | None
    """Clip numbers are 0 to num_clips - 1; None: endless, any number is a clip."""

    def clip(self, number: int, preprocessor: FramePreprocessor, *, num_frames: int, epoch: int = 0) -> CaptionedClip:
        """Clip `number`; deterministic in its arguments.

        Args:
            preprocessor: resizes the frames that `uniform_frame_indices(..., repeat=True)` selects.
            epoch: completed passes over a finite source. Above 0 the clip may be augmented (other frames, other crop);
                evaluation uses 0.

        Raises:
            VideoError: this clip cannot be read; training takes the next one instead.
        """
        ...

    def texts(self, count: int) -> list[str]:
        """About `count` of its captions, without decoding: for training and checking a vocabulary."""
        ...

    def description(self) -> dict[str, Any]:
        """JSON-serialisable identity of clips and captions: a resume on other data is refused."""
        ...


def shuffled_index(position: int, num_clips: int | None, *, seed: int) -> tuple[int, int]:
    """(clip number, epoch) at a position of the endless stream: every epoch has each clip once, in its own order."""
    if num_clips is None:
        return position, 0
    epoch, index = divmod(position, num_clips)
    return int(_permutation(num_clips, seed, epoch)[index]), epoch


@lru_cache(maxsize=8)
def _permutation(num_clips: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 5, epoch]).permutation(num_clips)
