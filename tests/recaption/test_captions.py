from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recaption.captions import FAULTS, clean, fault_in, reason_if_bad, sentence_case, words_in
from recaption.errors import DROP_REASONS
from recaption.scene_captions import fields_in

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
def test_clean(text, expected):
    assert clean(text) == expected


@given(st.text())
def test_cleaning_twice_changes_nothing_more(text):
    assert clean(clean(text)) == clean(text)


@given(st.text())
def test_a_clean_caption_is_one_line_of_visible_text(text):
    cleaned = clean(text)
    assert cleaned == cleaned.strip()
    assert len(cleaned.splitlines()) <= 1
    assert not [letter for letter in cleaned if unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp")]


def test_sentence_case_keeps_the_words():
    assert sentence_case("a cat sits. it is red! so") == "A cat sits. It is red! So"
    assert fields_in(sentence_case(GOOD.lower())) == fields_in(GOOD)


def test_a_good_caption_passes():
    assert fault_in(GOOD) is None
    assert reason_if_bad(GOOD) is None
    assert reason_if_bad("a dog") is None


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
    ],
)
def test_faults(text, ended, fault):
    assert fault_in(text, ended=ended) == fault
    assert fault in FAULTS
    assert reason_if_bad(text, ended=ended) == "bad_caption"
    assert reason_if_bad(text, ended=ended) in DROP_REASONS


def test_natural_repetition_is_no_loop():
    assert fault_in("a very very very happy dog and a very very happy cat") is None
    assert fault_in("the cat looks left, the cat looks right, and then the cat walks away from the camera") is None


def test_words_in():
    assert words_in("A dog's black-and-white ball, 2 cats.") == ["a", "dog's", "black-and-white", "ball", "2", "cats"]
