import pytest
from small_text_encoders import word_tokenizer, write_clip, write_t5

from recaption.captioners.registry import load_captioner
from recaption.errors import UsageError, WeightsUnreachableError
from train.text.lengths import load, widths

LONG = "a large striped red circle moves left over the sea " * 40


def test_a_captioners_text_tower_counts_untruncated_texts():
    tiny = load_captioner("tiny")
    length = load("captioner:tiny", captioner=tiny, captioner_spec="tiny")
    short, long = length.count_tokens(["a red circle", LONG])
    _, lengths, _ = tiny.text_tower.encode(["a red circle", LONG])
    assert length.max_tokens == tiny.text_tower.max_tokens
    assert short == int(lengths[0])
    assert long > length.max_tokens >= int(lengths[1])  # where the encoder truncates
    assert load("captioner:tiny", max_tokens=12).max_tokens == 12


def test_t5_counts_with_the_tokenizer_alone(tmp_path):
    word_tokenizer(("a", "red", "circle")).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    length = load(f"t5:{tmp_path}")
    assert length.count_tokens(["a red circle", "a red circle moves"]) == [4, 5]
    assert length.max_tokens == 256


def test_missing_encoders_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="unknown text encoder"):
        load("vit:tiny")
    with pytest.raises(WeightsUnreachableError, match="tokenizer of t5:"):
        load(f"t5:{tmp_path}")


def test_clip_counts_without_its_weights(tmp_path):
    length = load(write_clip(tmp_path, context_length=10))
    (tmp_path / "open_clip_model.safetensors").unlink()
    assert (length.max_tokens, length.count_tokens(["a red circle", "a " * 20])) == (10, [5, 22])
    assert widths(f"clip:{tmp_path}") == (8, 12)


def test_of_several_encoders_the_smallest_limit_applies_and_exceeding_any_is_counted(tmp_path):
    t5, clip = write_t5(tmp_path / "t5"), write_clip(tmp_path / "clip", context_length=10)
    length = load(f"{t5}+{clip}")
    assert (length.max_tokens, length.count_tokens(["a red circle"])) == (10, [5])
    assert widths(f"{t5}+{clip}") == (24, 28)
    both = load(f"{t5}+{clip}", max_tokens=4)  # 3 and 4 tokens for T5, one more for CLIP
    assert both.count_tokens(["red blue", "red blue circle"]) == [3, 5]
