from __future__ import annotations

import random

import numpy as np
import pytest

from recaption.captioners.evaluate import measure_captioner
from recaption.captioners.interface import Described
from recaption.captions.metrics import bleu, caption_scores, cider_d, recall_at, rouge_l, tokenise
from recaption.errors import UsageError
from recaption.records import Caption

CANDIDATES = [
    "A dog runs through the tall grass.",
    "two men play chess",
    "A red circle moves left over the sea, and the camera is fixed.",
    "the the the the the",
    "",
    "Someone isn't looking at the dog's bowl",
]
REFERENCES = [
    ["A brown dog is running through tall grass.", "The dog runs fast.", "A dog runs through the grass near a fence."],
    ["Two old men are playing chess in the park.", "Men play chess."],
    ["A large red circle moves left over the sea. No text is shown."],
    ["the cat sat on the mat", "there is a cat on the mat"],
    ["a child waves", "a boy waves his hand"],
    ["A man isn't looking at his dog's bowl.", "someone looks away"],
]
GOLDEN = {
    "cider_d": 2.3362988328,
    "bleu_1": 0.6921395198,
    "bleu_2": 0.5753128851,
    "bleu_3": 0.4991477700,
    "bleu_4": 0.4268039201,
    "rouge_l": 0.5655446849,
}
"""pycocoevalcap 1.2, its own tokeniser (Java) included, on the texts above."""


def test_scores_are_those_of_the_reference_implementation():
    assert caption_scores(CANDIDATES, REFERENCES) == pytest.approx(GOLDEN, abs=1e-6)


def test_scores_agree_with_pycocoevalcap_on_random_texts():
    bleu_module = pytest.importorskip("pycocoevalcap.bleu.bleu")
    cider_module = pytest.importorskip("pycocoevalcap.cider.cider")
    rouge_module = pytest.importorskip("pycocoevalcap.rouge.rouge")
    rng = random.Random(0)
    words = [f"w{int(rng.paretovariate(0.7)) % 60}" for _ in range(4000)]

    def sentence() -> str:
        start = rng.randrange(len(words) - 20)
        return " ".join(words[start : start + rng.randint(1, 18)])

    for num_clips, num_references in ((1, 3), (2, 1), (60, 5)):
        references = [[sentence() for _ in range(num_references)] for _ in range(num_clips)]
        candidates = [rng.choice([sentence(), several[0] + " " + sentence()]) for several in references]
        wanted = dict(enumerate(references))
        said = {i: [text] for i, text in enumerate(candidates)}
        assert cider_d(candidates, references) == pytest.approx(
            cider_module.Cider().compute_score(wanted, said)[0], abs=1e-6
        )
        assert bleu(candidates, references) == pytest.approx(
            bleu_module.Bleu(4).compute_score(wanted, said, verbose=0)[0], abs=1e-6
        )
        assert rouge_l(candidates, references) == pytest.approx(
            rouge_module.Rouge().compute_score(wanted, said)[0], abs=1e-6
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog, running.", "a dog running"),
        ("I can't believe it's 3.5 m long!", "i ca n't believe it 's 3.5 m long"),
        ('The word "HELLO" -- then nothing...', "the word hello then nothing"),
        ("the dogs' bowls (two of them) cost $5.00", "the dogs bowls -lrb- two of them -rrb- cost $ 5.00"),
        ("a 10-year-old’s t-shirt & hat", "a 10-year-old 's t-shirt & hat"),
        ("They cannot stop at 10:30 in the U.S. park", "they can not stop at 10:30 in the u.s. park"),
        ("Mr. Smith's semi-trailer/truck", "mr. smith 's semi-trailer/truck"),
        ("", ""),
    ],
)
def test_words_are_those_of_the_penn_treebank(text, words):
    assert tokenise(text) == words.split()


def test_a_perfect_caption_scores_highest():
    texts = ["a red circle moves left", "two blue stars shrink over the sea", "a ring bounces at night"]
    perfect = caption_scores(texts, [[text] for text in texts])
    assert perfect["cider_d"] == pytest.approx(10.0)
    assert perfect["bleu_4"] == pytest.approx(1.0)
    assert perfect["rouge_l"] == pytest.approx(1.0)
    shuffled = caption_scores(texts[1:] + texts[:1], [[text] for text in texts])
    assert all(shuffled[name] < perfect[name] / 2 for name in perfect)


def test_saying_a_rare_word_often_earns_nothing():
    references = [["a zebra eats"], ["a man walks"], ["a dog sleeps here"]]
    once = cider_d(["a zebra eats", "x", "x"], references)
    often = cider_d(["a zebra zebra zebra eats", "x", "x"], references)
    assert often < once


def test_recall_counts_ties_against_the_row():
    cosine = np.array([[0.9, 0.1, 0.2], [0.5, 0.4, 0.1], [0.3, 0.3, 0.3]])
    assert recall_at(cosine, (1, 2, 3)) == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1.0})
    assert recall_at(np.zeros((4, 4)), (1,)) == {1: 0.0}
    with pytest.raises(UsageError, match="square"):
        recall_at(np.zeros((2, 3)))


def test_unusable_input_is_one_sentence():
    with pytest.raises(UsageError, match="0 captions"):
        cider_d([], [])
    with pytest.raises(UsageError, match="2 captions against the references of 1"):
        bleu(["a", "b"], [["a"]])
    with pytest.raises(UsageError, match="list of one reference"):
        rouge_l(["a"], ["a"])


class Parrot:
    def describe(self, clips, **decoding):
        texts = ["a red circle", "a blue star", "thing"]
        captions = [
            Caption(text=text, reason="bad_caption" if text == "thing" else None) for text in texts[: len(clips)]
        ]
        return Described(captions, np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))

    def score(self, clips, texts):
        return np.eye(3, dtype=np.float32)[:, [0, 2, 1]]


def test_a_captioner_is_measured_in_one_call():
    clips = [np.zeros((1, 2, 2, 3), np.uint8)] * 3
    found = measure_captioner(Parrot(), clips, [["a red circle"], ["a blue star"], ["a green ring"]])
    assert found["retrieval/text_at_1"] == pytest.approx(1 / 3)
    assert found["retrieval/clip_at_5"] == 1.0
    assert found["passed"] == pytest.approx(2 / 3)
    assert found["clip_score"] == 1.0
    assert 0 < found["cider_d"] < 10
