"""Protocols of captioners and their text towers, and the records they take and return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

    from recaption.records import Caption


class TextTower(Protocol):
    """A captioner's text encoder."""

    width: int
    pooled_width: int
    max_tokens: int

    def encode(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """text_MD float32 (token features of all texts, concatenated), lengths_S int64, pooled_SD float32."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens per whole text; `encode` truncates what exceeds `max_tokens`."""
        ...


@dataclass(frozen=True)
class CaptionBatch:
    """Captions of B clips, with the contrastive embeddings of clips and captions."""

    captions: list[Caption]
    clip_embeddings_BD: np.ndarray | None
    """float32, unit length; None from a captioner without a contrastive head."""
    text_embeddings_BD: np.ndarray | None
    """float32, unit length, one per caption. `clip_embeddings_BD @ text_embeddings_BD.T` is `score(clips, captions)`."""

    def take(self, rows: Sequence[int]) -> CaptionBatch:
        """The captions and embeddings at `rows`."""
        clips_BD, texts_BD = self.clip_embeddings_BD, self.text_embeddings_BD
        return CaptionBatch(
            [self.captions[row] for row in rows],
            None if clips_BD is None else clips_BD[list(rows)],
            None if texts_BD is None else texts_BD[list(rows)],
        )

    def with_rows(self, rows: Sequence[int], other: CaptionBatch) -> CaptionBatch:
        """A copy with the captions of `other`, one per row, at `rows`; clips stay."""
        replaced = dict(zip(rows, other.captions, strict=True))
        texts_BD = self.text_embeddings_BD
        if texts_BD is not None and other.text_embeddings_BD is not None:
            texts_BD = texts_BD.copy()
            texts_BD[list(rows)] = other.text_embeddings_BD
        captions = [replaced.get(row, caption) for row, caption in enumerate(self.captions)]
        return CaptionBatch(captions, self.clip_embeddings_BD, texts_BD)


class Captioner(Protocol):
    """A model that captions clips."""

    name: str
    weights_hash: str
    """First 12 hex digits of the weights' sha256."""
    num_frames: int
    """Frames per clip that it encodes; longer clips are sampled uniformly, shorter ones are allowed."""
    frame_px: int
    """Side of its square input; reading larger frames only costs time."""
    max_tokens: int
    """Maximum number of tokens of a caption."""
    kinds: tuple[str, ...]
    """Caption kinds that it supports (all kinds: `recaption.captions.text`); at least `descriptive`."""
    num_beams: int
    """Default beam count, used if the call sets neither `num_beams` nor a temperature; 1 is greedy."""
    has_contrastive_head: bool
    """Whether it embeds clips and texts in one space; without, `score` and the `embed_` methods raise `UsageError`."""
    min_clip_score: float | None
    """Clip score below which its captions are more often wrong than right, by its own calibration; None if uncalibrated."""

    def min_clip_scores(self, clip_embeddings_BD: np.ndarray) -> np.ndarray | None:
        """(B,) `min_clip_score` per clip embedding; it may be higher for clips unlike the training data."""
        ...

    @property
    def text_tower(self) -> TextTower:
        """Raises UsageError if there is none."""
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
        """One caption per clip; `reason` is set on those that fail a text check. Sampled if `temperature` > 0."""
        ...

    def caption_with_embeddings(
        self,
        clips: Sequence[np.ndarray],
        *,
        kind: str = "descriptive",
        max_tokens: int | None = None,
        num_beams: int = 0,
        seed: int = 0,
        temperature: float = 0.0,
    ) -> CaptionBatch:
        """`caption`, with the embeddings of clips and captions; each clip is encoded once for both.

        Raises:
            UsageError: `kind` is not one of `kinds`.
        """
        ...

    def embed_clips(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Contrastive embeddings (B, D) of clips: float32, unit length."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Contrastive embeddings (S, D) of texts: float32, unit length."""
        ...

    def score(self, clips: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Contrastive similarity (num_clips, num_texts)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedClip:
    """A clip's vision features: enough to caption and score it again without its frames."""

    clip_sha256: str
    """sha256 of the uint8 frames."""
    pooled_D: np.ndarray
    """Contrastive embedding, float32, unit length."""
    tokens_ND: np.ndarray
    """Input of the caption decoder, float16."""
