"""Text encoders: packed captions, caching, and clear errors for unreachable weights."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_text_encoders import write_t5
from torch import Tensor

from recaption.errors import UsageError, WeightsUnreachableError
from train.text.encoder import TextEncoder, load
from train.text.t5 import T5Encoder


class WordTower:
    """One token per word, made of the word's letters."""

    width, pooled_width = 4, 3

    def __init__(self):
        self.encoded: list[str] = []

    def encode(self, texts):
        self.encoded += texts
        words = [text.split() for text in texts]
        tokens = [[float(ord(w[i % len(w)])) for i in range(4)] for ws in words for w in ws]
        pooled = [[float(len(text))] * 3 for text in texts]
        return torch.tensor(tokens), torch.tensor([len(ws) for ws in words]), torch.tensor(pooled)


def make_encoder(tower: WordTower, **settings: int) -> TextEncoder:
    return TextEncoder(tower, spec="words", weights_hash="feedc0ffee00", **settings)


def test_captions_are_packed_in_order_and_blank_ones_have_no_tokens():
    text = make_encoder(WordTower()).encode(["red circle moves", "", "blue"])
    assert text.segments.lengths == (3, 0, 1)
    assert text.text_MC.shape == (4, 4)
    assert text.text_MC[3].tolist() == [98.0, 108.0, 117.0, 101.0]
    assert text.pooled_SC[:, 0].tolist() == [16.0, 0.0, 4.0]
    assert not text.text_MC.requires_grad


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_each_caption_is_encoded_once(batch_size):
    tower = WordTower()
    encoder = make_encoder(tower, batch_size=batch_size)
    first = encoder.encode(["red one", "blue", "red one"])
    again = encoder.encode(["blue", "green", "red one"])
    assert sorted(tower.encoded) == ["blue", "green", "red one"]
    assert torch.equal(again.text_MC[-2:], first.text_MC[:2])


def test_the_least_recently_used_caption_leaves_the_cache():
    tower = WordTower()
    one_caption_bytes = 4 * (4 + 3)
    encoder = make_encoder(tower, cache_bytes=2 * one_caption_bytes)
    for text in ("a", "b", "a", "c", "a", "b"):
        encoder.encode([text])
    assert tower.encoded == ["a", "b", "c", "b"]


@pytest.fixture(scope="module", params=["T5", "UMT5"])
def t5_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_t5(folder, request.param)
    return folder


def test_a_t5_folder_encodes_and_padding_has_no_effect(t5_folder):
    encoder = load(f"t5:{t5_folder}")
    assert (encoder.width, encoder.pooled_width) == (16, 16)
    short, together = encoder.encode(["red"]), load(f"t5:{t5_folder}").tower.encode(["red", "blue circle red"])
    assert short.segments.lengths == (2,)
    torch.testing.assert_close(together[0][:2], short.text_MC)
    torch.testing.assert_close(together[2][0], short.text_MC.mean(0))
    assert load(f"t5:{t5_folder}", weights_hash=encoder.weights_hash).weights_hash == encoder.weights_hash
    with pytest.raises(UsageError, match="trained with 000000000000"):
        load(f"t5:{t5_folder}", weights_hash="000000000000")


def test_weights_hash_is_the_same_on_every_device_and_covers_every_value(t5_folder, tmp_path):
    on_cpu = T5Encoder(str(t5_folder))
    on_device = T5Encoder(str(t5_folder), "meta")  # bfloat16, as on a GPU
    assert on_device.model.dtype == torch.bfloat16
    assert on_device.weights_hash == on_cpu.weights_hash
    shutil.copytree(t5_folder, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    max(weights.values(), key=Tensor.numel)[-1, -1] += 1
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    assert T5Encoder(str(tmp_path / "other")).weights_hash != on_cpu.weights_hash


def test_unreachable_weights_are_refused_quickly_with_a_remedy(monkeypatch, tmp_path):
    nothing_listens = "http://127.0.0.1:9/{repo_id}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nothing_listens)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(WeightsUnreachableError, match=r"t5:nobody/no-such-t5.*refused.*t5:FOLDER"):
        load("t5:nobody/no-such-t5")
    assert time.monotonic() - start < 10
    with pytest.raises(WeightsUnreachableError, match="t5:FOLDER"):
        load(f"t5:{tmp_path}")


def test_unsupported_models_and_specs_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UsageError, match="is a 'gpt2' model; t5: takes t5, mt5, umt5"):
        load(f"t5:{tmp_path}")
    for spec in ("vit:x", "t5:", "captioner", ""):
        with pytest.raises(UsageError, match="unknown text encoder"):
            load(spec)
