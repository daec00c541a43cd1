"""The captioner protocol and what passes through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import numpy as np
    import torch

    from recaption.records import Caption


class TextTower(Protocol):
    """The text side of a captioner, by itself."""

    width: int
    pooled_width: int
    max_tokens: int

    def encode(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """text_MD float32 (tokens of all texts one after another), lengths_S int64, pooled_SD float32."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Of each whole text; what exceeds `max_tokens` is cut by `encode`."""
        ...


@dataclass(frozen=True)
class Described:
    """Captions of B clips, and where clips and captions lie in the captioner's contrastive space."""

    captions: list[Caption]
    clip_BD: np.ndarray | None
    """float32, unit length; None from a captioner without contrastive space."""
    text_BD: np.ndarray | None
    """float32, unit length: of the captions. `clip_BD @ text_BD.T` is what `score` returns for them."""


class Captioner(Protocol):
    """A model that describes clips."""

    name: str
    weights_hash: str
    """First 12 hex digits of the weights' sha256."""
    num_frames: int
    """Frames it looks at; clips may be given with more (sampled evenly) or fewer."""
    frame_px: int
    """Side of the square it looks at; larger frames are only more work to read."""
    max_tokens: int
    """Most tokens of a caption."""
    kinds: tuple[str, ...]
    """Of `captions.KINDS`, those that it can be asked for; `descriptive` at least."""
    num_beams: int
    """Beams that it searches where it is asked for no number and with no temperature; 1 is greedy."""
    can_score: bool
    """Whether it has a contrastive space; without one, `score` and the embeddings raise `UsageError`."""
    min_clip_score: float | None
    """Below this its captions are rather wrong than right, by its own calibration; None where it has none."""

    def least_scores(self, clip_BD: np.ndarray) -> np.ndarray | None:
        """The same for clips that lie there, (B,): one that the captioner knows nothing like may need more."""
        ...

    @property
    def text_tower(self) -> TextTower:
        """Raises UsageError where there is none."""
        ...

    def caption(
        self,
        clips: Sequence[np.ndarray],
        *,
        kind: str = "descriptive",
        max_tokens: int | None = None,
        num_beams: int = 0,
        seed: int = 0,
        temperature: float = 0.0,
    ) -> list[Caption]:
        """One caption per clip; `reason` is set on those that fail a gate. With a temperature, words are drawn."""
        ...

    def describe(
        self,
        clips: Sequence[np.ndarray],
        *,
        kind: str = "descriptive",
        max_tokens: int | None = None,
        num_beams: int = 0,
        seed: int = 0,
        temperature: float = 0.0,
    ) -> Described:
        """`caption` with the embeddings of clips and captions; each clip is encoded once for all of it.

        Raises:
            UsageError: `kind` is not one of `kinds`.
        """
        ...

    def embed_clips(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Where clips lie in the contrastive space: (B, D) float32, unit length."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Where texts lie in it: (S, D) float32, unit length."""
        ...

    def score(self, clips: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Contrastive similarity (num_clips, num_texts)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedClip:
    """What is kept of a clip's frames once they have been looked at: enough to describe and to score it again."""

    clip_sha256: str
    """Of the uint8 frames."""
    pooled_D: np.ndarray
    """float32, unit length."""
    tokens_ND: np.ndarray
    """float16."""
