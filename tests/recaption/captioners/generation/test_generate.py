"""Generation with a KV cache gives exactly the tokens of the full forward pass."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recaption.captioners.generation.generate import generate, sample_tokens
from recaption.captioners.generation.kv_cache import CachedDecoder
from recaption.captioners.generation.settings import DecodingSettings, SpecialTokens
from recaption.captioners.videococa.model import VideoCoCa, init_decoder_weights
from recaption.errors import UsageError

SPECIAL = SpecialTokens(start=1, end=2, pad=0)
NUM_TOKENS = 40


def small_coca(*, context_length: int = 12, seed: int = 0, spread: float = 6.0) -> torch.nn.Module:
    """A random CoCa whose captions differ between clips; a larger `spread` makes its distributions more peaked."""
    from open_clip.coca_model import CoCa

    tower = {"context_length": context_length, "vocab_size": NUM_TOKENS, "width": 32, "heads": 4, "layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        coca = CoCa(
            embed_dim=32,
            vision_cfg={
                "image_size": 16,
                "patch_size": 8,
                "layers": 2,
                "width": 24,
                "head_width": 8,
                "attentional_pool": True,
                "attn_pooler_queries": 5,
                "attn_pooler_heads": 4,
                "output_tokens": True,
            },
            text_cfg={**tower, "embed_cls": True, "output_tokens": True},
            multimodal_cfg={**tower},
        )
        init_decoder_weights(coca)
        with torch.no_grad():
            coca.text.token_embedding.weight.mul_(20)
            coca.text.positional_embedding.mul_(40)
            coca.text_decoder.text_projection.mul_(spread)
            for block in coca.text_decoder.cross_attn:
                block.attn.out_proj.weight.mul_(8)
    return coca.eval()


def image_tokens(coca: torch.nn.Module, num_clips: int, seed: int = 1) -> torch.Tensor:
    pixels = torch.randn(num_clips, 2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return VideoCoCa(coca).encode_clips(pixels).tokens_BND


def full_logits(coca: torch.nn.Module, tokens_BND: torch.Tensor, ids_RM: torch.Tensor) -> torch.Tensor:
    """open_clip's own forward over the whole prefix."""
    unused = tokens_BND[:, 0]
    return coca(None, ids_RM, image_latent=unused, image_embs=tokens_BND, output_labels=False)["logits"][:, -1]


@torch.inference_mode()
def full_greedy(coca: torch.nn.Module, tokens_BND: torch.Tensor, max_tokens: int, prompt=(), special=SPECIAL):
    captions = []
    for clip in range(len(tokens_BND)):
        ids = [special.start, *prompt]
        logprobs: list[float] = []
        while len(logprobs) < max_tokens:
            logits = full_logits(coca, tokens_BND[clip : clip + 1], torch.tensor([ids]))[0]
            token = int(logits.argmax())
            logprobs.append(float(F.log_softmax(logits, dim=-1)[token]))
            ids.append(token)
            if token in (special.end, special.pad):
                break
        captions.append((tuple(ids[1 + len(prompt) :]), logprobs))
    return captions


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("prompt", [(), (7, 9, 4)])
def test_greedy_equals_open_clip_full_forward(seed, prompt):
    coca = small_coca(seed=seed)
    tokens_BND = image_tokens(coca, 7)
    expected = full_greedy(coca, tokens_BND, 9, prompt)
    with torch.inference_mode():
        got = generate(coca, tokens_BND, special=SPECIAL, decoding=DecodingSettings(max_tokens=9), prompt=prompt)
    assert [caption.tokens for caption in got] == [tokens for tokens, _ in expected]
    for caption, (_, logprobs) in zip(got, expected, strict=True):
        np.testing.assert_allclose(caption.logprobs, logprobs, atol=1e-4)
        assert caption.mean_logprob == pytest.approx(sum(caption.logprobs) / len(caption.logprobs))


def test_captions_end_in_all_ways_and_clips_differ():
    """The inputs of the test above cover end tokens, pad tokens, truncation and different captions."""
    endings = set()
    texts = set()
    for seed in range(6):
        coca = small_coca(seed=seed)
        with torch.inference_mode():
            for caption in generate(
                coca, image_tokens(coca, 7), special=SPECIAL, decoding=DecodingSettings(max_tokens=9)
            ):
                endings.add((caption.ended, caption.tokens[-1] if caption.ended else None))
                texts.add(caption.tokens)
                assert caption.ended == (caption.tokens[-1] in (SPECIAL.end, SPECIAL.pad))
    assert {(True, SPECIAL.end), (True, SPECIAL.pad), (False, None)} <= endings
    assert len(texts) > 10


def test_a_caption_does_not_depend_on_its_batch():
    coca = small_coca(seed=3)
    tokens_BND = image_tokens(coca, 6)
    uniforms = np.random.default_rng(0).random((6, 9))
    decoding = DecodingSettings(max_tokens=9, temperature=1.0, top_k=10, top_p=0.9)
    with torch.inference_mode():
        together = generate(coca, tokens_BND, special=SPECIAL, decoding=decoding, uniforms_RM=uniforms)
        alone = [
            generate(coca, tokens_BND[i : i + 1], special=SPECIAL, decoding=decoding, uniforms_RM=uniforms[i : i + 1])[
                0
            ]
            for i in range(6)
        ]
    assert [caption.tokens for caption in together] == [caption.tokens for caption in alone]


@torch.inference_mode()
def three_samples_each(coca, tokens_BND, uniforms, rows=slice(None), num_samples=3):
    """Sampled captions; end and pad are set to two generated tokens, so that captions end at different lengths."""
    decoding = DecodingSettings(max_tokens=9, temperature=1.0, num_samples=3)
    no_end = SpecialTokens(start=1, end=-1, pad=-1)
    without_end = generate(coca, tokens_BND, special=no_end, decoding=decoding, uniforms_RM=uniforms)
    special = SpecialTokens(start=1, end=without_end[0].tokens[2], pad=without_end[-1].tokens[4])
    clips = tokens_BND if num_samples == 3 else tokens_BND.repeat_interleave(3, dim=0)
    decoding = dataclasses.replace(decoding, num_samples=num_samples)
    return generate(coca, clips[rows], special=special, decoding=decoding, uniforms_RM=uniforms[rows])


def test_several_samples_per_clip_equal_single_samples():
    """Samples that share a clip's cross-attention keys equal those generated one by one, at any length."""
    coca = small_coca(seed=0)
    tokens_BND = image_tokens(coca, 4)
    uniforms = np.random.default_rng(1).random((12, 9))
    together = three_samples_each(coca, tokens_BND, uniforms)
    alone = [three_samples_each(coca, tokens_BND, uniforms, [row], num_samples=1)[0] for row in range(12)]
    assert [caption.tokens for caption in together] == [caption.tokens for caption in alone]
    assert len({len(caption.tokens) for caption in together}) > 2
    with pytest.raises(UsageError, match="12 captions"):
        generate(
            coca,
            tokens_BND,
            special=SPECIAL,
            decoding=DecodingSettings(max_tokens=9, temperature=1.0, num_samples=3),
            uniforms_RM=uniforms[:4],
        )


def test_finished_rows_leave_the_batch(monkeypatch):
    coca = small_coca(seed=0)
    rows = []
    step = CachedDecoder.step
    monkeypatch.setattr(CachedDecoder, "step", lambda self, tokens: rows.append(len(tokens)) or step(self, tokens))
    three_samples_each(coca, image_tokens(coca, 4), np.random.default_rng(1).random((12, 9)))
    rows = rows[9:]  # the first nine steps are those without an end token
    assert rows[0] == 12
    assert rows[-1] < 12
    assert rows == sorted(rows, reverse=True)


def test_sampling_follows_the_distribution_with_temperature_top_k_and_top_p():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(4000, -1)
    uniform = torch.linspace(0, 1, 4001)[:-1]

    def frequencies(**settings):
        counts = sample_tokens(
            logits, uniform, DecodingSettings(temperature=settings.pop("temperature", 1.0), **settings)
        ).bincount(minlength=4)
        return (counts / 4000).tolist()

    np.testing.assert_allclose(frequencies(), [0.5, 0.3, 0.15, 0.05], atol=2e-3)
    np.testing.assert_allclose(frequencies(top_k=2), [0.625, 0.375, 0, 0], atol=2e-3)
    np.testing.assert_allclose(frequencies(top_p=0.7), [0.625, 0.375, 0, 0], atol=2e-3)
    np.testing.assert_allclose(frequencies(top_p=0.01), [1, 0, 0, 0])
    squared = np.square([0.5, 0.3, 0.15, 0.05])
    np.testing.assert_allclose(frequencies(temperature=0.5), squared / squared.sum(), atol=2e-3)


def test_sampling_with_one_candidate_is_greedy():
    coca = small_coca(seed=2)
    tokens_BND = image_tokens(coca, 4)
    uniforms = np.random.default_rng(5).random((4, 9))
    with torch.inference_mode():
        greedy = generate(coca, tokens_BND, special=SPECIAL, decoding=DecodingSettings(max_tokens=9))
        sampled = generate(
            coca,
            tokens_BND,
            special=SPECIAL,
            decoding=DecodingSettings(max_tokens=9, temperature=2, top_k=1),
            uniforms_RM=uniforms,
        )
    assert sampled == greedy


def test_context_length_bounds_the_caption():
    coca = small_coca(context_length=6, seed=1)
    tokens_BND = image_tokens(coca, 3)
    decoding = DecodingSettings(max_tokens=500)
    with torch.inference_mode():
        captions = generate(coca, tokens_BND, special=SpecialTokens(start=1, end=-1, pad=-1), decoding=decoding)
        assert {len(caption.tokens) for caption in captions} == {6}
        assert not any(caption.ended for caption in captions)
        with pytest.raises(UsageError, match="context"):
            generate(coca, tokens_BND, special=SPECIAL, prompt=range(7))
        steps = CachedDecoder(coca, tokens_BND)
        with pytest.raises(UsageError, match="context"):
            steps.step(torch.ones(3, 7, dtype=torch.long))


@torch.inference_mode()
def exhaustive_best(coca, tokens_1ND, max_tokens):
    """Best mean log-probability over every caption of at most `max_tokens` tokens that ends."""
    best = (-math.inf, ())
    frontier = [((SPECIAL.start,), 0.0)]
    for length in range(1, max_tokens + 1):
        ids_RM = torch.tensor([tokens for tokens, _ in frontier])
        logprob_RV = F.log_softmax(full_logits(coca, tokens_1ND.expand(len(frontier), -1, -1), ids_RM), dim=-1)
        continuations = []
        for (tokens, total), row in zip(frontier, logprob_RV.tolist(), strict=True):
            for token, logprob in enumerate(row):
                if token in (SPECIAL.end, SPECIAL.pad):
                    best = max(best, ((total + logprob) / length, (*tokens[1:], token)))
                else:
                    continuations.append(((*tokens, token), total + logprob))
        frontier = continuations
    return best


def test_wide_beam_search_finds_the_global_optimum():
    """With as many beams as prefixes nothing is pruned: the result is the exhaustive optimum."""
    coca = small_coca(seed=4, spread=1.0)
    with torch.no_grad():  # a vocabulary of 6, so that all prefixes can be enumerated
        coca.text_decoder.text_projection = torch.nn.Parameter(coca.text_decoder.text_projection[:, :6].clone())
    tokens_BND = image_tokens(coca, 3)
    expected = [exhaustive_best(coca, tokens_BND[clip : clip + 1], 3) for clip in range(3)]
    with torch.inference_mode():
        got = generate(coca, tokens_BND, special=SPECIAL, decoding=DecodingSettings(max_tokens=3, num_beams=16))
    for caption, (mean_logprob, tokens) in zip(got, expected, strict=True):
        assert caption.tokens == tokens
        assert caption.mean_logprob == pytest.approx(mean_logprob, abs=1e-4)


@torch.inference_mode()
def full_beam_search(coca, tokens_1ND, num_beams, max_tokens):
    """Textbook beam search on open_clip's full forward, one clip, one prefix at a time."""
    live = [((SPECIAL.start,), ())]
    finished = []
    for _ in range(max_tokens):
        continuations = []
        for tokens, logprobs in live:
            row = F.log_softmax(full_logits(coca, tokens_1ND, torch.tensor([tokens]))[0], dim=-1).tolist()
            continuations += [((*tokens, token), (*logprobs, logprob)) for token, logprob in enumerate(row)]
        continuations.sort(key=lambda beam: -sum(beam[1]))
        finished += [beam for beam in continuations[:num_beams] if beam[0][-1] in (SPECIAL.end, SPECIAL.pad)]
        live = [beam for beam in continuations if beam[0][-1] not in (SPECIAL.end, SPECIAL.pad)][:num_beams]
        means = sorted((sum(scores) / len(scores) for _, scores in finished), reverse=True)
        if len(finished) >= num_beams and max(sum(s) for _, s in live) / len(live[0][1]) <= means[num_beams - 1]:
            break
    if finished:
        return max(finished, key=lambda beam: sum(beam[1]) / len(beam[1]))[0][1:]
    return max(live, key=lambda beam: sum(beam[1]))[0][1:]


@pytest.mark.parametrize(("seed", "num_beams"), itertools.product(range(3), (2, 4)))
def test_beam_search_equals_textbook_beam_search_on_the_full_forward(seed, num_beams):
    coca = small_coca(seed=seed, spread=3.0)
    tokens_BND = image_tokens(coca, 5)
    with torch.inference_mode():
        got = generate(coca, tokens_BND, special=SPECIAL, decoding=DecodingSettings(max_tokens=8, num_beams=num_beams))
    expected = [full_beam_search(coca, tokens_BND[clip : clip + 1], num_beams, 8) for clip in range(5)]
    assert [caption.tokens for caption in got] == expected


def test_higher_length_penalty_gives_longer_captions():
    """0 compares sums, which only fall with length; high values favour long captions."""
    coca = small_coca(seed=0, spread=1.5)
    tokens_BND = image_tokens(coca, 5)
    with torch.inference_mode():
        decoding = DecodingSettings(max_tokens=9, num_beams=4)
        without_end = generate(coca, tokens_BND, special=SpecialTokens(start=1, end=-1, pad=-1), decoding=decoding)
    special = SpecialTokens(
        start=1, end=without_end[0].tokens[1], pad=without_end[0].tokens[4]
    )  # so that captions do end
    lengths = {}
    for penalty in (0.0, 1.0, 4.0):
        decoding = DecodingSettings(max_tokens=9, num_beams=4, length_penalty=penalty)
        with torch.inference_mode():
            captions = generate(coca, tokens_BND, special=special, decoding=decoding)
        lengths[penalty] = sum(len(caption.tokens) for caption in captions)
    assert lengths[0.0] <= lengths[1.0] <= lengths[4.0]
    assert lengths[0.0] < lengths[4.0]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_samples": 0},
        {"num_samples": 2},
        {"max_tokens": 0},
        {"num_beams": 0},
        {"top_p": 0},
        {"temperature": -1},
        {"num_beams": 2, "temperature": 1},
    ],
)
def test_contradicting_settings_are_refused(settings):
    with pytest.raises(UsageError):
        DecodingSettings(**settings)


@pytest.mark.slow
def test_greedy_equals_open_clip_full_forward_at_full_size():
    """coca_ViT-B-32, random weights, CLIP's own vocabulary."""
    from recaption.captioners.registry import load_captioner

    captioner = load_captioner("open_clip:coca_ViT-B-32/random")
    coca = captioner.model.coca
    with torch.no_grad():  # unscaled random weights repeat one token; larger embeddings make the captions vary
        coca.text.token_embedding.weight.mul_(20)
        coca.text.positional_embedding.mul_(40)
    special = captioner.tokenizer.special
    pixels = torch.randn(3, 2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens_BND = captioner.model.encode_clips(pixels).tokens_BND
        got = generate(coca, tokens_BND, special=special, decoding=DecodingSettings(max_tokens=30))
    expected = full_greedy(coca, tokens_BND, 30, special=special)
    assert [caption.tokens for caption in got] == [tokens for tokens, _ in expected]
    assert len({caption.tokens for caption in got}) == 3
    assert len(set(got[0].tokens)) > 5


@pytest.mark.parametrize(
    "decoding",
    [
        DecodingSettings(max_tokens=8),
        DecodingSettings(max_tokens=8, temperature=0.7, num_samples=2),
        DecodingSettings(max_tokens=8, num_beams=3),
    ],
)
def test_one_transfer_per_step_comes_back_from_the_device(decoding, monkeypatch):
    coca = small_coca()
    images_BND = image_tokens(coca, 4)
    uniforms_RM = np.random.default_rng(0).random((8, 8))
    steps, transfers = [], []
    step = CachedDecoder.step
    monkeypatch.setattr(CachedDecoder, "step", lambda *given: steps.append(1) or step(*given))
    for name in ("tolist", "item", "cpu", "numpy"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *given, real=real: transfers.append(1) or real(*given))
    with torch.inference_mode():
        generate(coca, images_BND, special=SPECIAL, decoding=decoding, uniforms_RM=uniforms_RM)
    assert len(steps) >= 3
    assert len(transfers) == len(steps)
