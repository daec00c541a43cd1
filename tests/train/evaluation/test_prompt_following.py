"""Prompt following is read back from captions, and chance is counted beside it."""

import numpy as np
import pytest

from recaption.captioners.interface import CaptionBatch
from recaption.records import Caption
from train.evaluation.prompt_following import ALL_FIELDS, SUBJECT, follow

PROMPTS = [
    "a red circle moves left over the sea",
    "a blue star moves left over the sea",
    "a red star stays still at night",
    "a dog in a red jacket runs down the road",
]


class Embedder:
    """A text lies where its place in `PROMPTS` says."""

    def embed_texts(self, texts):
        return np.eye(len(PROMPTS), dtype=np.float32)[[PROMPTS.index(text) for text in texts]]


def described(texts, places=None):
    captions = [Caption(clip_id="", text=text, captioner="stand-in@0") for text in texts]
    clips = None if places is None else np.eye(len(PROMPTS), dtype=np.float32)[places]
    return CaptionBatch(captions, clips, clips)


def test_samples_that_show_what_was_asked_follow_in_every_field():
    found = follow(PROMPTS, described(PROMPTS, [0, 1, 2, 3]), Embedder())
    assert {share.value for share in found.fields.values()} == {1.0}
    assert found.fields["colour"].num == 3, "the sentence about a dog names no fields of a scene"
    assert "text" not in found.fields
    assert (found.matched, found.mismatched) == (1, 0)
    assert (found.best_match.value, found.best_match.chance) == (1, 0.25)


def test_the_right_colour_of_the_wrong_thing_is_half_of_it():
    said = ["a red square moves left over the sea", "a blue star moves up", "a red star stays still at night", ""]
    found = follow(PROMPTS, described(said), Embedder())
    assert found.fields["colour"].value == 1
    assert found.fields["main_object"].value == pytest.approx(2 / 3)
    assert found.fields[SUBJECT].value == pytest.approx(2 / 3)
    assert found.fields["background"].value == pytest.approx(2 / 3)
    assert found.fields[ALL_FIELDS].value == pytest.approx(1 / 3)
    assert found.matched is found.best_match is None, "no contrastive space, no score"


def test_chance_is_what_the_samples_of_others_get():
    always_red = ["a red circle moves left"] * 3
    found = follow(PROMPTS[:3], described(always_red), Embedder())
    assert found.fields["colour"].value == pytest.approx(2 / 3)
    assert found.fields["colour"].chance == pytest.approx(2 / 3), "a model that is deaf to its prompt is at chance"
    found = follow(PROMPTS[:3], described(PROMPTS[:3]), Embedder())
    assert found.fields["colour"].chance == pytest.approx(2 / 6), "two of six other pairs share a colour"
    assert follow(PROMPTS[:1], described(PROMPTS[:1]), Embedder()).fields["colour"].chance is None


def test_a_prompt_that_is_given_twice_is_one_text_among_those_to_choose_from():
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    found = follow(prompts, described(prompts, [0, 1, 1]), Embedder())
    assert found.best_match.chance == 0.5
    assert found.best_match.value == pytest.approx(2 / 3)
