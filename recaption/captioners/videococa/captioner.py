"""The VideoCoCa captioner: frames in, checked captions, clip scores and embeddings out.

captioner = load_captioner("tiny")
captioner.caption([clip_THWC])[0].text
captioner.score([clip_THWC], ["a red circle", "a blue star"])        # (1, 2) cosines
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recaption.captioners.base import BaseCaptioner, ClipBatch, GeneratedText, GenerationOutput, hash_frames
from recaption.captioners.generation.generate import generate
from recaption.captioners.interface import EncodedClip, TextTower
from recaption.captioners.preprocess import FramePreprocessor, uniform_frame_indices, upload
from recaption.captioners.videococa.caption_embeddings import embed_from_kv_cache
from recaption.captioners.videococa.model import ClipEmbedding, VideoCoCa
from recaption.captioners.videococa.out_of_domain import TrainingAnchors
from recaption.captioners.videococa.tokenizer import CaptionTokenizer
from recaption.errors import CheckpointMismatchError
from recaption.records import CaptionFields


class CocaTextTower:
    """CoCa's unimodal text tower as a text encoder, for example of the diffusion transformer."""

    def __init__(self, model: VideoCoCa, tokenizer: CaptionTokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer
        text = model.coca.text
        self.width = int(text.width)
        self.pooled_width = int(text.output_dim)
        self.max_tokens = int(tokenizer.context_length)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens per whole text, start and end included; `encode` truncates what exceeds `max_tokens`."""
        return self._tokenizer.count(texts)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Text features without padding.

        Returns:
            text_MD: float32, token features of all texts, concatenated (start and end token included), after the
                tower's final norm.
            lengths_S: int64, tokens per text; sums to M.
            pooled_SD: float32, projected CLS token, not normalised.
        """
        if not texts:
            return torch.zeros(0, self.width), torch.zeros(0, dtype=torch.long), torch.zeros(0, self.pooled_width)
        ids_SM = self._tokenizer.encode(texts).to(self._model.coca.logit_scale.device)
        lengths_S = token_lengths(ids_SM, self._tokenizer)
        with torch.inference_mode():
            embedding = self._model.encode_texts(ids_SM)
            tokens_SMD = self._model.coca.text.ln_final(embedding.tokens_SMD)
        text_MD = torch.cat([tokens_SMD[row, :length] for row, length in enumerate(lengths_S.tolist())])
        # cloned outside inference mode, so that autograd accepts the result when a model is trained on it
        return text_MD.float().clone(), lengths_S.cpu(), embedding.pooled_SD.float().clone()


class CocaCaptioner(BaseCaptioner):
    """Captions clips with one `VideoCoCa` and its tokenizer."""

    has_contrastive_head = True
    supports_num_samples = True

    def __init__(
        self,
        model: VideoCoCa,
        tokenizer: CaptionTokenizer,
        preprocessor: FramePreprocessor,
        *,
        name: str,
        weights_hash: str,
        num_frames: int,
        field_parser: Callable[[str], CaptionFields] | None = None,
        kinds: Mapping[str, str] | None = None,
        min_clip_score: float | None = None,
        num_beams: int = 1,
        training_anchors: TrainingAnchors | None = None,
    ) -> None:
        """
        Args:
            num_frames: frames per clip that are encoded; longer clips are sampled uniformly.
            field_parser: caption text -> fields, for a captioner with a closed vocabulary.
            kinds: caption kind -> prompt, for the kinds that it was trained on besides `descriptive`.
            min_clip_score: below this its captions are more often wrong than right, by its own calibration.
            num_beams: default beam count.
            training_anchors: raise the minimum clip score of out-of-domain clips.

        Raises:
            CheckpointMismatchError: the tokenizer is not the one that the model was trained with.
        """
        num_embeddings = int(model.coca.text.token_embedding.num_embeddings)
        if tokenizer.num_tokens != num_embeddings:
            raise CheckpointMismatchError(
                f"the tokenizer of captioner {name} has {tokenizer.num_tokens} tokens, its model {num_embeddings} "
                "embeddings: tokenizer.json belongs to other weights"
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocessor = preprocessor
        self.name = name
        self.weights_hash = weights_hash
        self.num_frames = num_frames
        self.frame_px = preprocessor.frame_px
        self.max_tokens = min(model.coca.text.context_length, model.coca.text_decoder.context_length)
        self._text_tower = CocaTextTower(model, tokenizer)
        self.min_clip_score = min_clip_score
        self.num_beams = num_beams
        self._training_anchors = training_anchors
        self._prompts = {"descriptive": "", **(kinds or {})}
        self.kinds = tuple(self._prompts)
        self._field_parser = field_parser
        self._device = model.coca.logit_scale.device
        self._dtype = model.coca.logit_scale.dtype

    @property
    def text_tower(self) -> TextTower:
        return self._text_tower

    def generate(self, batch: ClipBatch) -> GenerationOutput:
        prompt_ids = self._prompt_ids(batch.kind)
        with torch.inference_mode():
            embedding = self._encode(batch.clips)
            generated = generate(
                self.model.coca,
                embedding.tokens_BND,
                special=self.tokenizer.special,
                decoding=batch.decoding,
                prompt=prompt_ids,
                uniforms_RM=batch.uniforms_RM if batch.decoding.temperature > 0 else None,
                return_kv_cache=not prompt_ids,  # after a prompt, tokens have other positions than in their text alone
            )
        texts = [
            GeneratedText(
                text=self.tokenizer.decode(caption.tokens),
                num_tokens=len(caption.tokens),
                mean_logprob=caption.mean_logprob,
                ended=caption.ended,
            )
            for caption in generated
        ]
        clip_embeddings_BD = embedding.pooled_BD.float().cpu().numpy()
        return GenerationOutput(texts=texts, clip_embeddings_BD=clip_embeddings_BD, decoder_outputs=generated)

    def min_clip_scores(self, clip_embeddings_BD: np.ndarray) -> np.ndarray | None:
        if self._training_anchors is None:
            return super().min_clip_scores(clip_embeddings_BD)
        return self._training_anchors.min_clip_scores(clip_embeddings_BD)

    def encode(self, clips: Sequence[np.ndarray | EncodedClip]) -> list[EncodedClip]:
        """Encode clips once, to be captioned or scored any number of times; encoded clips are returned as they are."""
        new = iter(self._encode_new([clip for clip in clips if not isinstance(clip, EncodedClip)]))
        return [clip if isinstance(clip, EncodedClip) else next(new) for clip in clips]

    def _encode_new(self, clips: Sequence[np.ndarray]) -> list[EncodedClip]:
        encoded: list[EncodedClip] = []
        for batch in self.batches(clips):
            with torch.inference_mode():
                embedding = self._encode(batch)
            pooled_BD = embedding.pooled_BD.float().cpu().numpy()
            tokens_BND = embedding.tokens_BND.to(torch.float16).cpu().numpy()
            encoded += [
                EncodedClip(clip_sha256=hash_frames(clip), pooled_D=pooled_BD[row], tokens_ND=tokens_BND[row])
                for row, clip in enumerate(batch)
            ]
        return encoded

    def _prompt_ids(self, kind: str) -> list[int]:
        ids = self.tokenizer.encode([self._prompts[kind]])[0].tolist()
        return ids[1 : ids.index(self.tokenizer.special.end)]

    def embed_clips(self, clips: Sequence[np.ndarray | EncodedClip]) -> np.ndarray:
        with torch.inference_mode():
            parts = [self._encode(batch).pooled_BD.float() for batch in self.batches(clips)]
            return torch.cat(parts).cpu().numpy() if parts else self.embed_texts([])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, int(self.model.coca.text.output_dim)), np.float32)
        ids_SM = self.tokenizer.encode(texts).to(self._device)
        with torch.inference_mode():
            return F.normalize(self.model.pool_texts(ids_SM).float(), dim=-1).cpu().numpy()

    def embed_generated(self, texts: Sequence[str], output: GenerationOutput) -> np.ndarray:
        """Embed from the KV caches of generation."""
        if not texts:
            return self.embed_texts(texts)
        ids_SM = self.tokenizer.encode(texts).to(self._device)
        with torch.inference_mode():
            pooled_SD = embed_from_kv_cache(
                self.model, ids_SM, output.decoder_outputs, start=self.tokenizer.special.start
            )
            return F.normalize(pooled_SD.float(), dim=-1).cpu().numpy()

    def parse_fields(self, text: str) -> CaptionFields:
        return self._field_parser(text) if self._field_parser else CaptionFields()

    def _encode(self, clips: Sequence[np.ndarray | EncodedClip]) -> ClipEmbedding:
        """Embeddings of a batch; clips with few frames repeat some if the clip encoder needs that."""
        repeat = self.model.clip_encoder.repeats_frames
        parts: dict[int, ClipEmbedding] = {}
        frames: dict[int, np.ndarray] = {}
        for row, clip in enumerate(clips):
            if isinstance(clip, EncodedClip):
                parts[row] = ClipEmbedding(
                    pooled_BD=torch.from_numpy(clip.pooled_D).to(self._device),
                    tokens_BND=torch.from_numpy(clip.tokens_ND).to(self._device, self._dtype),
                )
            else:
                indices = uniform_frame_indices(len(clip), self.num_frames, repeat=repeat)
                frames[row] = self.preprocessor.resize_frames(clip, indices)
        for count in sorted({len(clip) for clip in frames.values()}):
            rows = [row for row, clip in frames.items() if len(clip) == count]
            pixels_BTHWC = upload(np.stack([frames[row] for row in rows]), self._device)
            pixels_BTCHW = self.preprocessor.normalise(pixels_BTHWC).to(self._dtype)
            encoded = self.model.encode_clips(pixels_BTCHW)
            for index, row in enumerate(rows):
                parts[row] = ClipEmbedding(pooled_BD=encoded.pooled_BD[index], tokens_BND=encoded.tokens_BND[index])
        return ClipEmbedding(
            pooled_BD=torch.stack([parts[row].pooled_BD for row in range(len(clips))]),
            tokens_BND=torch.stack([parts[row].tokens_BND for row in range(len(clips))]),
        )


def token_lengths(ids_SM: Tensor, tokenizer: CaptionTokenizer) -> Tensor:
    """Tokens per text, up to and including the first end token."""
    return (ids_SM == tokenizer.special.end).int().argmax(dim=1).long() + 1
