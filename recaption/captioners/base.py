"""What all captioners do alike: batches, the clips' digests, clean text, gates, records, scores.

A backend says what its model says about one batch of frames, and nothing else:

    class MyCaptioner(Describing):
        def tell(self, batch: Batch) -> Told:
            return Told(said=[Said(text="A red circle.", num_tokens=5, mean_logprob=-0.2) for clip in batch.clips])

One with a contrastive space also has `can_score`, gives `Told.clip_BD` and implements `embed_clips` and `embed_texts`. One
without leaves all of it out: its captions have no clip score, and no check of pairs is pretended.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recaption.captioners.generation.settings import Decoding
from recaption.captioners.interface import Described, EncodedClip, TextTower
from recaption.captions.text import clean, fault_in, strip_boilerplate
from recaption.errors import UsageError
from recaption.records import Caption, CaptionFields

CLIPS_PER_BATCH = 16
"""Clips encoded and decoded together: decoding 16 costs about four times as much as decoding 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A few clips, and how they are to be described."""

    clips: list[Any]
    """uint8 (T, H, W, 3), T >= 1, each of its own size; or `EncodedClip`, of a captioner that encodes."""
    digests: list[str]
    keys: list[str]
    """By which each of the R rows draws its tokens: B clips times `decoding.num_samples`, samples of a clip neighbours."""
    kind: str
    decoding: Decoding
    seed: int

    @property
    def draws_RM(self) -> np.ndarray:
        """A uniform number per row and token, its own for each clip, sample and seed; see `uniform_draws`."""
        return np.stack([uniform_draws(self.seed, key, self.decoding.max_tokens) for key in self.keys])

    def unfolded(self) -> Batch:
        """Each sample as a clip of its own, for models that know one text per clip."""
        times = self.decoding.num_samples
        clips = [clip for clip in self.clips for _ in range(times)]
        digests = [digest for digest in self.digests for _ in range(times)]
        return replace(self, clips=clips, digests=digests, decoding=replace(self.decoding, num_samples=1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a model said about one clip."""

    text: str
    num_tokens: int
    mean_logprob: float | None = None
    """Natural log, of the model itself: no temperature, nothing barred. None where the model does not tell."""
    ended: bool = True
    """False where the length limit cut it short."""
    fault: str = ""
    """`no_answer` where the model could not be asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What a model said about a batch."""

    said: list[Said]
    """One for each of the batch's rows."""
    clip_BD: np.ndarray | None = None
    """Contrastive embeddings of the clips, float32, unit length."""
    states: Any = None
    """What the captioner's own `embed_said` can use of the work already done."""


class Describing(ABC):
    """Implements `captioners.Captioner` on top of `tell`."""

    name: str
    weights_hash: str
    num_frames: int
    frame_px: int
    max_tokens: int
    kinds: tuple[str, ...] = ("descriptive",)
    can_score = False
    min_clip_score: float | None = None
    has_beams = True
    num_beams = 1
    folds_samples = False
    """Whether `tell` draws all samples of a clip itself; otherwise it is given the clip once for each."""
    clips_per_batch = CLIPS_PER_BATCH

    @abstractmethod
    def tell(self, batch: Batch) -> Told:
        """One `Said` for each of `batch.keys`, in order."""

    def least_scores(self, clip_BD: np.ndarray) -> np.ndarray | None:
        """Clip scores (B,) below which captions of clips that lie there are rather wrong than right; None: not known."""
        return None if self.min_clip_score is None else np.full(len(clip_BD), self.min_clip_score)

    def embed_clips(self, clips: Sequence[Any]) -> np.ndarray:
        """clip_BD, float32, unit length."""
        raise self._cannot_score()

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """text_SD, float32, unit length."""
        raise self._cannot_score()

    def embed_said(self, texts: Sequence[str], told: Told) -> np.ndarray:
        """`embed_texts` of what has just been told, one text for each of `told.said`."""
        return self.embed_texts(texts)

    def fields_in(self, text: str) -> CaptionFields:
        """For a captioner with a closed vocabulary, which can be read back."""
        return CaptionFields()

    @property
    def text_tower(self) -> TextTower:
        raise UsageError(f"captioner {self.name} has no text tower of its own; take captioner:tiny or t5:ID as encoder")

    def caption(self, clips: Sequence[np.ndarray], **settings: Any) -> list[Caption]:
        """One caption per clip, in order; see `describe` for the settings."""
        return self.describe(clips, **settings).captions

    def describe(
        self,
        clips: Sequence[np.ndarray | EncodedClip],
        *,
        kind: str = "descriptive",
        max_tokens: int | None = None,
        num_beams: int = 0,
        seed: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        num_samples: int = 1,
        length_penalty: float = 1.0,
    ) -> Described:
        """A caption per clip (uint8 (T,H,W,3), each of its own size), in order, and the embeddings that its clip score
        comes from: each clip is encoded once for both.

        Nothing is drawn by default. With `temperature` above 0 the draws depend on `seed` and on the clip's own pixels:
        the same clip gets the same caption wherever it stands. `reason` is set where the text fails a gate of `captions`.

        Args:
            kind: one of `kinds`. The words that ask for it are no part of the text.
            num_beams: 0: the captioner's own `num_beams`, and none where tokens are drawn.
            num_samples: captions drawn per clip, which needs a temperature; the best one without fault is kept, by clip
                score, or by log-probability where there is none.
            length_penalty: of beam search; see `Decoding`.

        Raises:
            UsageError: `kind` is not one of `kinds`; no clips, but something else.
        """
        if kind not in self.kinds:
            raise UsageError(f"captioner {self.name} has no captions of kind {kind!r}; it has {', '.join(self.kinds)}")
        if num_beams > 1 and not self.has_beams:
            raise UsageError(f"captioner {self.name} searches no beams; leave --caption.num-beams at 1")
        decoding = Decoding(
            max_tokens=min(max_tokens or self.max_tokens, self.max_tokens),
            num_beams=num_beams or (1 if temperature > 0 else self.num_beams),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            num_samples=num_samples,
            length_penalty=length_penalty,
        )
        captions: list[Caption] = []
        clip_parts: list[np.ndarray] = []
        text_parts: list[np.ndarray] = []
        for some in self.batches(clips):
            digests = [digest(clip) for clip in some]
            keys = [f"{one}/{sample}" if sample else one for one in digests for sample in range(num_samples)]
            batch = Batch(clips=some, digests=digests, keys=keys, kind=kind, decoding=decoding, seed=seed)
            drawn, clip_BD, text_RD = self._drawn(batch)
            best = [_best(drawn, range(row, row + num_samples)) for row in range(0, len(drawn), num_samples)]
            captions += [drawn[row] for row in best]
            if clip_BD is not None and text_RD is not None:
                clip_parts.append(clip_BD)
                text_parts.append(text_RD[best])
        if not self.can_score:
            return Described(captions, None, None)
        if not captions:
            none = self.embed_texts([])
            return Described([], none, none)
        return Described(captions, np.concatenate(clip_parts), np.concatenate(text_parts))

    def _drawn(self, batch: Batch) -> tuple[list[Caption], np.ndarray | None, np.ndarray | None]:
        """All captions of a batch, R of them, and where its clips (B) and these captions lie."""
        told = self.tell(batch if self.folds_samples else batch.unfolded())
        stripped = [strip_boilerplate(clean(said.text)) for said in told.said]
        times = batch.decoding.num_samples
        cosines: Sequence[float | None] = [None] * len(stripped)
        text_RD = None
        if told.clip_BD is not None:
            text_RD = self.embed_said([text for text, _ in stripped], told)
            cosines = (told.clip_BD.repeat(times, axis=0) * text_RD).sum(axis=1).tolist()
        rows = [
            self._record(words, said, batch.digests[row // times], cosines[row], batch)
            for row, (words, said) in enumerate(zip(stripped, told.said, strict=True))
        ]
        return rows, told.clip_BD, text_RD

    def score(self, clips: Sequence[np.ndarray | EncodedClip], texts: Sequence[str]) -> np.ndarray:
        """Contrastive similarity (num_clips, num_texts), float32 cosines in -1..1.

        Raises:
            UsageError: this captioner has no contrastive space; see `can_score`.
        """
        if not self.can_score:
            raise self._cannot_score()
        if not clips or not texts:
            return np.zeros((len(clips), len(texts)), np.float32)
        return self.embed_clips(clips) @ self.embed_texts(texts).T

    def batches(self, clips: Sequence[Any]) -> Iterator[list[Any]]:
        """Clips a few at a time, all of them looked at first: one that is none stops everything before it starts."""
        for clip in clips:
            if isinstance(clip, EncodedClip):
                continue
            if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
                found = f"{clip.dtype} {clip.shape}" if isinstance(clip, np.ndarray) else type(clip).__name__
                raise UsageError(f"a clip is a uint8 array (frames, height, width, 3), not {found}")
            if not clip.size:
                raise UsageError("a clip without frames cannot be captioned")
        for start in range(0, len(clips), self.clips_per_batch):
            yield list(clips[start : start + self.clips_per_batch])

    def _record(
        self, stripped: tuple[str, str], said: Said, clip_sha256: str, cosine: float | None, batch: Batch
    ) -> Caption:
        text, phrases = stripped
        fault = said.fault or fault_in(text, ended=said.ended, kind=batch.kind)
        return Caption(
            text=text,
            fields=self.fields_in(text),
            clip_sha256=clip_sha256,
            captioner=f"{self.name}@{self.weights_hash}",
            num_tokens=said.num_tokens,
            mean_logprob=said.mean_logprob,
            clip_score=cosine,
            source="model",
            seed=batch.seed,
            reason="bad_caption" if fault else None,
            kind=batch.kind,
            fault=fault or "",
            stripped=phrases,
        )

    def _cannot_score(self) -> UsageError:
        return UsageError(
            f"captioner {self.name} has no contrastive space and scores nothing; name another one as --caption.scorer"
        )


def _best(drawn: Sequence[Caption], rows: range) -> int:
    def worth(row: int) -> tuple[bool, float]:
        caption = drawn[row]
        return caption.reason is None, caption.mean_logprob or 0.0 if caption.clip_score is None else caption.clip_score

    return max(rows, key=worth)


def digest(clip: np.ndarray | EncodedClip) -> str:
    """sha256 of a clip's frames: binds a caption to the pixels."""
    if isinstance(clip, EncodedClip):
        return clip.clip_sha256
    return hashlib.sha256(clip.tobytes()).hexdigest()


def uniform_draws(seed: int, clip_sha256: str, count: int) -> np.ndarray:
    """Uniform numbers that belong to a clip: a counter-based stream keyed by the seed and the clip's pixels."""
    key = np.frombuffer(hashlib.sha256(f"{seed}:{clip_sha256}".encode()).digest()[:16], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)
