"""Every measure says over how many, against what chance and what real clips would get; what cannot be told says why."""

import dataclasses

import numpy as np
import pytest
import torch

from recaption.captioners.interface import CaptionBatch
from recaption.errors import UsageError
from recaption.records import Caption
from train.evaluation.metrics import EvaluationSettings, RealClips, Samples, evaluate, loss_measures, sampled

COLOURS = {"red": (220, 20, 30), "green": (30, 160, 60), "blue": (40, 80, 230), "white": (250, 250, 250)}
PROMPTS = [f"a {colour} circle moves left" for colour in COLOURS]
SETTINGS = EvaluationSettings(num_seeds=3, num_varied_prompts=2)


class ColourReader:
    """Says which colour a clip has, and has a contrastive space of colours."""

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


class Same:
    """A compressor that loses nothing."""

    def encode(self, pixels):
        return pixels

    def decode(self, latents):
        return latents


class Grey(Same):
    """One that loses all colour."""

    def decode(self, latents):
        return torch.full_like(latents, 0.95)


def _clip(colour, noise=0):
    return np.clip(np.full((5, 8, 8, 3), COLOURS[colour]) + noise, 0, 255).astype(np.uint8)


def obedient(texts):
    """A model that does as it is told; the same prompt again comes out a little darker."""
    seen = {}
    for text in texts:
        seen[text] = seen.get(text, -1) + 1
        yield _clip(next(colour for colour in COLOURS if colour in text), -5 * seen[text])


def deaf(texts):
    return [_clip("red")] * len(texts)


def real_clips(count=20):
    colours = [list(COLOURS)[at % 4] for at in range(count)]
    return RealClips(
        videos=[_clip(colour, at % 7) for at, colour in enumerate(colours)],
        captions=[f"a {colour} circle moves left" for colour in colours],
    )


def test_a_model_that_follows_is_told_from_one_that_does_not():
    found = evaluate(sampled(obedient, PROMPTS, SETTINGS), real_clips(), ColourReader(), Same()).measures
    other = evaluate(sampled(deaf, PROMPTS, SETTINGS), real_clips(), ColourReader(), Same()).measures
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
    assert all(measure.definition for measure in found.values())


def test_real_clips_show_what_the_compressor_leaves_of_them():
    found = evaluate(sampled(obedient, PROMPTS, SETTINGS), real_clips(), ColourReader(), Grey()).measures
    assert found["prompt_following/colour"].real == pytest.approx(0.25)
    without = evaluate(sampled(obedient, PROMPTS, SETTINGS), RealClips(), ColourReader(), Grey()).measures
    assert without["prompt_following/colour"].real is None
    assert without["frechet_distance"].value is None
    assert "no real clips" in without["frechet_distance"].note


def test_the_frechet_distance_knows_samples_like_the_real_ones_and_few_ones():
    prompts = PROMPTS * 5
    like = Samples(prompts=tuple(prompts), videos=real_clips().videos, more_videos=())
    unlike = Samples(prompts=tuple(prompts), videos=[_clip("red")] * 20, more_videos=())
    near, far = (
        evaluate(one, real_clips(), ColourReader(), Same()).measures["frechet_distance"] for one in (like, unlike)
    )
    assert near.value == pytest.approx(0, abs=1e-6)
    assert far.value > 3 * near.real > 0, "one half of the real clips is nearer to the other than red ones are"
    few = evaluate(sampled(obedient, PROMPTS, SETTINGS), real_clips(), ColourReader(), Same()).measures
    assert few["frechet_distance"].value is None
    assert "4 clips" in few["frechet_distance"].note


def test_what_a_captioner_cannot_tell_is_not_made_up():
    reader = ColourReader()
    reader.has_space = False
    found = evaluate(sampled(obedient, PROMPTS, SETTINGS), real_clips(), reader, Same()).measures
    assert found["prompt_following/colour"].value == 1
    for name in ("contrastive/matched", "diversity/same_prompt", "frechet_distance"):
        assert found[name].value is None
        assert "no contrastive space" in found[name].note
    streets = ["people on a street in red coats"] * 3
    found = evaluate(Samples(prompts=tuple(streets), videos=deaf(streets), more_videos=()), RealClips(), reader, Same())
    assert "no prompt names fields" in found.measures["prompt_following/all_fields"].note


def test_losses_say_whether_the_clips_were_seen():
    losses = {"5f-8x8-8fps": ({"loss": 0.5, "loss_without_prompt": 0.6}, 9)}
    measure = loss_measures(losses, held_out=False)["flow_loss/5f-8x8-8fps"]
    assert (measure.value, measure.chance, measure.num) == (0.5, 0.6, 9)
    assert "the training has seen" in measure.definition
    assert "held-out" in loss_measures(losses, held_out=True)["flow_loss/5f-8x8-8fps"].definition


def test_wrong_settings_get_one_sentence():
    with pytest.raises(UsageError, match="num_prompts = 0"):
        dataclasses.replace(SETTINGS, num_prompts=0).check()
    with pytest.raises(UsageError, match="nothing was sampled"):
        evaluate(Samples(prompts=(), videos=(), more_videos=()), RealClips(), ColourReader(), Same())
