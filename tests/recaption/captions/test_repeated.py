import random

import pytest

from recaption.captions.repeated import MAX_LINKS, find_repeated
from recaption.errors import UsageError

WORDS = [f"word{i}" for i in range(2000)]


def captions(count, seed=0, length=30):
    chance = random.Random(seed)
    return {f"own-{i:04d}": " ".join(chance.choices(WORDS, k=length)) for i in range(count)}


def test_one_text_about_many_clips_is_found_among_others_whatever_the_order():
    texts = captions(300) | {f"same-{i:03d}": "A man talks to the camera." for i in range(40)}
    texts |= {f"same-x{i}": "a man talks to the camera" for i in range(2)}  # case and marks do not count
    found = find_repeated(texts)
    assert set(found) == {clip_id for clip_id in texts if clip_id.startswith("same")}
    assert {one.num_clips for one in found.values()} == {42}
    shuffled = list(texts.items())
    random.Random(1).shuffle(shuffled)
    assert list(find_repeated(dict(shuffled)).items()) == list(found.items())


def test_texts_that_differ_in_a_word_of_a_hundred_are_the_same_and_in_one_of_ten_are_not():
    long = " ".join(WORDS[:100])
    short = " ".join(WORDS[200:210])
    texts = {
        "a": long,
        "b": long.replace("word50", "other"),
        "c": short,
        "d": short.replace("word205", "other"),
    }
    found = find_repeated(texts)
    assert set(found) == {"a", "b"}
    assert found["a"].num_clips == 2
    assert found["a"].text == found["b"].text
    assert set(find_repeated(texts, min_similarity=1.0)) == set()


def test_copies_of_one_clip_count_once():
    texts = dict.fromkeys(("a", "b", "c", "d"), "a dog runs over the grass")
    found = find_repeated(texts, same_footage=[("a", "b"), ("b", "c"), ("x", "a")])
    assert found["a"].num_clips == 2
    assert find_repeated(texts, same_footage=[("a", "b"), ("b", "c"), ("d", "c")]) == {}


def test_a_template_said_of_everything_is_one_caption():
    base = WORDS[:200]
    texts = {f"clip-{i:04d}": " ".join([*base, f"end{i}"]) for i in range(3 * MAX_LINKS)}
    found = find_repeated(texts)
    assert {one.num_clips for one in found.values()} == {3 * MAX_LINKS}
    assert len(found) == 3 * MAX_LINKS


def test_nothing_and_nonsense():
    assert find_repeated({}) == {}
    assert find_repeated({"a": "a dog runs"}) == {}
    with pytest.raises(UsageError, match="min_similarity"):
        find_repeated({"a": "a dog runs"}, min_similarity=0.2)
