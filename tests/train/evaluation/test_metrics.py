"""Metrics have their sample size, chance level and value on real clips; undefined ones say why."""

import dataclasses

import numpy as np
import pytest
import torch

from recaption.captioners.interface import CaptionBatch
from recaption.errors import UsageError
from recaption.records import Caption
from train.evaluation.metrics import EvaluationSettings, RealClips, Samples, draw_samples, evaluate, loss_metrics

COLOURS = {"red": (220, 20, 30), "green": (30, 160, 60), "blue": (40, 80, 230), "white": (250, 250, 250)}
PROMPTS = [f"a {colour} circle moves left" for colour in COLOURS]
SETTINGS = EvaluationSettings(num_seeds=3, num_varied_prompts=2)


class ColourReader:
    """A captioner that names the colour of a clip and embeds clips by their colour."""

    name, weights_hash = "colours", "0"
    has_space = True

    def caption_with_embeddings(self, clips):
        texts = [f"a {self._colour(clip)} circle moves left" for clip in clips]
        captions = [Caption(clip_id="", text=text, captioner="colours@0") for text in texts]
        if not self.has_space:
            return CaptionBatch(captions, None, None)
        return CaptionBatch(captions, self.embed_clips(clips), self.embed_texts(texts))

    def embed_clips(self, clips):
        vectors = np.stack([np.append(clip.reshape(-1, 3).mean(0) / 255, 1.0) for clip in clips])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def embed_texts(self, texts):
        return self.embed_clips([_clip(next(c for c in COLOURS if c in text)) for text in texts])

    def _colour(self, clip):
        mean = clip.reshape(-1, 3).mean(0)
        return min(COLOURS, key=lambda colour: np.abs(mean - COLOURS[colour]).sum())


class Lossless:
    """A lossless compressor."""

    def encode(self, pixels):
        return pixels

    def decode(self, latents):
        return latents


class Grey(Lossless):
    """A compressor that loses all colour."""

    def decode(self, latents):
        return torch.full_like(latents, 0.95)


def _clip(colour, noise=0):
    return np.clip(np.full((5, 8, 8, 3), COLOURS[colour]) + noise, 0, 255).astype(np.uint8)


def following_model(texts):
    """A model that follows its prompt; a repeated prompt gives a slightly darker video."""
    counts = {}
    for text in texts:
        counts[text] = counts.get(text, -1) + 1
        yield _clip(next(colour for colour in COLOURS if colour in text), -5 * counts[text])


def ignoring_model(texts):
    return [_clip("red")] * len(texts)


def real_clips(count=20):
    colours = [list(COLOURS)[at % 4] for at in range(count)]
    return RealClips(
        videos=[_clip(colour, at % 7) for at, colour in enumerate(colours)],
        captions=[f"a {colour} circle moves left" for colour in colours],
    )


def test_a_model_that_follows_prompts_scores_higher_than_one_that_ignores_them():
    found = evaluate(draw_samples(following_model, PROMPTS, SETTINGS), real_clips(), ColourReader(), Lossless()).metrics
    other = evaluate(draw_samples(ignoring_model, PROMPTS, SETTINGS), real_clips(), ColourReader(), Lossless()).metrics
    colour, no_colour = found["prompt_following/colour"], other["prompt_following/colour"]
    assert (colour.value, colour.num, colour.real) == (1.0, 4, 1.0)
    assert no_colour.value == pytest.approx(no_colour.chance) == 0.25
    matched = found["contrastive/matched"]
    assert matched.value > matched.chance
    assert found["contrastive/best_match"].value == 1
    varied, stuck = found["diversity/same_prompt"], other["diversity/same_prompt"]
    assert varied.value > 0
    assert stuck.value == pytest.approx(0, abs=1e-6)
    assert (varied.num, varied.unit) == (6, "pairs"), "three samples each of two prompts"
    assert all(metric.definition for metric in found.values())


def test_real_values_are_of_reconstructed_clips():
    found = evaluate(draw_samples(following_model, PROMPTS, SETTINGS), real_clips(), ColourReader(), Grey()).metrics
    assert found["prompt_following/colour"].real == pytest.approx(0.25)
    without = evaluate(draw_samples(following_model, PROMPTS, SETTINGS), RealClips(), ColourReader(), Grey()).metrics
    assert without["prompt_following/colour"].real is None
    assert without["frechet_distance"].value is None
    assert "no real clips" in without["frechet_distance"].note


def test_frechet_distance_of_similar_and_different_and_few_samples():
    prompts = PROMPTS * 5
    like = Samples(prompts=tuple(prompts), videos=real_clips().videos, more_videos=())
    unlike = Samples(prompts=tuple(prompts), videos=[_clip("red")] * 20, more_videos=())
    near, far = (
        evaluate(one, real_clips(), ColourReader(), Lossless()).metrics["frechet_distance"] for one in (like, unlike)
    )
    assert near.value == pytest.approx(0, abs=1e-6)
    assert far.value > 3 * near.real > 0, "one half of the real clips is nearer to the other than red ones are"
    few = evaluate(draw_samples(following_model, PROMPTS, SETTINGS), real_clips(), ColourReader(), Lossless()).metrics
    assert few["frechet_distance"].value is None
    assert "4 clips" in few["frechet_distance"].note


def test_metrics_without_embeddings_or_fields_are_undefined():
    reader = ColourReader()
    reader.has_space = False
    found = evaluate(draw_samples(following_model, PROMPTS, SETTINGS), real_clips(), reader, Lossless()).metrics
    assert found["prompt_following/colour"].value == 1
    for name in ("contrastive/matched", "diversity/same_prompt", "frechet_distance"):
        assert found[name].value is None
        assert "no contrastive space" in found[name].note
    streets = ["people on a street in red coats"] * 3
    found = evaluate(
        Samples(prompts=tuple(streets), videos=ignoring_model(streets), more_videos=()), RealClips(), reader, Lossless()
    )
    assert "no prompt has fields" in found.metrics["prompt_following/all_fields"].note


def test_loss_metrics_say_whether_the_clips_are_held_out():
    losses = {"5f-8x8-8fps": ({"loss": 0.5, "loss_without_prompt": 0.6}, 9)}
    metric = loss_metrics(losses, held_out=False)["flow_loss/5f-8x8-8fps"]
    assert (metric.value, metric.chance, metric.num) == (0.5, 0.6, 9)
    assert "training clips" in metric.definition
    assert "held-out" in loss_metrics(losses, held_out=True)["flow_loss/5f-8x8-8fps"].definition


def test_invalid_settings_are_refused():
    with pytest.raises(UsageError, match="num_prompts = 0"):
        dataclasses.replace(SETTINGS, num_prompts=0).check()
    with pytest.raises(UsageError, match="nothing was sampled"):
        evaluate(Samples(prompts=(), videos=(), more_videos=()), RealClips(), ColourReader(), Lossless())
