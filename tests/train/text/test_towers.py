"""CLIP's text tower, and several towers concatenated."""

from __future__ import annotations

import shutil

import open_clip
import pytest
import torch
from small_text_encoders import write_clip, write_t5

from recaption.errors import CheckpointMismatchError, UsageError, WeightsUnreachableError
from tests.stand_ins.pretend_cuda import pretend_cuda
from train.text import encoder as text_encoder
from train.text.towers import load_tower, parse

TEXTS = ["a red circle", "blue"]


@pytest.mark.parametrize("custom_text", [False, True])
def test_clip_equals_open_clip_without_building_the_vision_tower(tmp_path, custom_text):
    spec = write_clip(tmp_path, custom_text=custom_text)
    model, *_ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    tower = load_tower(spec)
    text_MC, lengths_S, pooled_SC = tower.encode(TEXTS)
    assert (tower.width, tower.pooled_width) == (8, 12)
    assert lengths_S.tolist() == [5, 3]  # start and end included
    assert text_MC.shape == (8, 8)
    with torch.no_grad():
        torch.testing.assert_close(pooled_SC, model.eval().encode_text(tokenizer(TEXTS)))
    torch.testing.assert_close(tower.encode(TEXTS[1:])[0], text_MC[5:])  # padding has no effect
    assert not any("visual" in name for name, _ in tower.model.named_parameters())


def test_random_weights_are_reproducible_and_other_weights_are_refused(tmp_path):
    a, b = (load_tower(write_clip(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    assert a.weights_hash != b.weights_hash
    with pytest.raises(UsageError, match=f"trained with {a.weights_hash}"):
        text_encoder.load(f"clip:{tmp_path / '1'}", weights_hash=a.weights_hash)


def test_weights_of_another_model_are_refused(tmp_path):
    spec = write_clip(tmp_path / "a")
    write_t5(tmp_path / "t5")
    shutil.copyfile(tmp_path / "t5" / "model.safetensors", tmp_path / "a" / "open_clip_model.safetensors")
    with pytest.raises(CheckpointMismatchError, match="does not hold weights of clip:"):
        load_tower(spec)


def test_unsupported_clips_are_refused(tmp_path):
    for name, why in (
        ("no-such-model/x", "no model named"),
        ("ViT-B-32", "names no weights"),
        ("coca_ViT-B-32/random", "captioner:open_clip"),
        ("ViT-B-16-SigLIP/random", "own text tower and tokenizer"),
        (str(tmp_path), "without open_clip_config.json"),
    ):
        with pytest.raises(UsageError, match=why):
            load_tower(f"clip:{name}")
    with pytest.raises(WeightsUnreachableError, match=r"clip:ViT-B-32//path"):
        load_tower("clip:ViT-B-32//no/such/file.safetensors")


def test_concatenated_towers_have_their_own_channels(tmp_path):
    t5, clip = write_t5(tmp_path / "t5"), write_clip(tmp_path / "clip")
    concatenated = text_encoder.load(f"{t5}+{clip}")
    alone = [text_encoder.load(spec).encode(TEXTS) for spec in (t5, clip)]
    both = concatenated.encode([*TEXTS, ""])
    assert (concatenated.width, concatenated.pooled_width) == (16 + 8, 16 + 12)
    assert both.segments.lengths == (4 + 5, 2 + 3, 0)
    torch.testing.assert_close(both.pooled_SC[:2], torch.cat([one.pooled_SC for one in alone], dim=1))
    circle, blue = both.text_MC.split([9, 5])
    for text, start in ((circle, 0), (blue, 4)):
        num = 4 if start == 0 else 2
        torch.testing.assert_close(text[:num, :16], alone[0].text_MC[start : start + num])
        assert not text[:num, 16:].any()
        assert not text[num:, :16].any()
    torch.testing.assert_close(circle[4:, 16:], alone[1].text_MC[:5])
    torch.testing.assert_close(blue[2:, 16:], alone[1].text_MC[5:])


def test_specs_are_split_only_before_a_tower_kind():
    assert parse("t5:/models/a+b+clip:ViT-L-14/openai") == [("t5", "/models/a+b"), ("clip", "ViT-L-14/openai")]
    with pytest.raises(UsageError, match="twice"):
        parse("t5:a+t5:a")


@pytest.mark.parametrize("kind", ["t5", "clip", "captioner"])
def test_an_encoder_is_its_files_whatever_the_device(tmp_path, kind):
    """Encoded or sampled on a CPU, trained on a GPU, and the other way round."""
    spec = {"t5": write_t5, "clip": write_clip}[kind](tmp_path) if kind != "captioner" else "captioner:tiny"
    on_cpu = text_encoder.load(spec).weights_hash
    with pretend_cuda():
        on_gpu = text_encoder.load(spec, device="cuda", weights_hash=on_cpu)
        dtypes = {parameter.dtype for parameter in on_gpu.tower.model.parameters()} if kind == "t5" else None
    assert on_gpu.weights_hash == on_cpu
    assert dtypes == ({torch.bfloat16} if kind == "t5" else None)
    assert text_encoder.load(spec, weights_hash=on_gpu.weights_hash).weights_hash == on_cpu


def test_an_encoder_in_several_files_is_the_one_in_a_single_file(tmp_path):
    whole = load_tower(write_t5(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    whole.model.save_pretrained(tmp_path / "sharded", max_shard_size="3KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    assert load_tower(f"t5:{tmp_path / 'sharded'}").weights_hash == whole.weights_hash


@pytest.mark.parametrize(
    "damage", [b"", b"\xff" * 8, b"\x80\x04K\x01.", "truncated"], ids=["empty", "2^63", "pickle", "cut"]
)
def test_damaged_weights_of_a_t5_are_refused_in_one_sentence(tmp_path, damage):
    spec = write_t5(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3] if damage == "truncated" else damage)
    with pytest.raises(WeightsUnreachableError, match=r"t5:.*: the weights are not complete on this machine"):
        load_tower(spec)
