"""Training batches of the captioner, indexed by number: clips with tokenised captions.

    batches = CaptionBatches(clips, vocabulary, framing, num_frames=8, stages=stages, batch_size=32, ...)
    batches[5]["pixels_BTHWC"], batches[5]["texts_SM"]

A batch depends only on its number, rank and settings. Each clip has one target caption (after the prompt prefix of its
kind) and up to two positives for the contrastive loss, a descriptive and a short one. Texts are deduplicated per batch.

Shapes: B clips of this rank, T frames, S distinct texts, M tokens of the context, K positives per clip.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recaption.captioners.preprocess import FramePreprocessor
from recaption.captioners.videococa.captioner import token_lengths
from recaption.captioners.videococa.tokenizer import BPETokenizer, ClipTokenizer, tokenizer_from_merges
from recaption.captions.text import CAPTION_KINDS
from recaption.errors import RecaptionError, VideoError
from train.captioner.clips import CaptionClips, CaptionedClip, shuffled_index
from train.captioner.stages import Stage, stage_at

CONTRASTIVE_KINDS = ("descriptive", "short")
"""Kinds used as positives of the contrastive loss: full captions, and short texts like typed queries."""
MAX_CONSECUTIVE_UNREADABLE = 50
_SEED_SPREAD = 7_919
logger = logging.getLogger(__name__)


class CaptionBatches:
    """Batch number -> dict of tensors and counts; a map-style dataset for the DataLoader.

    Keys: pixels_BTHWC, texts_SM (token ids), caption_index_B (target caption of each clip, an index into S), prefix_B and
    length_B (its prefix tokens and its length), positive_index_KB, text_hash_KB (equal for equal texts on all ranks),
    longest, num_tokens, num_unreadable.
    """

    def __init__(
        self,
        clips: CaptionClips,
        tokenizer: BPETokenizer | ClipTokenizer,
        preprocessor: FramePreprocessor,
        *,
        num_frames: int,
        stages: Sequence[Stage],
        prefixes: Mapping[str, str],
        batch_size: int,
        rank: int,
        num_ranks: int,
        seed: int,
    ) -> None:
        """
        Args:
            prefixes: kind -> prompt prefix of captions of that kind.
            batch_size: clips per rank and batch.
        """
        self.clips, self.preprocessor, self.num_frames = clips, preprocessor, num_frames
        self.stages, self.prefixes = list(stages), dict(prefixes)
        self.batch_size, self.rank, self.num_ranks, self.seed = batch_size, rank, num_ranks, seed
        self._merges = tokenizer.merges if isinstance(tokenizer, BPETokenizer) else None
        self._context_length = tokenizer.context_length
        self._tokenizer: BPETokenizer | ClipTokenizer | None = None
        self.num_positives = sum(kind in clips.kinds for kind in CONTRASTIVE_KINDS) or 1

    def __getitem__(self, number: int) -> dict[str, Any]:
        first = (number * self.num_ranks + self.rank) * self.batch_size
        kind_weights = stage_at(self.stages, number).kind_weights
        clips, sampled, num_unreadable = [], [], 0
        for position in range(first, first + self.batch_size):
            clip, num_skipped = self._clip(position)
            clips.append(clip)
            sampled.append(self._sample_captions(clip, kind_weights, position))
            num_unreadable += num_skipped
        return {
            "pixels_BTHWC": torch.from_numpy(np.stack([clip.pixels_THWC for clip in clips])),
            **self._texts(sampled),
            "num_unreadable": num_unreadable,
        }

    def _clip(self, position: int) -> tuple[CaptionedClip, int]:
        """(clip at a position of the stream, or the next readable one; number of unreadable clips skipped)."""
        if self.clips.num_clips is None:
            position += self.seed * _SEED_SPREAD
        for num_skipped in range(MAX_CONSECUTIVE_UNREADABLE):
            number, epoch = shuffled_index(position + num_skipped, self.clips.num_clips, seed=self.seed)
            try:
                return self.clips.clip(number, self.preprocessor, num_frames=self.num_frames, epoch=epoch), num_skipped
            except VideoError as error:
                logger.warning("clip %d of %s is skipped: %s", number, self.clips.name, error)
        raise RecaptionError(f"{MAX_CONSECUTIVE_UNREADABLE} clips of {self.clips.name} in a row cannot be read")

    def _sample_captions(
        self, clip: CaptionedClip, kind_weights: Mapping[str, float], position: int
    ) -> tuple[str, str, list[str]]:
        """(kind of the target caption, target caption, positives for the contrastive loss)."""
        rng = np.random.default_rng([self.seed, 6, position])
        present = [kind for kind in CAPTION_KINDS if clip.captions.get(kind)]
        weights = np.array([kind_weights.get(kind, 0.0) for kind in present])
        if weights.sum():
            kind = present[int(rng.choice(len(present), p=weights / weights.sum()))]
        else:  # the clip has none of the stage's kinds
            kind = present[0]
        caption = _pick(clip.captions[kind], rng)
        positives = [_pick(clip.captions[kind], rng) for kind in CONTRASTIVE_KINDS if clip.captions.get(kind)] or [
            caption
        ]
        if kind in CONTRASTIVE_KINDS and kind in present:
            positives[min(len(positives) - 1, CONTRASTIVE_KINDS.index(kind))] = caption  # saves encoding another text
        return kind, caption, [positives[min(k, len(positives) - 1)] for k in range(self.num_positives)]

    def _texts(self, sampled: Sequence[tuple[str, str, list[str]]]) -> dict[str, Any]:
        tokenizer = self._get_vocabulary()
        index: dict[tuple[str, str], int] = {}  # (prefix, text) -> index in S
        caption_index = [index.setdefault((self.prefixes.get(kind, ""), text), len(index)) for kind, text, _ in sampled]
        positive_index = [
            [index.setdefault(("", texts[k]), len(index)) for _, _, texts in sampled] for k in range(self.num_positives)
        ]
        encoded = [encode_with_prefix(tokenizer, prefix, text) for prefix, text in index]
        texts_SM = torch.stack([ids for ids, _ in encoded])
        lengths_S = token_lengths(texts_SM, tokenizer)
        prefix_S = torch.tensor([num_prefix for _, num_prefix in encoded])
        caption_index_B = torch.tensor(caption_index)
        text_hash_S = torch.tensor([text_hash(text) for _, text in index])
        positive_index_KB = torch.tensor(positive_index)
        return {
            "texts_SM": texts_SM,
            "caption_index_B": caption_index_B,
            "prefix_B": prefix_S[caption_index_B],
            "length_B": lengths_S[caption_index_B],
            "positive_index_KB": positive_index_KB,
            "text_hash_KB": text_hash_S[positive_index_KB],
            "longest": int(lengths_S[caption_index_B].max()),
            "longest_text": int((texts_SM != tokenizer.special.pad).sum(1).max()),
            "num_tokens": int((lengths_S - 1 - prefix_S)[caption_index_B].sum()),
        }

    def _get_vocabulary(self) -> BPETokenizer | ClipTokenizer:
        if self._tokenizer is None:  # built in the worker: tokenizers must not be forked after use
            if self._merges is None:
                self._tokenizer = ClipTokenizer(self._context_length)
            else:
                self._tokenizer = tokenizer_from_merges(self._merges, context_length=self._context_length)
            _limit_threads()
        return self._tokenizer

    def stream(self, start: int, *, num_workers: int) -> Iterator[dict[str, Any]]:
        """Endless iterator over batches `start`, `start + 1`, ... from `num_workers` background processes."""
        from torch.utils.data import DataLoader

        loader = DataLoader(
            self,  # type: ignore[arg-type]
            sampler=_CountFrom(start),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=4 if num_workers else None,
        )
        return iter(loader)


def encode_with_prefix(tokenizer: BPETokenizer | ClipTokenizer, prefix: str, text: str) -> tuple[Tensor, int]:
    """(padded ids (M) of start, prefix, text, end; number of prefix tokens). Longer texts are truncated."""
    (ids_M,) = tokenizer.encode([text])
    if not prefix:
        return ids_M, 0
    special = tokenizer.special
    length = int((ids_M == special.end).int().argmax())
    (prefix_M,) = tokenizer.encode([prefix])
    prefix_ids = prefix_M[1 : int((prefix_M == special.end).int().argmax())]
    text_ids = ids_M[1:length][: tokenizer.context_length - 2 - len(prefix_ids)]
    padded = torch.full_like(ids_M, special.pad)
    ids = torch.cat([ids_M[:1], prefix_ids, text_ids, torch.tensor([special.end])])
    padded[: len(ids)] = ids
    return padded, len(prefix_ids)


def _pick(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))] if len(texts) > 1 else texts[0]


def text_hash(text: str) -> int:
    """64-bit hash by which equal texts are recognised across ranks."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


class _CountFrom:
    """Sampler: start, start + 1, ... without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        number = self.start
        while True:
            yield number
            number += 1


def _limit_threads() -> None:
    """Turn off OpenCV's threads in DataLoader workers."""
    from torch.utils.data import get_worker_info

    if get_worker_info() is not None:
        import cv2

        cv2.setNumThreads(0)
