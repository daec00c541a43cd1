import random

import pytest

from recaption.captions.repeated import MAX_CANDIDATES_PER_BAND, find_repeated_texts
from recaption.errors import UsageError

WORDS = [f"word{i}" for i in range(2000)]


def captions(count, seed=0, length=30):
    rng = random.Random(seed)
    return {f"unique-{i:04d}": " ".join(rng.choices(WORDS, k=length)) for i in range(count)}


def test_text_shared_by_many_clips_is_found_in_any_order():
    texts = captions(300) | {f"same-{i:03d}": "A man talks to the camera." for i in range(40)}
    texts |= {f"same-x{i}": "a man talks to the camera" for i in range(2)}  # case and punctuation do not count
    found = find_repeated_texts(texts)
    assert set(found) == {clip_id for clip_id in texts if clip_id.startswith("same")}
    assert {one.num_clips for one in found.values()} == {42}
    shuffled = list(texts.items())
    random.Random(1).shuffle(shuffled)
    assert list(find_repeated_texts(dict(shuffled)).items()) == list(found.items())


def test_one_changed_word_of_a_hundred_is_the_same_text_and_one_of_ten_is_not():
    long = " ".join(WORDS[:100])
    short = " ".join(WORDS[200:210])
    texts = {
        "a": long,
        "b": long.replace("word50", "other"),
        "c": short,
        "d": short.replace("word205", "other"),
    }
    found = find_repeated_texts(texts)
    assert set(found) == {"a", "b"}
    assert found["a"].num_clips == 2
    assert found["a"].text == found["b"].text
    assert set(find_repeated_texts(texts, min_similarity=1.0)) == set()


def test_near_duplicate_clips_count_once():
    texts = dict.fromkeys(("a", "b", "c", "d"), "a dog runs over the grass")
    found = find_repeated_texts(texts, duplicate_pairs=[("a", "b"), ("b", "c"), ("x", "a")])
    assert found["a"].num_clips == 2
    assert find_repeated_texts(texts, duplicate_pairs=[("a", "b"), ("b", "c"), ("d", "c")]) == {}


def test_template_used_for_every_clip_is_one_group():
    base = WORDS[:200]
    texts = {f"clip-{i:04d}": " ".join([*base, f"end{i}"]) for i in range(3 * MAX_CANDIDATES_PER_BAND)}
    found = find_repeated_texts(texts)
    assert {one.num_clips for one in found.values()} == {3 * MAX_CANDIDATES_PER_BAND}
    assert len(found) == 3 * MAX_CANDIDATES_PER_BAND


def test_empty_input_and_invalid_similarity():
    assert find_repeated_texts({}) == {}
    assert find_repeated_texts({"a": "a dog runs"}) == {}
    with pytest.raises(UsageError, match="min_similarity"):
        find_repeated_texts({"a": "a dog runs"}, min_similarity=0.2)
