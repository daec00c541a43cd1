"""The captioner that pipelines use: frames in, checked captions out, around one VideoCoCa.

captioner = load_captioner("tiny")
captioner.caption([clip_THWC])[0].text
captioner.score([clip_THWC], ["a red circle", "a blue star"])        (1, 2) cosines
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recaption.captioners.base import Batch, Describing, Said, Told, digest
from recaption.captioners.generation.generate import generate
from recaption.captioners.generation.packed_weights import StepWeights
from recaption.captioners.interface import EncodedClip, TextTower
from recaption.captioners.preprocess import Framing
from recaption.captioners.videococa.caption_embeddings import pool_said
from recaption.captioners.videococa.model import ClipEmbedding, VideoCoCa
from recaption.captioners.videococa.out_of_domain import Familiar
from recaption.captioners.videococa.tokenizer import Vocabulary
from recaption.errors import CheckpointMismatchError
from recaption.records import CaptionFields


class CocaTextTower:
    """The unimodal text transformer by itself: the text encoder of the diffusion transformer."""

    def __init__(self, model: VideoCoCa, vocabulary: Vocabulary) -> None:
        self._model = model
        self._vocabulary = vocabulary
        text = model.coca.text
        self.width = int(text.width)
        self.pooled_width = int(text.output_dim)
        self.max_tokens = int(vocabulary.context_length)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Of each whole text, start and end included; what exceeds `max_tokens` is cut by `encode`."""
        return self._vocabulary.count(texts)

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


class CocaCaptioner(Describing):
    """Frames and decoding settings to words and contrastive embeddings."""

    can_score = True
    folds_samples = True

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
        num_beams: int = 1,
        familiar: Familiar | None = None,
    ) -> None:
        """
        Args:
            familiar: what it was trained on, where its captions of other footage are to be told by it.
            kinds: of caption that it was trained on, each with the words that ask for it.
            min_clip_score: below this its captions are rather wrong than right, by its own calibration.
            num_beams: that its captions were found best with.
            num_frames: frames of a clip that are looked at; a clip given with more is sampled evenly.
            read_fields: reads the caption fields out of a text, for a captioner with a closed vocabulary.

        Raises:
            CheckpointMismatchError: the vocabulary is not the one that the model was trained with.
        """
        known = int(model.coca.text.token_embedding.num_embeddings)
        if vocabulary.num_tokens != known:
            raise CheckpointMismatchError(
                f"the tokenizer of captioner {name} has {vocabulary.num_tokens} tokens, its model {known}: "
                "tokenizer.json belongs to other weights"
            )
        self.model = model.eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.framing = framing
        self.name = name
        self.weights_hash = weights_hash
        self.num_frames = num_frames
        self.frame_px = framing.frame_px
        self.max_tokens = min(model.coca.text.context_length, model.coca.text_decoder.context_length)
        self._text_tower = CocaTextTower(model, vocabulary)
        self.min_clip_score = min_clip_score
        self.num_beams = num_beams
        self._familiar = familiar
        self._prefixes = {"descriptive": "", **(kinds or {})}
        self.kinds = tuple(self._prefixes)
        self._read_fields = read_fields
        self._device = model.coca.logit_scale.device
        self._dtype = model.coca.logit_scale.dtype
        self._weights: StepWeights | None = None
        self._is_rounded = False

    @property
    def text_tower(self) -> TextTower:
        return self._text_tower

    def tell(self, batch: Batch) -> Told:
        with torch.inference_mode():
            embedding = self._encode(batch.clips)
            generated = generate(
                self.model.coca,
                embedding.tokens_BND,
                special=self.vocabulary.special,
                decoding=batch.decoding,
                prompt=self._prefix(batch.kind),
                draws_RM=batch.draws_RM if batch.decoding.temperature > 0 else None,
                weights=self._step_weights(),
                keep_states=not self._prefix(batch.kind),  # with words before it, no caption is where it was said
            )
        said = [
            Said(
                text=self.vocabulary.decode(one.tokens),
                num_tokens=len(one.tokens),
                mean_logprob=one.mean_logprob,
                ended=one.ended,
            )
            for one in generated
        ]
        return Told(said=said, clip_BD=embedding.pooled_BD.float().cpu().numpy(), states=generated)

    def least_scores(self, clip_BD: np.ndarray) -> np.ndarray | None:
        return super().least_scores(clip_BD) if self._familiar is None else self._familiar.least_scores(clip_BD)

    def encode(self, clips: Sequence[np.ndarray | EncodedClip]) -> list[EncodedClip]:
        """Look at the frames once, for any number of `describe`s; what is encoded stays as it is."""
        made = iter(self._encoded([clip for clip in clips if not isinstance(clip, EncodedClip)]))
        return [clip if isinstance(clip, EncodedClip) else next(made) for clip in clips]

    def _encoded(self, clips: Sequence[np.ndarray]) -> list[EncodedClip]:
        encoded: list[EncodedClip] = []
        for batch in self.batches(clips):
            with torch.inference_mode():
                embedding = self._encode(batch)
            pooled_BD = embedding.pooled_BD.float().cpu().numpy()
            tokens_BND = embedding.tokens_BND.to(torch.float16).cpu().numpy()
            encoded += [
                EncodedClip(clip_sha256=digest(clip), pooled_D=pooled_BD[row], tokens_ND=tokens_BND[row])
                for row, clip in enumerate(batch)
            ]
        return encoded

    def _step_weights(self) -> StepWeights:
        """Laid out at the first caption: who only scores needs none, and the copy is as large as the text towers."""
        if self._weights is None:
            self._weights = StepWeights(self.model.coca)
        return self._weights

    def quantise(self) -> None:
        """Decode with matrices rounded to 8 bits from now on; raises UsageError where the model is not in bfloat16."""
        self._weights = StepWeights(self.model.coca, int8=True)
        self._is_rounded = True

    def _prefix(self, kind: str) -> list[int]:
        ids = self.vocabulary.encode([self._prefixes[kind]])[0].tolist()
        return ids[1 : ids.index(self.vocabulary.special.end)]

    def embed_clips(self, clips: Sequence[np.ndarray | EncodedClip]) -> np.ndarray:
        with torch.inference_mode():
            parts = [self._encode(batch).pooled_BD.float() for batch in self.batches(clips)]
            return torch.cat(parts).cpu().numpy() if parts else self.embed_texts([])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, int(self.model.coca.text.output_dim)), np.float32)
        ids_SM = self.vocabulary.encode(texts).to(self._device)
        with torch.inference_mode():
            return F.normalize(self.model.pool_texts(ids_SM).float(), dim=-1).cpu().numpy()

    def embed_said(self, texts: Sequence[str], told: Told) -> np.ndarray:
        """From the text tower's states while it said them; matrices rounded to 8 bits make captions, not scores."""
        if self._is_rounded or not texts:
            return self.embed_texts(texts)
        ids_SM = self.vocabulary.encode(texts).to(self._device)
        with torch.inference_mode():
            pooled_SD = pool_said(
                self.model,
                ids_SM,
                told.states,
                start=self.vocabulary.special.start,
                weights=self._step_weights(),
            )
            return F.normalize(pooled_SD.float(), dim=-1).cpu().numpy()

    def fields_in(self, text: str) -> CaptionFields:
        return self._read_fields(text) if self._read_fields else CaptionFields()

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


def token_lengths(ids_SM: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Tokens per text up to and including the end token, whatever follows it."""
    return (ids_SM == vocabulary.special.end).int().argmax(dim=1).long() + 1
