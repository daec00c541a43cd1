"""What a captioner learns from: clips by number, with the texts that may be said about each. A new source is one class.

    clips = SceneClips()                                    # or RunClips(...), or Mixture(((photos, 3), (scenes, 1)))
    clip = clips.clip(7, framing, num_frames=8)
    clip.pixels_THWC                                        # uint8, framed
    clip.captions["descriptive"], clip.captions["short"]    # tuples: any of these texts is right

Batches ask for places in an endless stream; `numbered` turns a place into a clip number of a finite source, each epoch
in an order of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from recaption.captioners.preprocess import FramePreprocessor
from recaption.errors import UsageError
from recaption.records import CaptionFields


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedClip:
    """One clip as the captioner sees it, and everything that may be said about it."""

    clip_id: str
    pixels_THWC: np.ndarray
    """uint8, `num_frames` frames, framed for the captioner."""
    captions: Mapping[str, Sequence[str]]
    """Kind (one of `CAPTION_KINDS`) -> texts, each as right as the other. Training draws one; all are references. A
    kind that the clip lacks is absent."""
    truth: CaptionFields = field(default_factory=CaptionFields)
    """Fields that are known to be true (scenes); empty where nobody knows."""


class CaptionClips(Protocol):
    """A source of clips to train or measure a captioner on. Pickled to the processes that make batches."""

    name: str
    kinds: tuple[str, ...]
    """Kinds of captions that its clips may have."""
    fields: str
    """`scenes` where captions use the closed vocabulary that `scene_captions.fields_in` reads fields out of, else ""."""
    num_clips: int | None
    """Clip numbers run from 0 to this; None: endless, any number is a clip."""

    def clip(self, number: int, preprocessor: FramePreprocessor, *, num_frames: int, epoch: int = 0) -> CaptionedClip:
        """The same for the same arguments, on any machine.

        Args:
            preprocessor: resizes the frames that `uniform_frame_indices(..., repeat=True)` selects.
            epoch: how often a finite source has been gone through. Where above 0 the clip may be varied (other frames,
                other crop); measuring uses 0.

        Raises:
            VideoError: this clip cannot be read; another one is taken in its place.
        """
        ...

    def texts(self, count: int) -> list[str]:
        """About `count` of its captions without any pixels: what a vocabulary is learned from and checked against."""
        ...

    def description(self) -> dict[str, Any]:
        """JSON-simple, another one where the clips or captions are others: a resume on other data is refused."""
        ...


def numbered(place: int, num_clips: int | None, *, seed: int) -> tuple[int, int]:
    """(clip number, epoch) at a place of the endless stream: every epoch shows each clip once, in its own order."""
    if num_clips is None:
        return place, 0
    epoch, position = divmod(place, num_clips)
    return int(_order(num_clips, seed, epoch)[position]), epoch


@lru_cache(maxsize=8)
def _order(num_clips: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 5, epoch]).permutation(num_clips)


class Mixture:
    """Several sources in fixed proportions, as one endless source: weights 3 and 1 give A B A A, A B A A, ..."""

    def __init__(self, parts: Sequence[tuple[CaptionClips, int]], *, seed: int = 0) -> None:
        """
        Args:
            parts: sources and how many clips of each come in every round of `sum of weights` clips.
            seed: of the order in which finite sources are gone through.
        """
        if not parts or min(weight for _, weight in parts) < 1:
            raise UsageError("a mixture needs one source or more, each with a weight of 1 or more")
        self.name = "+".join(source.name for source, _ in parts)
        self.num_clips: int | None = None
        self.fields = next((source.fields for source, _ in parts if source.fields), "")
        self.kinds: tuple[str, ...] = tuple(dict.fromkeys(kind for source, _ in parts for kind in source.kinds))
        self._parts = list(parts)
        self._seed = seed
        # every part evenly over the round: its k-th clip at (k + 1/2) / weight
        places = [((k + 0.5) / weight, index, k) for index, (_, weight) in enumerate(parts) for k in range(weight)]
        self._round = [(index, k) for _, index, k in sorted(places)]

    def clip(self, number: int, preprocessor: FramePreprocessor, *, num_frames: int, epoch: int = 0) -> CaptionedClip:
        round_number, position = divmod(number, len(self._round))
        index, k = self._round[position]
        source, weight = self._parts[index]
        inner, inner_epoch = numbered(round_number * weight + k, source.num_clips, seed=self._seed)
        return source.clip(inner, preprocessor, num_frames=num_frames, epoch=inner_epoch)

    def texts(self, count: int) -> list[str]:
        total = sum(weight for _, weight in self._parts)
        return [text for source, weight in self._parts for text in source.texts(max(1, count * weight // total))]

    def description(self) -> dict[str, Any]:
        parts = [{"weight": weight, **source.description()} for source, weight in self._parts]
        return {"name": self.name, "parts": parts, "seed": self._seed}
