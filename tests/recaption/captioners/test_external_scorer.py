"""Captions by one captioner, scores by another."""

from __future__ import annotations

import numpy as np

from recaption.captioners.base import BaseCaptioner, GeneratedText, GenerationOutput
from recaption.captioners.external_scorer import CaptionerWithScorer

BRIGHTNESS = {"a black square": 0.0, "a grey square": 0.5, "a white square": 1.0}


class Sampler(BaseCaptioner):
    """Samples the three texts for every clip; the model itself likes the last best."""

    name, weights_hash, num_frames, frame_px, max_tokens = "sampler", "0" * 12, 1, 8, 8
    supports_num_samples = True

    def generate(self, batch):
        texts = list(BRIGHTNESS)
        number = batch.decoding.num_samples
        return GenerationOutput(
            texts=[
                GeneratedText(text=texts[row % number], num_tokens=3, mean_logprob=-1.0 / (1 + row % number))
                for row in range(len(batch.rng_keys))
            ]
        )


class BrightnessScorer:
    """Scores a text by how near its brightness is to that of the clip."""

    has_contrastive_head, num_frames, frame_px, min_clip_score = True, 1, 8, None

    def embed_clips(self, clips):
        return self._unit(np.array([clip.mean() / 255 for clip in clips]))

    def embed_texts(self, texts):
        return self._unit(np.array([BRIGHTNESS[text] for text in texts]))

    def _unit(self, levels):
        return np.stack([np.cos(levels), np.sin(levels)], axis=1).astype(np.float32)


def test_the_scorer_chooses_among_the_samples_of_each_clip():
    clips = [np.full((1, 8, 8, 3), level, np.uint8) for level in (0, 128, 255)] * 10  # more than one batch
    captioner = CaptionerWithScorer(Sampler(), BrightnessScorer())
    chosen = captioner.caption_with_embeddings(clips, num_samples=3, temperature=0.7)
    assert [caption.text for caption in chosen.captions] == list(BRIGHTNESS) * 10
    assert min(caption.clip_score for caption in chosen.captions) > 0.999
    assert np.allclose((chosen.clip_embeddings_BD * chosen.text_embeddings_BD).sum(axis=1), 1.0, atol=1e-4)
    alone = Sampler().caption_with_embeddings(clips, num_samples=3, temperature=0.7).captions
    assert {caption.text for caption in alone} == {"a white square"}
    assert captioner.caption_with_embeddings([], num_samples=3, temperature=0.7).captions == []
