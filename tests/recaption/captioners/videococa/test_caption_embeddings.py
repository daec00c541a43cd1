"""A caption's embedding, made while it was said, is the one of a pass over the whole text."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from recaption.captioners.generation.generate import generate
from recaption.captioners.generation.settings import Decoding, SpecialTokens
from recaption.captioners.registry import load_captioner
from recaption.captioners.videococa import caption_embeddings as said_texts
from recaption.captioners.videococa.model import VideoCoCa, build_coca

START, PAD = 1, 0
CONTEXT = 12


def small_model(*, legacy: bool) -> VideoCoCa:
    tower = {"context_length": CONTEXT, "vocab_size": 40, "width": 32, "heads": 4, "layers": 2}
    vision = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 24, "head_width": 8, "attentional_pool": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        coca = build_coca(
            {
                "embed_dim": 32,
                "vision_cfg": {**vision, "attn_pooler_queries": 5, "attn_pooler_heads": 4, "output_tokens": True},
                "text_cfg": {**tower, "embed_cls": True, "output_tokens": True},
                "multimodal_cfg": tower,
            }
        )
        with torch.no_grad():
            coca.text.token_embedding.weight.mul_(20)
            coca.text.positional_embedding.mul_(40)
            coca.text_decoder.text_projection.mul_(6)
            for block in coca.text_decoder.cross_attn:
                block.attn.out_proj.weight.mul_(8)
    coca.text.correct_cls_mask = not legacy
    return VideoCoCa(coca).eval()


def said_by(model: VideoCoCa, **settings):
    """Captions of twelve clips, and their end token: one that they say, so that they end at any time."""
    pixels = torch.randn(12, 1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    tokens_BND = model.encode_clips(pixels).tokens_BND
    draws = np.random.default_rng(0).random((36, CONTEXT))
    decoding = Decoding(max_tokens=CONTEXT - 2, **settings)
    ends = SpecialTokens(start=START, end=2, pad=PAD)
    for _ in range(2):
        said = generate(model.coca, tokens_BND, special=ends, decoding=decoding, draws_RM=draws, keep_states=True)
        words = [token for one in said for token in one.tokens[2:6]]
        ends = SpecialTokens(start=START, end=max(set(words), key=words.count), pad=PAD)
    return said, ends.end


def as_texts(said, end: int) -> torch.Tensor:
    """What a vocabulary makes of the words: start, words, end, padding."""
    ids_SM = torch.zeros(len(said), CONTEXT, dtype=torch.long)
    for row, one in enumerate(said):
        words = [token for token in one.tokens if token not in (end, PAD)]
        ids = [START, *words, end]
        ids_SM[row, : len(ids)] = torch.tensor(ids)
    return ids_SM


@pytest.fixture
def num_whole(monkeypatch):
    """Texts that went through the tower as a whole."""
    counted = []
    whole = VideoCoCa.pool_texts
    monkeypatch.setattr(VideoCoCa, "pool_texts", lambda self, ids: counted.append(len(ids)) or whole(self, ids))
    return lambda: sum(counted)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3}, {"num_samples": 3, "temperature": 1.5}], ids=["greedy", "beams", "samples"]
)
@torch.inference_mode()
def test_embedding_of_a_caption_is_that_of_its_text(legacy, settings, num_whole):
    model = small_model(legacy=legacy)
    said, end = said_by(model, **settings)
    assert len({len(one.tokens) for one in said}) > 2
    ids_SM = as_texts(said, end)
    expected = model.encode_texts(ids_SM).pooled_SD
    assert_close(said_texts.pool_said(model, ids_SM, said, start=START), expected, atol=2e-5, rtol=2e-5)
    assert num_whole() == 0
    assert float((expected - expected.mean(dim=0)).abs().max()) > 0.1


@torch.inference_mode()
def test_texts_that_were_changed_get_what_is_theirs(num_whole, monkeypatch):
    monkeypatch.setattr(said_texts, "MAX_NEW", 4)
    model = small_model(legacy=True)
    said, end = said_by(model)
    ids_SM = as_texts(said, end)
    ids_SM[0, 1:4] = torch.tensor([7, 9, 11])  # nothing of it was said
    ids_SM[1] = torch.zeros(CONTEXT, dtype=torch.long)
    ids_SM[1, :2] = torch.tensor([START, end])  # nothing is left
    ids_SM[2] = torch.tensor([START, *[5] * (CONTEXT - 2), end])  # no padding at all
    said[3] = dataclasses.replace(said[3], states_LKPD=None)
    got = said_texts.pool_said(model, ids_SM, said, start=START)
    assert 3 <= num_whole() < len(said)
    assert_close(got, model.encode_texts(ids_SM).pooled_SD, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}])
def test_described_scores_are_those_of_score_and_no_caption_is_read_again(settings, num_whole):
    captioner = load_captioner("tiny")
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (8, 48, 64, 3), dtype=np.uint8) // (1 + i) for i in range(4)]
    described = captioner.describe(clips, **settings)
    assert num_whole() == 0
    texts = [caption.text for caption in described.captions]
    np.testing.assert_allclose(described.text_BD, captioner.embed_texts(texts), atol=1e-5)
    scores = [caption.clip_score for caption in described.captions]
    np.testing.assert_allclose(scores, np.diag(captioner.score(clips, texts)), atol=1e-5)


@torch.inference_mode()
def test_a_training_in_half_precision_may_look_at_its_captions():
    """Trainers validate under autocast: what is computed there comes in bfloat16, what is stored does not."""
    model = small_model(legacy=True)
    said, end = said_by(model)
    ids_SM = as_texts(said, end)
    ids_SM[-1, 1] = 3 + (ids_SM[-1, 1] == 3)  # a text that was not said goes through the tower as a whole
    expected = model.encode_texts(ids_SM).pooled_SD
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = said_texts.pool_said(model, ids_SM, said, start=START)
    assert_close(got, expected, atol=0.1, rtol=0.1)
