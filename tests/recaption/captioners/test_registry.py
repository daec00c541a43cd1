"""Captioners opened by SPEC: VideoCoCa, its tokenizer and preprocessing, checkpoints, open_clip weights."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recaption.captioners.base import CLIPS_PER_BATCH, ClipBatch
from recaption.captioners.generation.settings import DecodingSettings
from recaption.captioners.preprocess import FramePreprocessor, uniform_frame_indices
from recaption.captioners.registry import load_captioner
from recaption.captioners.videococa import checkpoint, out_of_domain
from recaption.captioners.videococa.checkpoint import TINY_FOLDER
from recaption.captioners.videococa.model import FrameEncoder, VideoCoCa, build_coca, init_decoder_weights
from recaption.captioners.videococa.tokenizer import BPETokenizer, tokenizer_from_merges, train_tokenizer
from recaption.errors import CheckpointMismatchError, UsageError, WeightsUnreachableError
from recaption.scenes.captions import fields_in
from recaption.scenes.renderer import SIMPLE, render

TEXTS = [
    "A red circle moves left over the sea.",
    "A blue star stays still on the grass near some trees.",
    'The text reads "HELLO". It is sunny, and the camera is fixed.',
] * 4


def small_config(tokenizer: BPETokenizer, *, temporal: bool = True, fit: str = "squash") -> dict:
    text = {"context_length": tokenizer.context_length, "vocab_size": tokenizer.num_tokens, "width": 32, "heads": 2}
    return {
        "format": checkpoint.FORMAT_VERSION,
        "coca": {
            "embed_dim": 32,
            "vision_cfg": {
                "image_size": 16,
                "patch_size": 8,
                "width": 32,
                "head_width": 16,
                "layers": 1,
                "attentional_pool": True,
                "attn_pooler_queries": 5,
                "attn_pooler_heads": 2,
                "output_tokens": True,
            },
            "text_cfg": {**text, "layers": 1, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": {**text, "layers": 1},
        },
        "num_frames": 4,
        "temporal": temporal,
        "framing": {"frame_px": 16, "fit": fit, "interpolation": "bilinear"},
        "fields": "scenes",
        "merges": tokenizer.merges,
    }


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return train_tokenizer(TEXTS, num_tokens=600, context_length=24)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    config = small_config(tokenizer)
    torch.manual_seed(0)
    model = checkpoint.build_model(config)
    with torch.no_grad():
        model.clip_encoder.temporal_embedding.normal_()
        model.coca.text.token_embedding.weight.mul_(20)
        model.coca.text.positional_embedding.mul_(40)
        model.coca.text_decoder.text_projection.mul_(5)
        model.coca.text_decoder.text_projection[:, : tokenizer.special.end + 1] = 0  # end tokens are rare
        for block in model.coca.text_decoder.cross_attn:
            block.attn.out_proj.weight.mul_(8)
    return checkpoint.save_captioner(
        tmp_path_factory.mktemp("saved") / "captioner", model.state_dict(), tokenizer, config
    )


def clip(seed: int, num_frames: int = 6, height_px: int = 20, width_px: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height_px, width_px, 3), dtype=np.uint8)


# --- the model --------------------------------------------------------------------------------------------------------


def small_image_coca() -> torch.nn.Module:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, num_tokens=300, context_length=8)
    return build_coca(small_config(tokenizer)["coca"]).eval()


@torch.inference_mode()
def assert_one_frame_is_an_image(coca: torch.nn.Module, image_px: int) -> None:
    pixels = torch.randn(3, 3, image_px, image_px, generator=torch.Generator().manual_seed(0))
    expected_pooled, expected_tokens = coca._encode_image(pixels)
    embedding = VideoCoCa(coca).encode_clips(pixels[:, None])
    torch.testing.assert_close(embedding.pooled_BD, expected_pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(embedding.tokens_BND, expected_tokens, atol=1e-5, rtol=0)


def test_one_frame_equals_the_image_model():
    assert_one_frame_is_an_image(small_image_coca(), 16)


@pytest.mark.slow
def test_one_frame_equals_the_image_model_at_full_size():
    assert_one_frame_is_an_image(load_captioner("open_clip:coca_ViT-B-32/random").model.coca, 224)


def test_frame_order_matters_only_with_a_temporal_embedding():
    coca = small_image_coca()
    pixels = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain, with_time = VideoCoCa(coca), VideoCoCa(coca, FrameEncoder(coca.visual, max_frames=3))
    with torch.inference_mode():
        first = plain.encode_clips(pixels)
        torch.testing.assert_close(plain.encode_clips(pixels.flip(1)).pooled_BD, first.pooled_BD, atol=1e-5, rtol=0)
        assert (plain.encode_clips(pixels[:, :1]).pooled_BD - first.pooled_BD).abs().max() > 1e-3
        # initialised to zero: no change at all
        assert torch.equal(with_time.encode_clips(pixels).tokens_BND, first.tokens_BND)
        with_time.clip_encoder.temporal_embedding.copy_(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)))
        backwards = with_time.encode_clips(pixels.flip(1)).pooled_BD
        assert (backwards - with_time.encode_clips(pixels).pooled_BD).abs().max() > 1e-3


def test_joint_layers_start_as_the_identity_and_then_mix_frames():
    coca = small_image_coca()
    pixels = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    joint = VideoCoCa(coca, FrameEncoder(coca.visual, num_joint_layers=2))
    with torch.inference_mode():
        first = VideoCoCa(coca).encode_clips(pixels)
        assert torch.equal(joint.encode_clips(pixels).tokens_BND, first.tokens_BND)
        for block in joint.clip_encoder.joint.resblocks:
            torch.nn.init.normal_(block.attn.out_proj.weight)
        assert (joint.encode_clips(pixels).tokens_BND - first.tokens_BND).abs().max() > 1e-2


def test_convolutional_stem_keeps_the_number_of_tokens(tokenizer):
    config = small_config(tokenizer)["coca"]
    pixels = torch.zeros(2, 3, 16, 16)
    plain, with_stem = build_coca(config).visual, build_coca(config, stem_channels=(4, 8)).visual
    assert with_stem.conv1(pixels).shape == plain.conv1(pixels).shape
    with pytest.raises(UsageError, match="halvings"):
        build_coca(config, stem_channels=(4,))


def test_decoder_is_initialised_even_if_empty_memory_holds_nan():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # torch.empty is filled with NaN
    try:
        coca = small_image_coca()
        assert all(torch.isfinite(parameter).all() for parameter in coca.parameters())
        coca.text_decoder.text_projection.data.fill_(torch.nan)
        init_decoder_weights(coca)
        assert float(coca.text_decoder.text_projection.detach().std()) == pytest.approx(32**-0.5, rel=0.1)
    finally:
        torch.use_deterministic_algorithms(before)


def test_video_coca_refuses_other_towers():
    class Other(torch.nn.Module):
        visual = text = torch.nn.Identity()

    with pytest.raises(UsageError, match="text tower"):
        VideoCoCa(Other())
    with pytest.raises(UsageError, match="vision tower"):
        FrameEncoder(Other.visual)


# --- tokenizer --------------------------------------------------------------------------------------------------------


def test_any_text_round_trips(tokenizer):
    texts = ["a red circle moves left over the sea.", "žluťoučký kůň 🐎?", "", "\n"]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert ids[0] == tokenizer.special.start
        assert tokenizer.special.end in ids
        if len(text) > 1 and (ids == tokenizer.special.pad).any():
            assert tokenizer.decode(ids.tolist()).lower() == text


def test_frequent_words_are_one_token_and_case_is_ignored(tokenizer):
    upper, lower = tokenizer.encode(["Circle RED", "circle red"])
    assert torch.equal(upper, lower)
    assert (lower != tokenizer.special.pad).sum() == 4


def test_long_text_is_truncated_and_still_ends(tokenizer):
    (ids,) = tokenizer.encode(["circle " * 100])
    assert len(ids) == tokenizer.context_length
    assert ids[-1] == tokenizer.special.end


def test_merges_define_the_whole_tokenizer(tokenizer):
    rebuilt = tokenizer_from_merges(tokenizer.merges, context_length=tokenizer.context_length)
    assert rebuilt.tokenizer_json == tokenizer.tokenizer_json
    assert (tokenizer.special.pad, tokenizer.special.start, tokenizer.special.end) == (0, 1, 2)


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_available", "num_frames", "repeat", "expected"),
    [
        (9, 3, False, [1, 4, 7]),
        (2, 4, False, [0, 1]),
        (2, 4, True, [0, 0, 1, 1]),
        (1, 3, True, [0, 0, 0]),
        (5, 1, False, [2]),
        (8, 8, True, list(range(8))),
    ],
)
def test_uniform_frame_indices(num_available, num_frames, repeat, expected):
    assert uniform_frame_indices(num_available, num_frames, repeat=repeat).tolist() == expected


@pytest.mark.parametrize("size", [(40, 100), (100, 40), (64, 64), (33, 57)])
def test_crop_equals_open_clip_preprocessing(size):
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    open_clip_cfg = PreprocessCfg(size=32)
    expected = image_transform_v2(open_clip_cfg, is_train=False)(Image.fromarray(pixels))
    preprocessor = FramePreprocessor(frame_px=32, mean=open_clip_cfg.mean, std=open_clip_cfg.std)
    got = preprocessor.to_tensor(pixels[None], num_frames=1, repeat=False)[0]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_pad_and_squash_keep_the_whole_frame():
    wide = np.zeros((1, 20, 60, 3), np.uint8)
    wide[:, :, :10], wide[:, :, -10:] = 255, 255  # white ends that a centre crop would lose
    first = np.zeros(1, np.int64)
    padded = FramePreprocessor(frame_px=30, fit="pad").resize_frames(wide, first)[0]
    assert padded[15, 0].min() > 200
    assert padded[15, -1].min() > 200
    assert (padded[0] == 128).all()
    squashed = FramePreprocessor(frame_px=30, fit="squash").resize_frames(wide, first)[0]
    assert squashed[:, 0].min() > 200
    assert squashed[:, -1].min() > 200
    with pytest.raises(UsageError, match="fit"):
        FramePreprocessor(frame_px=30, fit="stretch")


# --- the captioner ----------------------------------------------------------------------------------------------------


def test_caption_records_carry_their_provenance(folder):
    captioner = load_captioner(str(folder))
    clips = [clip(seed, num_frames=3 + seed, width_px=20 + 4 * seed) for seed in range(CLIPS_PER_BATCH + 2)]
    captions = captioner.caption(clips, max_tokens=6)
    assert len(captions) == len(clips)
    for pixels, caption in zip(clips, captions, strict=True):
        assert caption.clip_sha256 == hashlib.sha256(pixels.tobytes()).hexdigest()
        assert caption.captioner == f"videococa@{captioner.weights_hash}"
        assert caption.source == "model"
        assert 1 <= caption.num_tokens <= 6
        assert caption.mean_logprob < 0
        assert caption.fields == fields_in(caption.text)
        (score,) = captioner.score([pixels], [caption.text])[0]
        assert caption.clip_score == pytest.approx(float(score), abs=1e-4)
        assert caption.reason in (None, "bad_caption")


def test_embeddings_returned_with_captions_give_the_scores(folder, monkeypatch):
    captioner = load_captioner(str(folder))
    clips = [clip(seed) for seed in range(3)]
    encodings = []
    encode = captioner.model.encode_clips
    monkeypatch.setattr(captioner.model, "encode_clips", lambda pixels: encodings.append(len(pixels)) or encode(pixels))
    batch = captioner.caption_with_embeddings(clips, max_tokens=6)
    assert sum(encodings) == 3  # each clip once, for captions and scores
    assert batch.captions == captioner.caption(clips, max_tokens=6)
    scores = captioner.score(clips, [caption.text for caption in batch.captions])
    np.testing.assert_allclose(batch.clip_embeddings_BD @ batch.text_embeddings_BD.T, scores, atol=1e-5)
    np.testing.assert_allclose([caption.clip_score for caption in batch.captions], np.diag(scores), atol=1e-5)
    assert captioner.caption_with_embeddings([]).clip_embeddings_BD.shape == (0, batch.clip_embeddings_BD.shape[1])


def test_a_truncated_caption_is_bad(folder):
    captions = load_captioner(str(folder)).caption([clip(0)], max_tokens=1)
    assert captions[0].reason == "bad_caption"


def test_captions_do_not_depend_on_the_batch(folder):
    captioner = load_captioner(str(folder))
    clips = [clip(seed) for seed in range(11)]
    for settings in ({}, {"temperature": 1.0, "seed": 3}, {"num_beams": 3}):
        together = [caption.text for caption in captioner.caption(clips, max_tokens=8, **settings)]
        alone = [captioner.caption([pixels], max_tokens=8, **settings)[0].text for pixels in clips]
        assert together == alone
        assert len(set(together)) > 1


def test_num_beams_defaults_to_the_captioners_own(folder, monkeypatch):
    from recaption.captioners.videococa import captioner as coca_captioner

    beam_counts = []
    generate = coca_captioner.generate
    monkeypatch.setattr(
        coca_captioner,
        "generate",
        lambda *args, decoding, **kwargs: (
            beam_counts.append(decoding.num_beams) or generate(*args, decoding=decoding, **kwargs)
        ),
    )
    config = json.loads((folder / "config.json").read_text())
    with_beams = shutil.copytree(folder, folder.parent / "with_beams")
    (with_beams / "config.json").write_text(json.dumps({**config, "num_beams": 3}))
    for path in (folder, with_beams):
        captioner = load_captioner(str(path))
        for settings in ({}, {"num_beams": 1}, {"num_beams": 2}, {"temperature": 1.0}):
            captioner.caption([clip(0)], max_tokens=4, **settings)
    assert beam_counts == [1, 1, 2, 1, 3, 1, 2, 1]
    assert load_captioner("tiny").num_beams == 3


def test_seed_changes_sampled_captions(folder):
    captioner = load_captioner(str(folder))
    texts = {seed: captioner.caption([clip(0)], seed=seed, temperature=2.0)[0].text for seed in (0, 1, 0)}
    assert texts[0] == captioner.caption([clip(0)], seed=0, temperature=2.0)[0].text
    assert texts[0] != texts[1]


def test_random_numbers_of_a_row_depend_on_its_key_and_seed_alone():
    def uniforms(keys, seed=0, count=4):
        decoding = DecodingSettings(max_tokens=count, temperature=1.0)
        batch = ClipBatch(clips=[], clip_hashes=[], rng_keys=keys, kind="descriptive", decoding=decoding, seed=seed)
        return batch.uniforms_RM.tolist()

    both = uniforms(["a", "a/1"])
    assert both == [*uniforms(["a"]), *uniforms(["a/1"])]
    assert [row[:2] for row in both] == uniforms(["a", "a/1"], count=2)
    assert len({number for row in (*both, *uniforms(["a"], seed=1)) for number in row}) == 12


def test_the_best_of_several_samples_is_returned(folder, monkeypatch):
    captioner = load_captioner(str(folder))
    clips = [clip(seed) for seed in range(5)]
    encodings = []
    encode = captioner.model.encode_clips
    monkeypatch.setattr(captioner.model, "encode_clips", lambda pixels: encodings.append(len(pixels)) or encode(pixels))
    settings = {"max_tokens": 8, "temperature": 1.5, "seed": 1}
    best = captioner.caption_with_embeddings(clips, num_samples=6, **settings)
    assert sum(encodings) == 5
    one = captioner.caption_with_embeddings(clips, **settings)
    assert len(best.captions) == 5
    for chosen, first in zip(best.captions, one.captions, strict=True):  # the first sample equals a single sample
        assert (chosen.reason is None, chosen.clip_score) >= (first.reason is None, first.clip_score - 1e-5)
    assert any(chosen.text != first.text for chosen, first in zip(best.captions, one.captions, strict=True))
    np.testing.assert_allclose(
        (best.clip_embeddings_BD * best.text_embeddings_BD).sum(axis=1),
        [caption.clip_score for caption in best.captions],
        atol=1e-5,
    )
    with pytest.raises(UsageError, match="temperature"):
        captioner.caption_with_embeddings(clips, num_samples=2)


def test_encoded_clips_give_the_captions_and_scores_of_their_frames(folder):
    captioner = load_captioner(str(folder))
    clips = [clip(seed) for seed in range(4)]
    encoded = captioner.encode(clips)
    assert encoded[0].tokens_ND.dtype == np.float16
    assert encoded[0].pooled_D.dtype == np.float32
    mixed = [encoded[0], clips[1], *encoded[2:]]
    assert captioner.encode(mixed)[0] is encoded[0]
    for settings in ({}, {"num_beams": 2}):
        expected = [caption.text for caption in captioner.caption(clips, max_tokens=8, **settings)]
        assert [caption.text for caption in captioner.caption(mixed, max_tokens=8, **settings)] == expected
    np.testing.assert_allclose(captioner.score(mixed, TEXTS[:2]), captioner.score(clips, TEXTS[:2]), atol=1e-5)


def test_a_tokenizer_of_other_weights_is_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    other = train_tokenizer(TEXTS[:1], num_tokens=300, context_length=24)
    (tmp_path / "tokenizer.json").write_text(other.tokenizer_json)
    with pytest.raises(CheckpointMismatchError, match=r"tokenizer\.json"):
        load_captioner(str(tmp_path))


def test_wrong_clips_are_refused(folder):
    captioner = load_captioner(str(folder))
    for wrong in (np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), "clip.mp4"):
        with pytest.raises(UsageError, match="uint8"):
            captioner.caption([wrong])
    with pytest.raises(UsageError, match="without frames"):
        captioner.caption([np.zeros((0, 8, 8, 3), np.uint8)])
    assert captioner.caption([]) == []
    assert captioner.score([], ["a"]).shape == (0, 1)


def test_score_is_a_cosine(folder):
    captioner = load_captioner(str(folder))
    scores = captioner.score([clip(seed) for seed in range(10)], TEXTS[:3])
    assert scores.shape == (10, 3)
    assert scores.dtype == np.float32
    assert np.abs(scores).max() <= 1 + 1e-5
    np.testing.assert_allclose(captioner.score([clip(7)], TEXTS[:3])[0], scores[7], atol=1e-5)


def test_text_tower_gives_tokens_without_padding(folder):
    tower = load_captioner(str(folder)).text_tower
    text_MD, lengths_S, pooled_SD = tower.encode(["a red circle", "", "a blue star stays still"])
    assert text_MD.dtype == torch.float32
    assert text_MD.shape == (int(lengths_S.sum()), tower.width)
    assert lengths_S[1] == 2
    assert pooled_SD.shape == (3, tower.pooled_width)
    alone_MD, _, alone_SD = tower.encode(["a blue star stays still"])
    torch.testing.assert_close(text_MD[-int(lengths_S[2]) :], alone_MD, atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled_SD[2:], alone_SD, atol=1e-5, rtol=0)
    (text_MD * torch.ones(1, requires_grad=True)).sum().backward()  # usable in autograd
    assert tower.encode([])[0].shape == (0, tower.width)


# --- saving and opening -----------------------------------------------------------------------------------------------


def test_a_saved_captioner_opens_with_the_same_hash_every_time(folder):
    first, second = load_captioner(str(folder)), load_captioner(str(folder))
    assert first.weights_hash == second.weights_hash
    assert len(first.weights_hash) == 12
    assert first.num_frames == 4
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}


def test_training_checkpoints_open_and_the_newest_one_is_loaded(folder, tokenizer, tmp_path):
    from safetensors.torch import load_file, save_file

    config = {"task": "captioner", "captioner": small_config(tokenizer)}
    state = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    for step in (100, 200):
        step_folder = tmp_path / "train" / "mine" / "checkpoints" / f"step-{step:06d}"
        step_folder.mkdir(parents=True)
        (step_folder / "config.json").write_text(json.dumps(config))
        save_file({name: tensor * 0 + step for name, tensor in state.items()}, step_folder / "model.safetensors")
        averaged = state if step == 200 else {name: tensor * 0 for name, tensor in state.items()}
        save_file(averaged, step_folder / "ema.safetensors")
    expected = load_captioner(str(folder))
    for path in (step_folder, step_folder.parent, step_folder.parent.parent):
        opened = load_captioner(str(path))
        assert opened.weights_hash == expected.weights_hash
        assert opened.caption([clip(0)])[0].text == expected.caption([clip(0)])[0].text


def test_checkpoints_of_other_models_and_formats_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"task": "dit"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointMismatchError, match="captioner"):
        load_captioner(str(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": "videococa-0"}))
    with pytest.raises(CheckpointMismatchError, match="reads captioners of format 'videococa-1', not 'videococa-0'"):
        load_captioner(str(tmp_path))
    config["coca"]["text_cfg"]["layers"] = 2
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointMismatchError, match="does not fit"):
        load_captioner(str(tmp_path))


@pytest.mark.parametrize("spec", ["nonesuch", "git:", "tiny:x", "path:x", "/no/such/folder", "open_clip:", ""])
def test_unknown_captioners_list_the_available_ones(spec):
    with pytest.raises(UsageError, match=r"tiny \| open_clip:MODEL/TAG"):
        load_captioner(spec)


def test_empty_folder_is_no_captioner(tmp_path):
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        load_captioner(str(tmp_path))


def test_missing_tiny_weights_are_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "TINY_FOLDER", tmp_path)
    with pytest.raises(WeightsUnreachableError, match=r"model\.safetensors"):
        load_captioner("tiny")


@pytest.mark.skipif(not (TINY_FOLDER / "model.safetensors").is_file(), reason="weights not shipped here")
def test_tiny_is_small_and_captions_held_out_scenes():
    assert sum(path.stat().st_size for path in TINY_FOLDER.iterdir()) < 8 * 2**20
    captioner = load_captioner("tiny")
    scenes = [render(2_000_000 + index, num_frames=25) for index in range(12)]
    captions = captioner.caption([scene.frames_THWC for scene in scenes])
    assert all(caption.reason is None for caption in captions)
    hits = [
        getattr(caption.fields, field) == getattr(scene.fields, field)
        for caption, scene in zip(captions, scenes, strict=True)
        for field in ("colour", "main_object", "background")
    ]
    assert np.mean(hits) > 0.6


# --- open_clip --------------------------------------------------------------------------------------------------------


def test_open_clip_names_are_checked():
    with pytest.raises(UsageError, match="coca_ViT-B-32"):
        load_captioner("open_clip:ViT-B-32/laion2b_s13b_b90k")
    with pytest.raises(UsageError, match="mscoco_finetuned_laion2b_s13b_b90k"):
        load_captioner("open_clip:coca_ViT-B-32/nonesuch")
    with pytest.raises(WeightsUnreachableError, match=r"no file /no/such/open_clip_model\.safetensors"):
        load_captioner("open_clip:coca_ViT-L-14//no/such/open_clip_model.safetensors")
    with pytest.raises(UsageError, match="open_clip:MODEL/TAG"):
        load_captioner("open_clip:coca_ViT-B-32")


def test_unreachable_hub_fails_within_seconds_with_instructions(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}")  # the discard port
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(WeightsUnreachableError) as caught:
        load_captioner("open_clip:coca_ViT-L-14/mscoco_finetuned_laion2b_s13b_b90k")
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert "coca_ViT-L-14/mscoco_finetuned_laion2b_s13b_b90k" in message
    assert "open_clip_model.safetensors of laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k" in message
    assert "open_clip:coca_ViT-L-14//path/to/open_clip_model.safetensors" in message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnreachableError, match="HF_HUB_OFFLINE"):
        load_captioner("open_clip:coca_ViT-B-32/laion2b_s13b_b90k")


def test_open_clip_weights_from_a_file_behave_like_open_clip(monkeypatch, tmp_path):
    """A small architecture registered with open_clip, its weights in a local file, with CLIP's own tokenizer."""
    import open_clip
    from safetensors.torch import save_file

    text = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2}
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 16,
            "patch_size": 8,
            "width": 16,
            "head_width": 8,
            "layers": 1,
            "attentional_pool": True,
            "attn_pooler_queries": 4,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        "text_cfg": {**text, "layers": 1, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**text, "layers": 1},
        "custom_text": True,
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "coca_small", config)
    random = load_captioner("open_clip:coca_small/random")
    assert random.weights_hash == load_captioner("open_clip:coca_small/random").weights_hash
    path = tmp_path / "open_clip_model.safetensors"
    state = {name: tensor.contiguous() for name, tensor in random.model.coca.state_dict().items()}
    save_file(state, path)
    captioner = load_captioner(f"open_clip:coca_small/{path}")
    assert captioner.weights_hash == random.weights_hash
    assert captioner.name == "open_clip:coca_small/open_clip_model.safetensors"
    assert (captioner.num_frames, captioner.frame_px, captioner.max_tokens) == (8, 16, 20)
    captions = captioner.caption([clip(0, 12), clip(1, 3)], max_tokens=5)
    assert len(captions) == 2

    ids = captioner.tokenizer.encode(["a photo of a dog"])
    with torch.inference_mode():
        expected = captioner.model.coca.encode_text(ids, normalize=False)
    torch.testing.assert_close(captioner.text_tower.encode(["a photo of a dog"])[2], expected, atol=1e-6, rtol=0)
    assert captioner.tokenizer.decode(ids[0].tolist()) == "a photo of a dog"

    (tmp_path / "other.safetensors").write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointMismatchError, match="coca_small"):
        load_captioner(f"open_clip:coca_small/{tmp_path}/other.safetensors")


def test_out_of_domain_clips_need_a_higher_score(tmp_path):
    anchors_ND = np.eye(4, dtype=np.float32)[[0] * 6 + [1] * 6]
    out_of_domain.TrainingAnchors(anchors_ND, 1.5).write(tmp_path)
    read = out_of_domain.read_training_anchors(tmp_path)
    between = np.array([[0.6, 0.0, 0.8, 0.0]], np.float32)
    np.testing.assert_allclose(read.min_clip_scores(np.concatenate([anchors_ND[[0]], between])), [0.5, 0.9], atol=1e-3)
    assert out_of_domain.read_training_anchors(tmp_path / "elsewhere") is None

    tiny = load_captioner("tiny")
    noise = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    scene = render(3, num_frames=8, height_px=96, width_px=96, **SIMPLE).frames_THWC
    min_score_B = tiny.min_clip_scores(tiny.embed_clips([scene, noise]))
    assert min_score_B[0] + 0.05 < min_score_B[1]
