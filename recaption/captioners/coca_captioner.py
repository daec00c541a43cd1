"""The captioner that pipelines use: frames in, checked captions out, around one VideoCoCa.

captioner = load_captioner("tiny")
captioner.caption([clip_THWC])[0].text
captioner.score([clip_THWC], ["a red circle", "a blue star"])        (1, 2) cosines
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recaption.captioners import Described
from recaption.captioners.framing import Framing
from recaption.captioners.generate import Decoding, Generated, generate
from recaption.captioners.videococa import ClipEmbedding, VideoCoCa
from recaption.captioners.vocabulary import Vocabulary
from recaption.captions import fault_in, strip_boilerplate
from recaption.errors import UsageError
from recaption.records import Caption, CaptionFields


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedClip:
    """What is kept of a clip's frames once they have been looked at: enough to describe and to score it again."""

    clip_sha256: str
    """Of the uint8 frames."""
    pooled_D: np.ndarray
    """float32, unit length."""
    tokens_ND: np.ndarray
    """float16."""


CLIPS_PER_BATCH = 16
"""Clips encoded and decoded together: decoding 16 costs about four times as much as decoding 1."""


class CocaTextTower:
    """The unimodal text transformer by itself: the text encoder of the diffusion transformer."""

    def __init__(self, model: VideoCoCa, vocabulary: Vocabulary) -> None:
        self._model = model
        self._vocabulary = vocabulary
        text = model.coca.text
        self.width = int(text.width)
        self.pooled_width = int(text.output_dim)
        self.max_tokens = int(vocabulary.context_length)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Features of texts, padding left out.

        Returns:
            text_MD: float32, the tokens of all texts one after another (start and end token included), after the
                tower's final norm.
            lengths_S: int64, tokens per text; sums to M.
            pooled_SD: float32, projected CLS token, not normalised.
        """
        if not texts:
            return torch.zeros(0, self.width), torch.zeros(0, dtype=torch.long), torch.zeros(0, self.pooled_width)
        ids_SM = self._vocabulary.encode(texts).to(self._model.coca.logit_scale.device)
        lengths_S = token_lengths(ids_SM, self._vocabulary)
        with torch.inference_mode():
            embedding = self._model.encode_texts(ids_SM)
            tokens_SMD = self._model.coca.text.ln_final(embedding.tokens_SMD)
        text_MD = torch.cat([tokens_SMD[row, :length] for row, length in enumerate(lengths_S.tolist())])
        # leaving inference mode: the result enters autograd where a model is trained on it
        return text_MD.float().clone(), lengths_S.cpu(), embedding.pooled_SD.float().clone()


class CocaCaptioner:
    """Implements `captioners.Captioner`."""

    def __init__(
        self,
        model: VideoCoCa,
        vocabulary: Vocabulary,
        framing: Framing,
        *,
        name: str,
        weights_hash: str,
        num_frames: int,
        read_fields: Callable[[str], CaptionFields] | None = None,
        kinds: Mapping[str, str] | None = None,
        min_clip_score: float | None = None,
    ) -> None:
        """
        Args:
            kinds: of caption that it was trained on, each with the words that ask for it.
            min_clip_score: below this its captions are rather wrong than right, by its own calibration.
            num_frames: frames of a clip that are looked at; a clip given with more is sampled evenly.
            read_fields: reads the caption fields out of a text, for a captioner with a closed vocabulary.
        """
        self.model = model.eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.framing = framing
        self.name = name
        self.weights_hash = weights_hash
        self.num_frames = num_frames
        self.frame_px = framing.frame_px
        self.max_tokens = min(model.coca.text.context_length, model.coca.text_decoder.context_length)
        self.text_tower = CocaTextTower(model, vocabulary)
        self.min_clip_score = min_clip_score
        self._prefixes = {"descriptive": "", **(kinds or {})}
        self.kinds = tuple(self._prefixes)
        self._read_fields = read_fields
        self._device = model.coca.logit_scale.device
        self._dtype = model.coca.logit_scale.dtype

    def caption(self, clips: Sequence[np.ndarray], **decoding: Any) -> list[Caption]:
        """One caption per clip, in order; see `describe` for the settings."""
        return self.describe(clips, **decoding).captions

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

        Args:
            kind: one of `kinds`. The words that ask for it are no part of the text.
        """
        prefix = self._prefix(kind)
        decoding = Decoding(
            max_tokens=max_tokens or self.max_tokens,
            num_beams=num_beams,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        captions: list[Caption] = []
        none = np.zeros((0, int(self.model.coca.text.output_dim)), np.float32)
        clip_parts, text_parts = [none], [none]
        for batch in _batches(clips):
            hashes = [_digest(clip) for clip in batch]
            draws = np.stack([uniform_draws(seed, digest, decoding.max_tokens) for digest in hashes])
            with torch.inference_mode():
                embedding = self._encode(batch)
                generated = generate(
                    self.model.coca,
                    embedding.tokens_BND,
                    special=self.vocabulary.special,
                    decoding=decoding,
                    prompt=prefix,
                    draws_BM=draws,
                )
                texts = [strip_boilerplate(self.vocabulary.decode(one.tokens)) for one in generated]
                clip_parts.append(embedding.pooled_BD.float().cpu().numpy())
                text_parts.append(self._text_directions([text for text, _ in texts]).cpu().numpy())
            cosine_B = (clip_parts[-1] * text_parts[-1]).sum(axis=1)
            for text, digest, one, cosine in zip(texts, hashes, generated, cosine_B, strict=True):
                captions.append(self._record(text, digest, one, float(cosine), seed, kind))
        return Described(captions, np.concatenate(clip_parts), np.concatenate(text_parts))

    def encode(self, clips: Sequence[np.ndarray]) -> list[EncodedClip]:
        """Look at the frames once, for any number of `describe`s."""
        encoded: list[EncodedClip] = []
        for batch in _batches(clips):
            with torch.inference_mode():
                embedding = self._encode(batch)
            pooled_BD = embedding.pooled_BD.float().cpu().numpy()
            tokens_BND = embedding.tokens_BND.to(torch.float16).cpu().numpy()
            encoded += [
                EncodedClip(clip_sha256=_digest(clip), pooled_D=pooled_BD[row], tokens_ND=tokens_BND[row])
                for row, clip in enumerate(batch)
            ]
        return encoded

    def _prefix(self, kind: str) -> list[int]:
        if kind not in self._prefixes:
            raise UsageError(f"captioner {self.name} has no captions of kind {kind!r}; it has {', '.join(self.kinds)}")
        ids = self.vocabulary.encode([self._prefixes[kind]])[0].tolist()
        return ids[1 : ids.index(self.vocabulary.special.end)]

    def score(self, clips: Sequence[np.ndarray | EncodedClip], texts: Sequence[str]) -> np.ndarray:
        """Contrastive similarity (num_clips, num_texts), float32 cosines in -1..1."""
        if not clips or not texts:
            return np.zeros((len(clips), len(texts)), np.float32)
        with torch.inference_mode():
            pooled_BD = torch.cat([self._encode(batch).pooled_BD for batch in _batches(clips)])
            return (pooled_BD.float() @ self._text_directions(texts).T).cpu().numpy()

    def _record(
        self, stripped: tuple[str, str], digest: str, generated: Generated, cosine: float, seed: int, kind: str
    ) -> Caption:
        text, phrases = stripped
        fault = fault_in(text, ended=generated.ended, kind=kind)
        return Caption(
            text=text,
            fields=self._read_fields(text) if self._read_fields else CaptionFields(),
            clip_sha256=digest,
            captioner=f"{self.name}@{self.weights_hash}",
            num_tokens=len(generated.tokens),
            mean_logprob=generated.mean_logprob,
            clip_score=cosine,
            source="model",
            seed=seed,
            reason="bad_caption" if fault else None,
            kind=kind,
            fault=fault or "",
            stripped=phrases,
        )

    def _encode(self, clips: Sequence[np.ndarray | EncodedClip]) -> ClipEmbedding:
        """Embeddings of a batch; clips with fewer frames than wanted are encoded with what they have."""
        repeat = self.model.temporal_embedding is not None
        parts: dict[int, ClipEmbedding] = {}
        frames: dict[int, Tensor] = {}
        for row, clip in enumerate(clips):
            if isinstance(clip, EncodedClip):
                parts[row] = ClipEmbedding(
                    pooled_BD=torch.from_numpy(clip.pooled_D).to(self._device, self._dtype),
                    tokens_BND=torch.from_numpy(clip.tokens_ND).to(self._device, self._dtype),
                )
            else:
                frames[row] = self.framing.tensor(clip, num_frames=self.num_frames, repeat=repeat)
        for count in sorted({len(clip) for clip in frames.values()}):
            rows = [row for row, clip in frames.items() if len(clip) == count]
            pixels_BTCHW = torch.stack([frames[row] for row in rows]).to(self._device, self._dtype)
            whole = self.model.encode_clips(pixels_BTCHW)
            for place, row in enumerate(rows):
                parts[row] = ClipEmbedding(pooled_BD=whole.pooled_BD[place], tokens_BND=whole.tokens_BND[place])
        return ClipEmbedding(
            pooled_BD=torch.stack([parts[row].pooled_BD for row in range(len(clips))]),
            tokens_BND=torch.stack([parts[row].tokens_BND for row in range(len(clips))]),
        )

    def _text_directions(self, texts: Sequence[str]) -> Tensor:
        ids_SM = self.vocabulary.encode(texts).to(self._device)
        return F.normalize(self.model.encode_texts(ids_SM).pooled_SD.float(), dim=-1)


def token_lengths(ids_SM: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Tokens per text up to and including the end token, whatever follows it."""
    return (ids_SM == vocabulary.special.end).int().argmax(dim=1).long() + 1


def uniform_draws(seed: int, clip_sha256: str, count: int) -> np.ndarray:
    """Uniform numbers that belong to a clip: a counter-based stream keyed by the seed and the clip's pixels."""
    key = np.frombuffer(hashlib.sha256(f"{seed}:{clip_sha256}".encode()).digest()[:16], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def _digest(clip: np.ndarray | EncodedClip) -> str:
    return clip.clip_sha256 if isinstance(clip, EncodedClip) else hashlib.sha256(clip.tobytes()).hexdigest()


def _batches(clips: Sequence[Any]) -> Iterator[list[Any]]:
    for clip in clips:
        if isinstance(clip, EncodedClip):
            continue
        if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
            found = f"{clip.dtype} {clip.shape}" if isinstance(clip, np.ndarray) else type(clip).__name__
            raise UsageError(f"a clip is a uint8 array (frames, height, width, 3), not {found}")
    for start in range(0, len(clips), CLIPS_PER_BATCH):
        yield list(clips[start : start + CLIPS_PER_BATCH])
