"""Words in scripts with and without spaces."""

from __future__ import annotations

import pytest

from recaption.captions.metrics import caption_scores, tokenize_ptb
from recaption.captions.repeated import find_repeated_texts
from recaption.captions.text import find_fault
from recaption.captions.words import count_words, first_words, separate_graphemes, tokenize_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("一只狗跑。", ["一", "只", "狗", "跑"]),
        ("犬が走る。ビーチ", ["犬", "が", "走", "る", "ビ", "ー", "チ"]),
        ("สุนัขวิ่ง", ["สุ", "นั", "ข", "วิ่", "ง"]),
        ("ໝາແລ່ນ", ["ໝ", "າ", "ແ", "ລ່", "ນ"]),
        ("ཁྱི་ཞིག་རྒྱུག", ["ཁྱི", "ཞིག", "རྒྱུག"]),
        ("iPhone手机 2台", ["iphone", "手", "机", "2", "台"]),
        ("개가 해변을 달린다.", ["개가", "해변을", "달린다"]),
        ("Собака-поводырь бежит.", ["собака-поводырь", "бежит"]),
        ("كلب يركض", ["كلب", "يركض"]),
        ("कुत्ता दौड़ता है।", ["कुत्ता", "दौड़ता", "है"]),
        ("A dog's naïve ball, 3.5 km.", ["a", "dog's", "naïve", "ball", "3", "5", "km"]),
    ],
)
def test_words_are_graphemes_where_a_script_has_no_spaces(text, words):
    assert tokenize_words(text) == words


def test_loops_are_found_without_spaces_and_laughter_is_none():
    assert find_fault("一只狗在海滩上奔跑。" * 4) == "looping"
    assert find_fault("一只狗" * 6) == "looping"
    assert find_fault("犬が走る犬が走る犬が走る犬が走る犬が走る") == "looping"
    assert find_fault("สุนัขวิ่งบนชายหาด" * 5) == "looping"
    assert find_fault("很" * 12) == "looping"
    assert find_fault("孩子们哈哈哈哈地笑着跑过草地。") is None
    assert find_fault("狗") == "empty"


def test_nearly_the_same_chinese_texts_are_repeated_and_others_are_not():
    text = "一只棕色的小狗在金色的海滩上快乐地奔跑，海浪拍打着岸边，远处有几艘帆船，天空中飘着朵朵白云。"
    texts = {
        "a": text,
        "b": text.replace("棕色", "黑色"),
        "c": "一位老师在教室里给学生们讲解数学题，黑板上写满了公式。",
    }
    found = find_repeated_texts(texts, min_similarity=0.75)
    assert set(found) == {"a", "b"}
    assert found["a"].num_clips == 2


def test_metrics_count_chinese_by_characters():
    assert tokenize_ptb("一只狗。") == ["一", "只", "狗"]
    assert tokenize_ptb("कुत्ता दौड़ता है") == ["कुत्ता", "दौड़ता", "है"]
    same = caption_scores(["一只狗在海滩上奔跑"], [["一只狗在海滩上奔跑"]])
    near = caption_scores(["一只狗在海滩上睡觉"], [["一只狗在海滩上奔跑"]])
    assert same["bleu_4"] == pytest.approx(1.0)
    assert 0.5 < near["bleu_4"] < 1
    assert near["rouge_l"] == pytest.approx(7 / 9)


def test_lengths_and_beginnings():
    assert count_words("A dog - it runs.") == 5
    assert count_words("一只狗 runs") == 4
    assert separate_graphemes("plain") == "plain"
    assert first_words("一只狗在海滩上", 3) == "一只狗"
    assert first_words("a  red dog runs", 3) == "a red dog"
