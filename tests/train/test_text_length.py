import pytest

from recaption.captioners import load_captioner
from recaption.errors import UsageError, WeightsUnreachableError
from train.text_length import load

LONG = "a large striped red circle moves left over the sea " * 40


def test_a_captioners_text_tower_counts_whole_texts():
    tiny = load_captioner("tiny")
    length = load("captioner:tiny", captioner=tiny, captioner_spec="tiny")
    short, long = length.count(["a red circle", LONG])
    _, lengths, _ = tiny.text_tower.encode(["a red circle", LONG])
    assert length.limit == tiny.text_tower.max_tokens
    assert short == int(lengths[0])
    assert long > length.limit >= int(lengths[1])  # which is where the encoder cuts it
    assert load("captioner:tiny", max_tokens=12).limit == 12


def test_a_t5_tokenizer_is_enough(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "circle": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    length = load(f"t5:{tmp_path}")
    assert length.count(["a red circle", "a red circle moves"]) == [3, 4]
    assert length.limit == 256


def test_encoders_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="unknown text encoder"):
        load("clip:tiny")
    with pytest.raises(WeightsUnreachableError, match="tokenizer of t5:"):
        load(f"t5:{tmp_path}")
