"""Numbered batches of clips and texts for a captioner's training: the same for the same number, on any rank's machine.

    batches = CaptionBatches(clips, vocabulary, framing, num_frames=8, stages=stages, batch_size=32, ...)
    batches[5]["pixels_BTHWC"], batches[5]["texts_SM"]

Each clip brings one text to be said (behind the prefix of its kind) and up to two that mean it, a descriptive and a short
one, for the contrastive loss. Each text of the batch is there once, however often it is used.

Shapes: B clips of this rank, T frames, S different texts, M tokens of the context, K texts that mean a clip.
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
from train.captioner.clips import CaptionClips, CaptionedClip, numbered
from train.captioner.stages import Stage, stage_at

MEANING_KINDS = ("descriptive", "short")
"""What the contrastive loss learns: whole captions, and what people type."""


MAX_UNREADABLE_IN_A_ROW = 50


_SEED_SPREAD = 7_919


logger = logging.getLogger(__name__)


class CaptionBatches:
    """Batch number -> dict of tensors and counts. Vocabulary and thread settings are made in the worker that uses it."""

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
            prefixes: kind -> text that is forced before captions of that kind.
            batch_size: clips per rank and batch.
        """
        self.clips, self.preprocessor, self.num_frames = clips, preprocessor, num_frames
        self.stages, self.prefixes = list(stages), dict(prefixes)
        self.batch_size, self.rank, self.num_ranks, self.seed = batch_size, rank, num_ranks, seed
        self._merges = tokenizer.merges if isinstance(tokenizer, BPETokenizer) else None
        self._context_length = tokenizer.context_length
        self._tokenizer: BPETokenizer | ClipTokenizer | None = None
        self.num_meanings = sum(kind in clips.kinds for kind in MEANING_KINDS) or 1

    def __getitem__(self, number: int) -> dict[str, Any]:
        first = (number * self.num_ranks + self.rank) * self.batch_size
        shares = stage_at(self.stages, number).shares
        clips, drawn, num_unreadable = [], [], 0
        for place in range(first, first + self.batch_size):
            clip, missed = self._clip(place)
            clips.append(clip)
            drawn.append(self._draw(clip, shares, place))
            num_unreadable += missed
        return {
            "pixels_BTHWC": torch.from_numpy(np.stack([clip.pixels_THWC for clip in clips])),
            **self._texts(drawn),
            "num_unreadable": num_unreadable,
        }

    def _clip(self, place: int) -> tuple[CaptionedClip, int]:
        """The clip of a place, or the next in the same order that can be read; and how many could not."""
        if self.clips.num_clips is None:
            place += self.seed * _SEED_SPREAD
        for missed in range(MAX_UNREADABLE_IN_A_ROW):
            number, epoch = numbered(place + missed, self.clips.num_clips, seed=self.seed)
            try:
                return self.clips.clip(number, self.preprocessor, num_frames=self.num_frames, epoch=epoch), missed
            except VideoError as error:
                logger.warning("clip %d of %s is left out of a batch: %s", number, self.clips.name, error)
        raise RecaptionError(f"{MAX_UNREADABLE_IN_A_ROW} clips of {self.clips.name} in a row cannot be read")

    def _draw(self, clip: CaptionedClip, shares: Mapping[str, float], place: int) -> tuple[str, str, list[str]]:
        """(kind that is said, its text, texts that mean the clip)."""
        rng = np.random.default_rng([self.seed, 6, place])
        present = [kind for kind in CAPTION_KINDS if clip.captions.get(kind)]
        weights = np.array([shares.get(kind, 0.0) for kind in present])
        if weights.sum():
            kind = present[int(rng.choice(len(present), p=weights / weights.sum()))]
        else:  # a clip that has none of the stage's kinds is said as well as it can
            kind = present[0]
        said = _pick(clip.captions[kind], rng)
        meanings = [_pick(clip.captions[kind], rng) for kind in MEANING_KINDS if clip.captions.get(kind)] or [said]
        if kind in MEANING_KINDS and kind in present:
            meanings[min(len(meanings) - 1, MEANING_KINDS.index(kind))] = said  # one text less to encode
        return kind, said, [meanings[min(k, len(meanings) - 1)] for k in range(self.num_meanings)]

    def _texts(self, drawn: Sequence[tuple[str, str, list[str]]]) -> dict[str, Any]:
        tokenizer = self._ready_tokenizer()
        rows: dict[tuple[str, str], int] = {}
        said = [rows.setdefault((self.prefixes.get(kind, ""), text), len(rows)) for kind, text, _ in drawn]
        meant = [
            [rows.setdefault(("", texts[k]), len(rows)) for _, _, texts in drawn] for k in range(self.num_meanings)
        ]
        encoded = [encode_behind(tokenizer, prefix, text) for prefix, text in rows]
        texts_SM = torch.stack([ids for ids, _ in encoded])
        lengths_S = token_lengths(texts_SM, tokenizer)
        prefix_S = torch.tensor([num_prefix for _, num_prefix in encoded])
        said_B = torch.tensor(said)
        keys_S = torch.tensor([_key(text) for _, text in rows])
        meant_KB = torch.tensor(meant)
        return {
            "texts_SM": texts_SM,
            "said_B": said_B,
            "prefix_B": prefix_S[said_B],
            "length_B": lengths_S[said_B],
            "meant_KB": meant_KB,
            "keys_KB": keys_S[meant_KB],
            "longest": int(lengths_S[said_B].max()),
            "num_tokens": int((lengths_S - 1 - prefix_S)[said_B].sum()),
        }

    def _ready_tokenizer(self) -> BPETokenizer | ClipTokenizer:
        if self._tokenizer is None:  # made in the worker: tokenizers do not like being forked after use
            if self._merges is None:
                self._tokenizer = ClipTokenizer(self._context_length)
            else:
                self._tokenizer = tokenizer_from_merges(self._merges, context_length=self._context_length)
            _one_thread()
        return self._tokenizer

    def stream(self, start: int, *, num_workers: int) -> Iterator[dict[str, Any]]:
        """Batches `start`, `start + 1`, ... without end, made by `num_workers` processes in the background."""
        from torch.utils.data import DataLoader

        loader = DataLoader(
            self,  # type: ignore[arg-type]
            sampler=_From(start),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=4 if num_workers else None,
        )
        return iter(loader)


def encode_behind(tokenizer: BPETokenizer | ClipTokenizer, prefix: str, text: str) -> tuple[Tensor, int]:
    """Padded ids (M) of start, prefix, text, end, and how many of them are the prefix; a text too long is cut."""
    (ids_M,) = tokenizer.encode([text])
    if not prefix:
        return ids_M, 0
    special = tokenizer.special
    length = int((ids_M == special.end).int().argmax())
    (before_M,) = tokenizer.encode([prefix])
    before = before_M[1 : int((before_M == special.end).int().argmax())]
    kept = ids_M[1:length][: tokenizer.context_length - 2 - len(before)]
    whole = torch.full_like(ids_M, special.pad)
    ids = torch.cat([ids_M[:1], before, kept, torch.tensor([special.end])])
    whole[: len(ids)] = ids
    return whole, len(before)


def _pick(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))] if len(texts) > 1 else texts[0]


def _key(text: str) -> int:
    """Says of texts on different ranks whether they are the same words."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


class _From:
    """start, start + 1, ... without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        step = self.start
        while True:
            yield step
            step += 1


def _one_thread() -> None:
    from torch.utils.data import get_worker_info

    if get_worker_info() is not None:
        import cv2

        cv2.setNumThreads(0)
