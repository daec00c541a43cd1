"""Caption embeddings from the KV cache equal those of a full forward pass over the text."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from recaption.captioners.generation.generate import generate
from recaption.captioners.generation.settings import DecodingSettings, SpecialTokens
from recaption.captioners.registry import load_captioner
from recaption.captioners.videococa import caption_embeddings
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


def captions_by(model: VideoCoCa, **settings):
    """Captions of twelve clips and their end token, which is one of the generated tokens, so that captions end anywhere."""
    pixels = torch.randn(12, 1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    tokens_BND = model.encode_clips(pixels).tokens_BND
    uniforms = np.random.default_rng(0).random((36, CONTEXT))
    decoding = DecodingSettings(max_tokens=CONTEXT - 2, **settings)
    special = SpecialTokens(start=START, end=2, pad=PAD)
    for _ in range(2):
        captions = generate(
            model.coca, tokens_BND, special=special, decoding=decoding, uniforms_RM=uniforms, return_kv_cache=True
        )
        common = [token for caption in captions for token in caption.tokens[2:6]]
        special = SpecialTokens(start=START, end=max(set(common), key=common.count), pad=PAD)
    return captions, special.end


def as_texts(captions, end: int) -> torch.Tensor:
    """Padded token ids of the captions' texts: start, text, end, padding."""
    ids_SM = torch.zeros(len(captions), CONTEXT, dtype=torch.long)
    for row, caption in enumerate(captions):
        text = [token for token in caption.tokens if token not in (end, PAD)]
        ids = [START, *text, end]
        ids_SM[row, : len(ids)] = torch.tensor(ids)
    return ids_SM


@pytest.fixture
def num_full_passes(monkeypatch):
    """Counts the texts that got a full forward pass."""
    counted = []
    pool_texts = VideoCoCa.pool_texts
    monkeypatch.setattr(VideoCoCa, "pool_texts", lambda self, ids: counted.append(len(ids)) or pool_texts(self, ids))
    return lambda: sum(counted)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3}, {"num_samples": 3, "temperature": 1.5}], ids=["greedy", "beams", "samples"]
)
@torch.inference_mode()
def test_embedding_from_the_cache_equals_that_of_the_text(legacy, settings, num_full_passes):
    model = small_model(legacy=legacy)
    captions, end = captions_by(model, **settings)
    assert len({len(caption.tokens) for caption in captions}) > 2
    ids_SM = as_texts(captions, end)
    expected = model.encode_texts(ids_SM).pooled_SD
    assert_close(
        caption_embeddings.embed_from_kv_cache(model, ids_SM, captions, start=START), expected, atol=2e-5, rtol=2e-5
    )
    assert num_full_passes() == 0
    assert float((expected - expected.mean(dim=0)).abs().max()) > 0.1


@torch.inference_mode()
def test_edited_texts_get_their_own_embedding(num_full_passes, monkeypatch):
    monkeypatch.setattr(caption_embeddings, "MAX_NEW_POSITIONS", 4)
    model = small_model(legacy=True)
    captions, end = captions_by(model)
    ids_SM = as_texts(captions, end)
    ids_SM[0, 1:4] = torch.tensor([7, 9, 11])  # shares no token with the caption
    ids_SM[1] = torch.zeros(CONTEXT, dtype=torch.long)
    ids_SM[1, :2] = torch.tensor([START, end])  # empty text
    ids_SM[2] = torch.tensor([START, *[5] * (CONTEXT - 2), end])  # no padding
    captions[3] = dataclasses.replace(captions[3], kv_cache_LKPD=None)
    got = caption_embeddings.embed_from_kv_cache(model, ids_SM, captions, start=START)
    assert 3 <= num_full_passes() < len(captions)
    assert_close(got, model.encode_texts(ids_SM).pooled_SD, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}])
def test_clip_scores_equal_score_without_any_full_pass(settings, num_full_passes):
    captioner = load_captioner("tiny")
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (8, 48, 64, 3), dtype=np.uint8) // (1 + i) for i in range(4)]
    batch = captioner.caption_with_embeddings(clips, **settings)
    assert num_full_passes() == 0
    texts = [caption.text for caption in batch.captions]
    np.testing.assert_allclose(batch.text_embeddings_BD, captioner.embed_texts(texts), atol=1e-5)
    scores = [caption.clip_score for caption in batch.captions]
    np.testing.assert_allclose(scores, np.diag(captioner.score(clips, texts)), atol=1e-5)


@torch.inference_mode()
def test_embedding_works_under_autocast():
    """Trainers validate under autocast: computed tensors are bfloat16, stored ones are not."""
    model = small_model(legacy=True)
    captions, end = captions_by(model)
    ids_SM = as_texts(captions, end)
    ids_SM[-1, 1] = 3 + (ids_SM[-1, 1] == 3)  # an edited text gets a full pass
    expected = model.encode_texts(ids_SM).pooled_SD
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = caption_embeddings.embed_from_kv_cache(model, ids_SM, captions, start=START)
    assert_close(got, expected, atol=0.1, rtol=0.1)
