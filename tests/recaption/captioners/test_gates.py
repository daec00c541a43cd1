import numpy as np
import pytest

from recaption.captioners.gates import Gates, TextLength, score_margins
from recaption.captioners.interface import Described
from recaption.records import Caption

WORDS = TextLength(6, lambda texts: [len(text.split()) for text in texts])


def described(texts, scores=None):
    """Clips along the axes; each caption's score with its own clip as given, with the others 0.1."""
    size = len(texts)
    clip_BD = np.eye(size, dtype=np.float32)
    text_BD = np.full((size, size), 0.1, np.float32)
    np.fill_diagonal(text_BD, scores or [0.9] * size)
    return Described([Caption(text=text) for text in texts], clip_BD, text_BD)


def faults(gates, one, owners=None, kind="descriptive"):
    gates.judge(one, kind=kind, owners=owners or [str(i) for i in range(len(one.captions))])
    assert all((caption.reason == "bad_caption") == bool(caption.fault) for caption in one.captions)
    return [caption.fault for caption in one.captions]


def test_each_gate_names_its_fault():
    texts = [
        "a red dog runs",
        "dog",
        "on the on the on the on the on",
        "a red dog runs over the wide lawn",
        "a blue cat",
    ]
    gates = Gates(min_clip_score=0.5, length=WORDS)
    assert faults(gates, described(texts, [0.9, 0.9, 0.9, 0.9, 0.2])) == [
        "",
        "empty",
        "looping",
        "over_long",
        "low_score",
    ]
    assert faults(Gates(), described(texts[:1] + texts[3:], [0.9, 0.9, 0.2])) == ["", "", ""]


def test_the_captioners_own_limits_hold_where_none_is_given():
    def least_scores(clip_BD):
        return np.array([0.2, 0.8])

    two = ["a red dog runs", "a blue cat"]
    assert faults(Gates(least_scores=least_scores), described(two, [0.5, 0.5])) == ["", "low_score"]
    assert faults(Gates(min_clip_score=0.4, least_scores=least_scores), described(two, [0.5, 0.5])) == ["", ""]
    assert faults(Gates(least_scores=lambda clip_BD: None), described(two, [0.5, 0.5])) == ["", ""]


def test_what_a_captioner_refused_itself_gets_a_name():
    one = described(["a red dog runs and"])
    one.captions[0] = Caption(text="a red dog runs and", reason="bad_caption")
    assert faults(Gates(), one) == ["truncated"]


def test_a_caption_has_to_beat_those_of_other_clips_by_the_margin():
    texts = ["a red dog", "a blue cat", "a green bird"]
    gates = Gates(min_score_margin=0.3)
    assert faults(gates, described(texts, [0.9, 0.3, 0.5])) == ["", "low_score", ""]
    assert faults(gates, described(texts, [0.9, 0.3, 0.5]), kind="short") == ["", "", ""]


def test_windows_of_one_clip_are_no_strangers_and_a_clip_alone_is_not_judged():
    scores = np.array([[0.9, 0.9, 0.1], [0.9, 0.9, 0.1], [0.1, 0.1, 0.9]])
    np.testing.assert_allclose(score_margins(scores, ["a", "a", "b"]), [0.8, 0.8, 0.8])
    assert np.isnan(score_margins(scores, ["a", "a", "a"])).all()
    assert faults(Gates(min_score_margin=0.3), described(["a red dog"], [0.1])) == [""]


def test_a_captioner_without_a_contrastive_space_passes_the_gates_of_scores():
    one = Described([Caption(text="a red dog")], None, None)
    assert faults(Gates(min_clip_score=0.5, min_score_margin=0.5), one) == [""]


def test_over_long_ones_are_asked_for_fewer_tokens():
    gates = Gates(length=WORDS)
    assert gates.fewer_tokens(["one two three four five six seven eight nine ten eleven twelve"], 40) == 18
    assert gates.fewer_tokens([], 40) == 40
    assert Gates().fewer_tokens(["a b c"], 40) == 40


@pytest.mark.parametrize(
    ("text", "fault"),
    [("my holiday", ""), ("x", "empty"), ("a b c d e f g h", "over_long"), ("Sorry I was late", "")],
)
def test_original_texts_are_judged_too(text, fault):
    assert Gates(length=WORDS).judge_original(Caption(text=text, source="original")).fault == fault
