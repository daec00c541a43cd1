from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recaption.captions.text import (
    CAPTION_KINDS,
    FAULTS,
    find_fault,
    normalize_text,
    sentence_case,
    strip_boilerplate,
    tokenize_words,
)
from recaption.scenes.captions import fields_in

GOOD = (
    "A flat clip shows a small plain red heart that stays still. It is sunny. Around it there are flowers. "
    'Further back there is a grey road with dashed lane lines. The text reads "STOP". All along, the camera is fixed.'
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red  circle\n moves left .<end_of_text>", "a red circle moves left."),
        ("<start_of_text>a cat , and a dog !", "a cat, and a dog!"),
        ('the word " HELLO " is written', 'the word "HELLO" is written'),
        (", a bird ,", "a bird"),
        ("a café\u200b \x07scene", "a café scene"),
        ("a dog,, ( running )", "a dog, (running)"),
        ("cafe\u0301 in the rain", "café in the rain"),
    ],
)
def test_normalize_text(text, expected):
    assert normalize_text(text) == expected


@given(st.text())
def test_normalize_text_is_idempotent(text):
    assert normalize_text(normalize_text(text)) == normalize_text(text)


@given(st.text())
def test_a_clean_caption_is_one_line_of_visible_text(text):
    cleaned = normalize_text(text)
    assert cleaned == cleaned.strip()
    assert len(cleaned.splitlines()) <= 1
    assert not [letter for letter in cleaned if unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp")]


def test_sentence_case_keeps_the_words():
    assert sentence_case("a cat sits. it is red! so") == "A cat sits. It is red! So"
    assert fields_in(sentence_case(GOOD.lower())) == fields_in(GOOD)


def test_a_good_caption_passes():
    assert find_fault(GOOD) is None
    assert find_fault("a dog") is None


@pytest.mark.parametrize(
    ("text", "ended", "fault"),
    [
        ("", True, "empty"),
        ("... !", True, "empty"),
        ("video", True, "empty"),
        ("a 2 2 2 2 2", True, "looping"),
        ("a man on the beach on the beach on the beach on the beach", True, "looping"),
        ("the dog runs over the lawn and " * 4, True, "looping"),
        (" ".join(["a red ball rolls. a blue cube stays where it is now."] * 3), True, "looping"),
        ("a red circle moves left over", False, "truncated"),
        ("on the on the on the on the", False, "looping"),
        ("The video shows.", True, "boilerplate"),
        ("a picture of", True, "boilerplate"),
        ("I'm sorry, but I can't help with that.", True, "refusal"),
        ("As an AI language model, I cannot see the video.", True, "refusal"),
        ("No video was provided. Please upload it.", True, "refusal"),
    ],
)
def test_faults(text, ended, fault):
    assert find_fault(text, ended=ended) == fault
    assert fault in FAULTS


def test_natural_repetition_is_not_a_loop():
    assert find_fault("a very very very happy dog and a very very happy cat") is None
    assert find_fault("the cat looks left, the cat looks right, and then the cat walks away from the camera") is None


def test_tokenize_words():
    assert tokenize_words("A dog's black-and-white ball, 2 cats.") == [
        "a",
        "dog's",
        "black-and-white",
        "ball",
        "2",
        "cats",
    ]


@pytest.mark.parametrize(
    ("text", "caption", "phrases"),
    [
        ("The video shows a dog.", "A dog.", "The video shows"),
        ("In this video, a man cooks.", "A man cooks.", "In this video"),
        ("a video of a cat", "a cat", "a video of"),
        ("This short clip features two dogs playing.", "Two dogs playing.", "This short clip features"),
        (
            "Sure! Here is a caption: In this video, we see a dog running.",
            "A dog running.",
            "Sure! Here is a caption: In this video, we see",
        ),
    ],
)
def test_boilerplate_is_stripped(text, caption, phrases):
    assert strip_boilerplate(text) == (caption, phrases)
    assert strip_boilerplate(caption) == (caption, "")
    assert find_fault(caption) is None


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "In a flat video, a large plain star moves left.",
        "A black and white photo of a man",
        "A picture frame of gold hangs on a wall",
        "A man says he cannot see the ball",
        "I can see a dog",
        'The text reads "I can\'t see you".',
        "A person dressed as an AI robot waves",
        "The video shows.",
    ],
)
def test_style_words_and_quoted_speech_are_not_boilerplate(text):
    assert strip_boilerplate(text) == (text, "")
    assert find_fault(text) == ("boilerplate" if text == "The video shows." else None)


def test_a_field_may_be_one_word():
    assert find_fault("circle", kind="main_object") is None
    assert find_fault("circle", kind="short") == "empty"
    assert find_fault("", kind="main_object") == "empty"
    assert CAPTION_KINDS[:2] == ("descriptive", "short")
    assert "main_object" in CAPTION_KINDS
