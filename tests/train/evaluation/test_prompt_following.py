"""Prompt adherence is read from generated captions, with its chance level."""

import numpy as np
import pytest

from recaption.captioners.interface import CaptionBatch
from recaption.records import Caption
from train.evaluation.prompt_following import ALL_FIELDS, SUBJECT, measure_adherence

PROMPTS = [
    "a red circle moves left over the sea",
    "a blue star moves left over the sea",
    "a red star stays still at night",
    "a dog in a red jacket runs down the road",
]


class Embedder:
    """Embeds a text as the unit vector of its index in `PROMPTS`."""

    def embed_texts(self, texts):
        return np.eye(len(PROMPTS), dtype=np.float32)[[PROMPTS.index(text) for text in texts]]


def described(texts, indices=None):
    captions = [Caption(clip_id="", text=text, captioner="fake@0") for text in texts]
    clips = None if indices is None else np.eye(len(PROMPTS), dtype=np.float32)[indices]
    return CaptionBatch(captions, clips, clips)


def test_samples_that_match_their_prompts_hit_every_field():
    found = measure_adherence(PROMPTS, described(PROMPTS, [0, 1, 2, 3]), Embedder())
    assert {rate.value for rate in found.fields.values()} == {1.0}
    assert found.fields["colour"].num == 3, "the sentence about a dog has no fields of a scene"
    assert "text" not in found.fields
    assert (found.matched, found.mismatched) == (1, 0)
    assert (found.best_match.value, found.best_match.chance) == (1, 0.25)


def test_the_right_colour_of_the_wrong_object_is_no_hit_of_both():
    generated = ["a red square moves left over the sea", "a blue star moves up", "a red star stays still at night", ""]
    found = measure_adherence(PROMPTS, described(generated), Embedder())
    assert found.fields["colour"].value == 1
    assert found.fields["main_object"].value == pytest.approx(2 / 3)
    assert found.fields[SUBJECT].value == pytest.approx(2 / 3)
    assert found.fields["background"].value == pytest.approx(2 / 3)
    assert found.fields[ALL_FIELDS].value == pytest.approx(1 / 3)
    assert found.matched is found.best_match is None, "no embeddings, no score"


def test_chance_is_the_hit_rate_against_the_prompts_of_others():
    always_red = ["a red circle moves left"] * 3
    found = measure_adherence(PROMPTS[:3], described(always_red), Embedder())
    assert found.fields["colour"].value == pytest.approx(2 / 3)
    assert found.fields["colour"].chance == pytest.approx(2 / 3), "a model that ignores its prompt is at chance level"
    found = measure_adherence(PROMPTS[:3], described(PROMPTS[:3]), Embedder())
    assert found.fields["colour"].chance == pytest.approx(2 / 6), "two of six other pairs share a colour"
    assert measure_adherence(PROMPTS[:1], described(PROMPTS[:1]), Embedder()).fields["colour"].chance is None


def test_a_repeated_prompt_counts_once_among_the_candidates():
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    found = measure_adherence(prompts, described(prompts, [0, 1, 1]), Embedder())
    assert found.best_match.chance == 0.5
    assert found.best_match.value == pytest.approx(2 / 3)
