import numpy as np
import pytest

from recaption.captioners.gates import QualityGates, TokenBudget, score_margins
from recaption.captioners.interface import CaptionBatch
from recaption.records import Caption

WORD_BUDGET = TokenBudget(6, lambda texts: [len(text.split()) for text in texts])


def described(texts, scores=None):
    """One-hot clip embeddings; captions score `scores` with their own clip and 0.1 with the others."""
    size = len(texts)
    clip_embeddings_BD = np.eye(size, dtype=np.float32)
    text_embeddings_BD = np.full((size, size), 0.1, np.float32)
    np.fill_diagonal(text_embeddings_BD, scores or [0.9] * size)
    return CaptionBatch([Caption(text=text) for text in texts], clip_embeddings_BD, text_embeddings_BD)


def faults(gates, batch, clip_ids=None, kind="descriptive"):
    before = list(batch.captions)
    gated = gates.apply(batch, kind=kind, clip_ids=clip_ids or [str(i) for i in range(len(batch.captions))])
    assert batch.captions == before
    assert all((caption.reason == "bad_caption") == bool(caption.fault) for caption in gated.captions)
    return [caption.fault for caption in gated.captions]


def test_each_gate_names_its_fault():
    texts = [
        "a red dog runs",
        "dog",
        "on the on the on the on the on",
        "a red dog runs over the wide lawn",
        "a blue cat",
    ]
    gates = QualityGates(min_clip_score=0.5, token_budget=WORD_BUDGET)
    assert faults(gates, described(texts, [0.9, 0.9, 0.9, 0.9, 0.2])) == [
        "",
        "empty",
        "looping",
        "over_long",
        "low_score",
    ]
    assert faults(QualityGates(), described(texts[:1] + texts[3:], [0.9, 0.9, 0.2])) == ["", "", ""]


def test_thresholds_of_the_captioner_apply_where_none_is_set():
    def min_clip_scores(clip_embeddings_BD):
        return np.array([0.2, 0.8])

    texts = ["a red dog runs", "a blue cat"]
    assert faults(QualityGates(min_clip_scores=min_clip_scores), described(texts, [0.5, 0.5])) == ["", "low_score"]
    assert faults(QualityGates(min_clip_score=0.4, min_clip_scores=min_clip_scores), described(texts, [0.5, 0.5])) == [
        "",
        "",
    ]
    assert faults(QualityGates(min_clip_scores=lambda clip_embeddings_BD: None), described(texts, [0.5, 0.5])) == [
        "",
        "",
    ]


def test_caption_marked_bad_by_the_captioner_gets_fault_truncated():
    batch = described(["a red dog runs and"])
    batch.captions[0] = Caption(text="a red dog runs and", reason="bad_caption")
    assert faults(QualityGates(), batch) == ["truncated"]


def test_caption_must_exceed_captions_of_other_clips_by_the_margin():
    texts = ["a red dog", "a blue cat", "a green bird"]
    gates = QualityGates(min_score_margin=0.3)
    assert faults(gates, described(texts, [0.9, 0.3, 0.5])) == ["", "low_score", ""]
    assert faults(gates, described(texts, [0.9, 0.3, 0.5]), kind="short") == ["", "", ""]


def test_windows_of_one_clip_are_not_negatives_and_a_single_clip_has_no_margin():
    scores = np.array([[0.9, 0.9, 0.1], [0.9, 0.9, 0.1], [0.1, 0.1, 0.9]])
    np.testing.assert_allclose(score_margins(scores, ["a", "a", "b"]), [0.8, 0.8, 0.8])
    assert np.isnan(score_margins(scores, ["a", "a", "a"])).all()
    assert faults(QualityGates(min_score_margin=0.3), described(["a red dog"], [0.1])) == [""]


def test_captioner_without_contrastive_head_passes_score_gates():
    batch = CaptionBatch([Caption(text="a red dog")], None, None)
    assert faults(QualityGates(min_clip_score=0.5, min_score_margin=0.5), batch) == [""]


def test_rows_of_a_batch_are_replaced_in_a_copy():
    first, again = described(["a", "b", "c"]), described(["d", "e"])
    second = CaptionBatch(again.captions, None, np.zeros((2, 3), np.float32))
    replaced = first.with_rows([2, 0], second)
    assert [caption.text for caption in replaced.captions] == ["e", "b", "d"]
    np.testing.assert_array_equal(replaced.text_embeddings_BD.any(axis=1), [False, True, False])
    assert [caption.text for caption in first.captions] == ["a", "b", "c"]
    assert first.text_embeddings_BD.all()
    assert [caption.text for caption in replaced.take([2]).captions] == ["d"]
    assert replaced.with_rows([], replaced.take([])).captions == replaced.captions


def test_over_long_captions_are_retried_with_fewer_tokens():
    gates = QualityGates(token_budget=WORD_BUDGET)
    assert gates.reduced_max_tokens(["one two three four five six seven eight nine ten eleven twelve"], 40) == 18
    assert gates.reduced_max_tokens([], 40) == 40
    assert QualityGates().reduced_max_tokens(["a b c"], 40) == 40


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("my holiday", ""),
        ("x", "empty"),
        ("a b c d e f g h", "over_long"),
        ("Sorry I was late", ""),
        ("<html><p>x y</p></html>", "markup"),
        ("A caf\ufffd here", "glitch"),
        ("myFunction runs", ""),
    ],
)
def test_original_texts_are_gated_too(text, fault):
    assert (
        QualityGates(token_budget=WORD_BUDGET).apply_to_original(Caption(text=text, source="original")).fault == fault
    )
