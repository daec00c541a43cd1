"""Base class of all captioners: batches clips, hashes their frames, cleans and checks texts, builds `Caption` records.

A backend implements `generate` for one batch of clips:

    class MyCaptioner(BaseCaptioner):
        def generate(self, batch: ClipBatch) -> GenerationOutput:
            texts = [GeneratedText(text="A red circle.", num_tokens=5, mean_logprob=-0.2) for clip in batch.clips]
            return GenerationOutput(texts=texts)

A backend with a contrastive head also sets `has_contrastive_head`, returns `GenerationOutput.clip_embeddings_BD` and
implements `embed_clips` and `embed_texts`. Without one, captions have no clip score and caption-clip checks are skipped.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recaption import rng
from recaption.captioners.generation.settings import DecodingSettings
from recaption.captioners.interface import CaptionBatch, EncodedClip, TextTower
from recaption.captions.text import find_fault, normalize_text, reason_of, strip_boilerplate
from recaption.errors import UsageError
from recaption.records import Caption, CaptionFields

SampleScores = Callable[[Sequence[int], Sequence[str]], np.ndarray]
"""(index of the clip that each text describes, texts) -> a clip score per text."""
CLIPS_PER_BATCH = 16
"""Batch size of encoding and decoding: decoding 16 clips costs about four times as much as decoding 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipBatch:
    """A batch of clips and the settings to caption them with."""

    clips: list[Any]
    """uint8 (T, H, W, 3), T >= 1, each of its own size; or `EncodedClip`, for a captioner that has `encode`."""
    clip_hashes: list[str]
    """sha256 of each clip's frames."""
    rng_keys: list[str]
    """RNG key of each of the R rows: B clips times `decoding.num_samples`, samples of a clip adjacent."""
    kind: str
    decoding: DecodingSettings
    seed: int

    @property
    def uniforms_RM(self) -> np.ndarray:
        """Uniform random numbers in [0, 1) per row and token, a function of clip, sample index and seed."""
        return self.sample_uniforms(self.decoding.max_tokens)

    def sample_uniforms(self, count: int) -> np.ndarray:
        """(R, count): the first `count` uniform random numbers in [0, 1) of each row."""
        return np.stack([rng.uniform_sequence(count, self.seed, key) for key in self.rng_keys])

    def repeat_per_sample(self) -> ClipBatch:
        """Each sample as a clip of its own, for models that generate one text per clip."""
        num_samples = self.decoding.num_samples
        clips = [clip for clip in self.clips for _ in range(num_samples)]
        clip_hashes = [clip_hash for clip_hash in self.clip_hashes for _ in range(num_samples)]
        return replace(self, clips=clips, clip_hashes=clip_hashes, decoding=replace(self.decoding, num_samples=1))


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedText:
    """Text that a model generated for one clip."""

    text: str
    num_tokens: int
    mean_logprob: float | None = None
    """Natural log under the model itself (temperature 1, nothing masked out). None if the model returns none."""
    ended: bool = True
    """False if it was truncated at the length limit."""
    fault: str = ""
    """`no_answer` if the request to the model failed, `rejected` if it is refused for good."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationOutput:
    """Texts that a model generated for a batch."""

    texts: list[GeneratedText]
    """One per `batch.rng_keys`, in order."""
    clip_embeddings_BD: np.ndarray | None = None
    """Contrastive embeddings of the clips, float32, unit length."""
    decoder_outputs: Any = None
    """Passed to the captioner's own `embed_generated`, such as KV caches that it can reuse."""


class BaseCaptioner(ABC):
    """Implements the `Captioner` protocol on top of `generate`."""

    name: str
    weights_hash: str
    num_frames: int
    frame_px: int
    max_tokens: int
    kinds: tuple[str, ...] = ("descriptive",)
    has_contrastive_head = False
    min_clip_score: float | None = None
    supports_beam_search = True
    num_beams = 1
    supports_num_samples = False
    """Whether `generate` handles `num_samples` > 1 itself; otherwise it gets each clip once per sample."""
    clips_per_batch = CLIPS_PER_BATCH

    @abstractmethod
    def generate(self, batch: ClipBatch) -> GenerationOutput:
        """One `GeneratedText` per `batch.rng_keys`, in order."""

    def min_clip_scores(self, clip_embeddings_BD: np.ndarray) -> np.ndarray | None:
        """Minimum clip score (B,) of a good caption, per clip embedding; None if the captioner has no threshold."""
        return None if self.min_clip_score is None else np.full(len(clip_embeddings_BD), self.min_clip_score)

    def embed_clips(self, clips: Sequence[Any]) -> np.ndarray:
        """clip_embeddings_BD, float32, unit length."""
        raise self._no_contrastive_head()

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """text_SD, float32, unit length."""
        raise self._no_contrastive_head()

    def embed_generated(self, texts: Sequence[str], output: GenerationOutput) -> np.ndarray:
        """`embed_texts` of texts that were just generated, one per `output.texts`; may reuse `output.decoder_outputs`."""
        return self.embed_texts(texts)

    def parse_fields(self, text: str) -> CaptionFields:
        """Caption fields parsed from the text; only captioners with a closed vocabulary have any."""
        return CaptionFields()

    @property
    def text_tower(self) -> TextTower:
        raise UsageError(f"captioner {self.name} has no text tower; use captioner:tiny or t5:ID as text encoder")

    def caption(self, clips: Sequence[np.ndarray], **settings: Any) -> list[Caption]:
        """One caption per clip, in order; see `caption_with_embeddings` for the settings."""
        return self.caption_with_embeddings(clips, **settings).captions

    def caption_with_embeddings(
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
        score_samples: SampleScores | None = None,
    ) -> CaptionBatch:
        """One caption per clip, in order, with clip and caption embeddings; each clip is encoded once for both.

        Deterministic by default. With `temperature` > 0 the random numbers are a function of `seed` and the clip's pixels:
        the same clip gets the same caption in any batch. `reason` is set if the text fails a check of `captions.text`.

        Args:
            clips: uint8 (T, H, W, 3), T >= 1, each of its own size.
            kind: one of `kinds`. The prompt that selects it is not part of the text.
            num_beams: 0 = the captioner's own `num_beams`, or 1 if `temperature` > 0.
            num_samples: captions sampled per clip (needs `temperature` > 0); returns the best one without defect, by clip
                score, or by mean log-probability if nothing scores them.
            score_samples: clip scores of the samples, for a captioner without a contrastive head.
            length_penalty: of beam search; see `DecodingSettings`.

        Raises:
            UsageError: `kind` is not one of `kinds`, or `clips` holds something else than clips.
        """
        if kind not in self.kinds:
            raise UsageError(f"captioner {self.name} has no captions of kind {kind!r}; it has {', '.join(self.kinds)}")
        if num_beams > 1 and not self.supports_beam_search:
            raise UsageError(f"captioner {self.name} has no beam search; leave --caption.num-beams at 1")
        decoding = DecodingSettings(
            max_tokens=min(max_tokens or self.max_tokens, self.max_tokens),
            num_beams=num_beams or (1 if temperature > 0 else self.num_beams),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            num_samples=num_samples,
            length_penalty=length_penalty,
        )
        captions: list[Caption] = []
        clip_embeddings: list[np.ndarray] = []
        text_embeddings: list[np.ndarray] = []
        for clips_of_batch in self.batches(clips):
            hashes = [hash_frames(clip) for clip in clips_of_batch]
            keys = [f"{key}/{sample}" if sample else key for key in hashes for sample in range(num_samples)]
            batch = ClipBatch(
                clips=clips_of_batch, clip_hashes=hashes, rng_keys=keys, kind=kind, decoding=decoding, seed=seed
            )
            samples, clip_embeddings_BD, text_RD = self._all_samples(batch)
            if score_samples is not None and num_samples > 1:
                rows = [len(captions) + row // num_samples for row in range(len(samples))]
                scores_R = score_samples(rows, [sample.text for sample in samples])
                samples = [replace(one, clip_score=float(score)) for one, score in zip(samples, scores_R, strict=True)]
            best = [_best_sample(samples, range(row, row + num_samples)) for row in range(0, len(samples), num_samples)]
            captions += [samples[row] for row in best]
            if clip_embeddings_BD is not None and text_RD is not None:
                clip_embeddings.append(clip_embeddings_BD)
                text_embeddings.append(text_RD[best])
        if not self.has_contrastive_head:
            return CaptionBatch(captions, None, None)
        if not captions:
            empty_0D = self.embed_texts([])
            return CaptionBatch([], empty_0D, empty_0D)
        return CaptionBatch(captions, np.concatenate(clip_embeddings), np.concatenate(text_embeddings))

    def _all_samples(self, batch: ClipBatch) -> tuple[list[Caption], np.ndarray | None, np.ndarray | None]:
        """All R captions of a batch, with the embeddings of its clips (B, D) and captions (R, D)."""
        output = self.generate(batch if self.supports_num_samples else batch.repeat_per_sample())
        stripped = [strip_boilerplate(normalize_text(generated.text)) for generated in output.texts]
        num_samples = batch.decoding.num_samples
        cosines: Sequence[float | None] = [None] * len(stripped)
        text_RD = None
        if output.clip_embeddings_BD is not None:
            text_RD = self.embed_generated([text for text, _ in stripped], output)
            cosines = (output.clip_embeddings_BD.repeat(num_samples, axis=0) * text_RD).sum(axis=1).tolist()
        rows = [
            self._to_caption(text_and_phrases, generated, batch.clip_hashes[row // num_samples], cosines[row], batch)
            for row, (text_and_phrases, generated) in enumerate(zip(stripped, output.texts, strict=True))
        ]
        return rows, output.clip_embeddings_BD, text_RD

    def score(self, clips: Sequence[np.ndarray | EncodedClip], texts: Sequence[str]) -> np.ndarray:
        """Contrastive similarity (num_clips, num_texts), float32 cosines in -1..1.

        Raises:
            UsageError: this captioner has no contrastive head; see `has_contrastive_head`.
        """
        if not self.has_contrastive_head:
            raise self._no_contrastive_head()
        if not clips or not texts:
            return np.zeros((len(clips), len(texts)), np.float32)
        return self.embed_clips(clips) @ self.embed_texts(texts).T

    def batches(self, clips: Sequence[Any]) -> Iterator[list[Any]]:
        """Batches of `clips_per_batch`; all clips are validated first, so an invalid one raises before any work is done."""
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

    def _to_caption(
        self,
        stripped: tuple[str, str],
        generated: GeneratedText,
        clip_sha256: str,
        cosine: float | None,
        batch: ClipBatch,
    ) -> Caption:
        text, phrases = stripped
        fault = generated.fault or find_fault(text, ended=generated.ended, kind=batch.kind)
        return Caption(
            text=text,
            fields=self.parse_fields(text),
            clip_sha256=clip_sha256,
            captioner=f"{self.name}@{self.weights_hash}",
            num_tokens=generated.num_tokens,
            mean_logprob=generated.mean_logprob,
            clip_score=cosine,
            source="model",
            seed=batch.seed,
            reason=reason_of(fault),
            kind=batch.kind,
            fault=fault or "",
            stripped=phrases,
        )

    def _no_contrastive_head(self) -> UsageError:
        return UsageError(
            f"captioner {self.name} has no contrastive head, so it cannot score; set another captioner as --caption.scorer"
        )


def _best_sample(samples: Sequence[Caption], rows: range) -> int:
    """Index of the best caption among the samples of one clip: without defect first, then by score."""

    def rank(row: int) -> tuple[bool, float]:
        caption = samples[row]
        return caption.reason is None, caption.mean_logprob or 0.0 if caption.clip_score is None else caption.clip_score

    return max(rows, key=rank)


def hash_frames(clip: np.ndarray | EncodedClip) -> str:
    """sha256 of a clip's uint8 frames: ties a caption to the pixels that it describes."""
    if isinstance(clip, EncodedClip):
        return clip.clip_sha256
    return hashlib.sha256(clip.tobytes()).hexdigest()
