"""A captioner whose captions are scored by another: text from the first, clip scores and embeddings from the second.

    captioner = load_captioner("vlm:Qwen/Qwen2.5-VL-7B-Instruct", scorer="tiny")

Frames are read once, at the larger `num_frames` and `frame_px` of the two; each captioner subsamples what it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recaption.captioners.interface import CaptionBatch, Captioner, TextTower
from recaption.errors import UsageError
from recaption.records import Caption


class CaptionerWithScorer:
    """Implements `Captioner`; name, weights hash and text tower are those of `captioner`, all scores those of `scorer`."""

    has_contrastive_head = True

    def __init__(self, captioner: Captioner, scorer: Captioner) -> None:
        if not scorer.has_contrastive_head:
            raise UsageError(
                f"{scorer.name} cannot score captions: it has no contrastive head; use tiny or open_clip: as scorer"
            )
        self.captioner, self.scorer = captioner, scorer
        self.name, self.weights_hash = captioner.name, captioner.weights_hash
        self.num_frames = max(captioner.num_frames, scorer.num_frames)
        self.frame_px = max(captioner.frame_px, scorer.frame_px)
        self.max_tokens, self.kinds = captioner.max_tokens, captioner.kinds
        self.num_beams = captioner.num_beams
        self.min_clip_score = scorer.min_clip_score

    def min_clip_scores(self, clip_embeddings_BD: np.ndarray) -> np.ndarray | None:
        return self.scorer.min_clip_scores(clip_embeddings_BD)

    @property
    def text_tower(self) -> TextTower:
        return self.captioner.text_tower

    def caption(self, clips: Sequence[np.ndarray], **settings: Any) -> list[Caption]:
        return self.caption_with_embeddings(clips, **settings).captions

    def caption_with_embeddings(self, clips: Sequence[np.ndarray], **settings: Any) -> CaptionBatch:
        """As `Captioner.caption_with_embeddings`; of several samples the scorer chooses the best."""
        clip_embeddings_BD = self.scorer.embed_clips(clips)

        def score_samples(rows: Sequence[int], texts: Sequence[str]) -> np.ndarray:
            scores_R: np.ndarray = (clip_embeddings_BD[list(rows)] * self.scorer.embed_texts(texts)).sum(axis=1)
            return scores_R

        if settings.get("num_samples", 1) > 1:
            settings["score_samples"] = score_samples
        captions = self.captioner.caption_with_embeddings(clips, **settings).captions
        text_embeddings_BD = self.scorer.embed_texts([caption.text for caption in captions])
        cosines = (clip_embeddings_BD * text_embeddings_BD).sum(axis=1).tolist()
        scored = [replace(caption, clip_score=score) for caption, score in zip(captions, cosines, strict=True)]
        return CaptionBatch(scored, clip_embeddings_BD, text_embeddings_BD)

    def embed_clips(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        return self.scorer.embed_clips(clips)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self.scorer.embed_texts(texts)

    def score(self, clips: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        return self.scorer.score(clips, texts)
