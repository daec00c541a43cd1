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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recaption.captioners import Described, TextTower
from recaption.captions import clean, fault_in, strip_boilerplate
from recaption.errors import UsageError
from recaption.records import Caption, CaptionFields

if TYPE_CHECKING:
    from recaption.captioners.generate import Decoding

CLIPS_PER_BATCH = 16
"""Clips encoded and decoded together: decoding 16 costs about four times as much as decoding 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedClip:
    """What is kept of a clip's frames once they have been looked at: enough to describe and to score it again."""

    clip_sha256: str
    """Of the uint8 frames."""
    pooled_D: np.ndarray
    """float32, unit length."""
    tokens_ND: np.ndarray
    """float16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A few clips, and how they are to be described."""

    clips: list[Any]
    """uint8 (T, H, W, 3), T >= 1, each of its own size; or `EncodedClip`, of a captioner that encodes."""
    digests: list[str]
    kind: str
    decoding: Decoding
    seed: int

    @property
    def draws_BM(self) -> np.ndarray:
        """A uniform number per clip and token, its own for each clip and seed; see `uniform_draws`."""
        return np.stack([uniform_draws(self.seed, digest, self.decoding.max_tokens) for digest in self.digests])


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
    clip_BD: np.ndarray | None = None
    """Contrastive embeddings of the clips, float32, unit length."""


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
    clips_per_batch = CLIPS_PER_BATCH

    @abstractmethod
    def tell(self, batch: Batch) -> Told:
        """One `Said` per clip, in order."""

    def embed_clips(self, clips: Sequence[Any]) -> np.ndarray:
        """clip_BD, float32, unit length."""
        raise self._cannot_score()

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """text_SD, float32, unit length."""
        raise self._cannot_score()

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
        num_beams: int = 1,
        seed: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Described:
        """A caption per clip (uint8 (T,H,W,3), each of its own size), in order, and the embeddings that its clip score
        comes from: each clip is encoded once for both.

        Greedy by default. With `temperature` above 0 the draws depend on `seed` and on the clip's own pixels: the same
        clip gets the same caption wherever it stands. `reason` is set where the text fails a gate of `captions`.

        Raises:
            UsageError: `kind` is not one of `kinds`; no clips, but something else.
        """
        from recaption.captioners.generate import Decoding

        if kind not in self.kinds:
            raise UsageError(f"captioner {self.name} has no captions of kind {kind!r}; it has {', '.join(self.kinds)}")
        if num_beams > 1 and not self.has_beams:
            raise UsageError(f"captioner {self.name} searches no beams; leave --caption.num-beams at 1")
        decoding = Decoding(
            max_tokens=min(max_tokens or self.max_tokens, self.max_tokens),
            num_beams=num_beams,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        captions: list[Caption] = []
        clip_parts: list[np.ndarray] = []
        text_parts: list[np.ndarray] = []
        for some in self.batches(clips):
            batch = Batch(clips=some, digests=[digest(c) for c in some], kind=kind, decoding=decoding, seed=seed)
            told = self.tell(batch)
            stripped = [strip_boilerplate(clean(said.text)) for said in told.said]
            texts = [text for text, _ in stripped]
            cosines: Sequence[float | None] = [None] * len(some)
            if told.clip_BD is not None:
                text_BD = self.embed_texts(texts)
                cosines = (told.clip_BD * text_BD).sum(axis=1).tolist()
                clip_parts.append(told.clip_BD)
                text_parts.append(text_BD)
            captions += [
                self._record(words, said, batch.digests[row], cosines[row], batch)
                for row, (words, said) in enumerate(zip(stripped, told.said, strict=True))
            ]
        if not self.can_score:
            return Described(captions, None, None)
        if not captions:
            none = self.embed_texts([])
            return Described([], none, none)
        return Described(captions, np.concatenate(clip_parts), np.concatenate(text_parts))

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


def digest(clip: np.ndarray | EncodedClip) -> str:
    """sha256 of a clip's frames: binds a caption to the pixels."""
    if isinstance(clip, EncodedClip):
        return clip.clip_sha256
    return hashlib.sha256(clip.tobytes()).hexdigest()


def uniform_draws(seed: int, clip_sha256: str, count: int) -> np.ndarray:
    """Uniform numbers that belong to a clip: a counter-based stream keyed by the seed and the clip's pixels."""
    key = np.frombuffer(hashlib.sha256(f"{seed}:{clip_sha256}".encode()).digest()[:16], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)
