from __future__ import annotations

import random

import numpy as np
import pytest

from recaption.captions.metrics import bleu, caption_scores, cider_d, recall_at, rouge_l, tokenize_ptb
from recaption.errors import UsageError

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
"""pycocoevalcap 1.2, with its own (Java) tokenizer, on the texts above."""


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
        candidates = [rng.choice([sentence(), texts[0] + " " + sentence()]) for texts in references]
        reference_by_id = dict(enumerate(references))
        candidate_by_id = {i: [text] for i, text in enumerate(candidates)}
        assert cider_d(candidates, references) == pytest.approx(
            cider_module.Cider().compute_score(reference_by_id, candidate_by_id)[0], abs=1e-6
        )
        assert bleu(candidates, references) == pytest.approx(
            bleu_module.Bleu(4).compute_score(reference_by_id, candidate_by_id, verbose=0)[0], abs=1e-6
        )
        assert rouge_l(candidates, references) == pytest.approx(
            rouge_module.Rouge().compute_score(reference_by_id, candidate_by_id)[0], abs=1e-6
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
def test_tokens_are_those_of_the_penn_treebank(text, words):
    assert tokenize_ptb(text) == words.split()


def test_exact_match_scores_highest():
    texts = ["a red circle moves left", "two blue stars shrink over the sea", "a ring bounces at night"]
    perfect = caption_scores(texts, [[text] for text in texts])
    assert perfect["cider_d"] == pytest.approx(10.0)
    assert perfect["bleu_4"] == pytest.approx(1.0)
    assert perfect["rouge_l"] == pytest.approx(1.0)
    shuffled = caption_scores(texts[1:] + texts[:1], [[text] for text in texts])
    assert all(shuffled[name] < perfect[name] / 2 for name in perfect)


def test_repeating_a_rare_word_does_not_raise_cider_d():
    references = [["a zebra eats"], ["a man walks"], ["a dog sleeps here"]]
    once = cider_d(["a zebra eats", "x", "x"], references)
    often = cider_d(["a zebra zebra zebra eats", "x", "x"], references)
    assert often < once


def test_recall_counts_ties_as_misses():
    cosine = np.array([[0.9, 0.1, 0.2], [0.5, 0.4, 0.1], [0.3, 0.3, 0.3]])
    assert recall_at(cosine, (1, 2, 3)) == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1.0})
    assert recall_at(np.zeros((4, 4)), (1,)) == {1: 0.0}
    with pytest.raises(UsageError, match="square"):
        recall_at(np.zeros((2, 3)))


def test_invalid_input_gives_one_clear_error():
    with pytest.raises(UsageError, match="0 captions"):
        cider_d([], [])
    with pytest.raises(UsageError, match="2 captions against the references of 1"):
        bleu(["a", "b"], [["a"]])
    with pytest.raises(UsageError, match="list of one reference"):
        rouge_l(["a"], ["a"])
