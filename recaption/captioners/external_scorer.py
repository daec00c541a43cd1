"""A captioner that another one scores: words from the first, clip scores and embeddings from the second.

    captioner = load_captioner("vlm:Qwen/Qwen2.5-VL-7B-Instruct", scorer="tiny")

Both see the same frames, as many and as large as the more demanding of the two asks for; each takes of them what it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recaption.captioners.interface import Captioner, Described, TextTower
from recaption.errors import UsageError
from recaption.records import Caption


class ScoredCaptioner:
    """Implements `captioners.Captioner`; its name and weights are those of the one that writes."""

    can_score = True

    def __init__(self, writer: Captioner, scorer: Captioner) -> None:
        if not scorer.can_score:
            raise UsageError(f"{scorer.name} scores nothing: it has no contrastive space; take tiny or open_clip:")
        self.writer, self.scorer = writer, scorer
        self.name, self.weights_hash = writer.name, writer.weights_hash
        self.num_frames = max(writer.num_frames, scorer.num_frames)
        self.frame_px = max(writer.frame_px, scorer.frame_px)
        self.max_tokens, self.kinds = writer.max_tokens, writer.kinds
        self.num_beams = writer.num_beams
        self.min_clip_score = scorer.min_clip_score

    def least_scores(self, clip_BD: np.ndarray) -> np.ndarray | None:
        return self.scorer.least_scores(clip_BD)

    @property
    def text_tower(self) -> TextTower:
        return self.writer.text_tower

    def caption(self, clips: Sequence[np.ndarray], **settings: Any) -> list[Caption]:
        return self.describe(clips, **settings).captions

    def describe(self, clips: Sequence[np.ndarray], **settings: Any) -> Described:
        captions = self.writer.describe(clips, **settings).captions
        clip_BD = self.scorer.embed_clips(clips)
        text_BD = self.scorer.embed_texts([caption.text for caption in captions])
        cosines = (clip_BD * text_BD).sum(axis=1).tolist()
        scored = [replace(caption, clip_score=score) for caption, score in zip(captions, cosines, strict=True)]
        return Described(scored, clip_BD, text_BD)

    def embed_clips(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        return self.scorer.embed_clips(clips)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self.scorer.embed_texts(texts)

    def score(self, clips: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        return self.scorer.score(clips, texts)
