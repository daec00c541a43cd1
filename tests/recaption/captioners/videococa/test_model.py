"""VideoCoCa designs: exact on one frame, sensitive to frame order where promised, able to caption and to train."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recaption.captioners.generation.generate import generate
from recaption.captioners.generation.settings import DecodingSettings, SpecialTokens
from recaption.captioners.registry import load_captioner
from recaption.captioners.videococa.checkpoint import build_model
from recaption.captioners.videococa.model import (
    DESIGNS,
    POOLERS,
    FrameEncoder,
    VideoCoCa,
    build_coca,
    expand_state_dict,
    split_pooler,
)
from recaption.errors import UsageError

NUM_TOKENS = 40
SPECIAL = SpecialTokens(start=1, end=2, pad=0)


def coca_config(pool: bool | str = True, num_queries: int = 5) -> dict:
    tower = {"context_length": 10, "vocab_size": NUM_TOKENS, "width": 32, "heads": 4, "layers": 1}
    return {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 16,
            "patch_size": 8,
            "layers": 2,
            "width": 24,
            "head_width": 8,
            "attentional_pool": pool,
            "attn_pooler_queries": num_queries,
            "attn_pooler_heads": 4,
            "output_tokens": True,
        },
        "text_cfg": {**tower, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**tower},
    }


def make(design: str = "attentional", *, pool: bool | str = True, temporal: bool = False, seed: int = 0) -> VideoCoCa:
    config = {"coca": coca_config(pool), "num_frames": 4, "temporal": temporal, "design": design, "temporal_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(config).eval()


def random_pixels(num_clips: int = 2, num_frames: int = 4) -> torch.Tensor:
    return torch.randn(num_clips, num_frames, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def perturb_added_parts(model: VideoCoCa) -> VideoCoCa:
    """Randomise the parts that are initialised to have no effect, as training would."""
    with torch.no_grad():
        if model.clip_encoder.temporal_embedding is not None:
            model.clip_encoder.temporal_embedding.normal_(generator=torch.Generator().manual_seed(5))
        for block in model.clip_encoder.temporal.resblocks if model.clip_encoder.temporal is not None else ():
            block.attn.out_proj.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(6))
    return model


@pytest.mark.parametrize("temporal", [False, True])
@pytest.mark.parametrize("design", DESIGNS)
def test_one_frame_equals_the_image_model_in_every_design(design, temporal):
    if design == "mean" and temporal:
        with pytest.raises(UsageError, match="order"):
            make(design, temporal=True)
        return
    model = make(design, temporal=temporal)
    pixels = random_pixels(num_frames=1)
    with torch.inference_mode():
        pooled, tokens = model.coca._encode_image(pixels[:, 0])
        got = model.encode_clips(pixels)
    torch.testing.assert_close(got.pooled_BD, pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.tokens_BND, tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize("design", DESIGNS)
def test_designs_differ_on_clips_and_have_the_documented_number_of_tokens(design):
    pixels = random_pixels()
    with torch.inference_mode():
        got, plain = make(design).encode_clips(pixels), make().encode_clips(pixels)
    assert got.tokens_BND.shape == (2, 16 if design == "factorized" else 4, 32)
    torch.testing.assert_close(got.pooled_BD.norm(dim=-1), torch.ones(2))
    if design != "attentional":
        assert (got.pooled_BD - plain.pooled_BD).abs().max() > 1e-3


def test_mean_design_averages_the_tokens_of_its_frames():
    model, pixels = make("mean"), random_pixels()
    with torch.inference_mode():
        tokens = torch.stack([model.encode_clips(pixels[:, [t]]).tokens_BND for t in range(4)]).mean(dim=0)
        torch.testing.assert_close(model.encode_clips(pixels).tokens_BND, tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize("design", ["attentional", "joint", "factorized"])
def test_time_reversed_clips_differ_with_a_temporal_embedding(design):
    model, pixels = perturb_added_parts(make(design, temporal=True)), random_pixels()
    with torch.inference_mode():
        forwards, backwards = model.encode_clips(pixels), model.encode_clips(pixels.flip(1))
        assert (forwards.pooled_BD - backwards.pooled_BD).abs().max() > 1e-3
        assert (forwards.tokens_BND.mean(dim=1) - backwards.tokens_BND.mean(dim=1)).abs().max() > 1e-3


@pytest.mark.parametrize("design", ["attentional", "joint", "mean"])
def test_time_reversed_clips_are_equal_without_a_temporal_embedding(design):
    model, pixels = make(design), random_pixels()
    with torch.inference_mode():
        forwards, backwards = model.encode_clips(pixels), model.encode_clips(pixels.flip(1))
    torch.testing.assert_close(forwards.pooled_BD, backwards.pooled_BD, atol=1e-5, rtol=0)
    torch.testing.assert_close(forwards.tokens_BND, backwards.tokens_BND, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("design", "pool"),
    [*((design, True) for design in DESIGNS), ("attentional", "parallel"), ("factorized", "cascade")],
)
def test_every_design_captions_and_trains(design, pool):
    model = make(design, pool=pool, temporal=design != "mean")
    pixels = random_pixels(num_clips=3)
    with torch.inference_mode():
        clips = model.encode_clips(pixels)
        captions = generate(model.coca, clips.tokens_BND, special=SPECIAL, decoding=DecodingSettings(max_tokens=5))
    assert len(captions) == 3
    ids = torch.randint(3, NUM_TOKENS, (3, 10), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        clips, texts = model.encode_clips(pixels), model.encode_texts(ids)
        logits = model.caption_logits(clips.tokens_BND, texts.tokens_SMD[:, :-1])
        matches = clips.pooled_BD @ F.normalize(texts.pooled_SD, dim=-1).T
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) + F.cross_entropy(matches, torch.arange(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    added = [
        name
        for name, _ in model.named_parameters()
        if name.startswith(("clip_encoder.temporal", "coca.visual.attn_pool"))
    ]
    # text_global pooling aside, all parts that the design adds get gradients
    assert added
    without_gradient = [name for name in added if dict(model.named_parameters())[name].grad is None]
    assert without_gradient == []


@pytest.mark.parametrize("pooler", POOLERS)
def test_split_poolers_start_from_the_weights_of_one(pooler):
    one = make()
    torch.manual_seed(7)
    two = VideoCoCa(build_coca(split_pooler(coca_config(), pooler))).eval()
    two.load_state_dict(expand_state_dict(one.state_dict(), two))
    pixels = random_pixels()
    with torch.inference_mode():
        expected, got = one.encode_clips(pixels), two.encode_clips(pixels)
    torch.testing.assert_close(got.tokens_BND, expected.tokens_BND, atol=1e-5, rtol=0)
    if pooler == "parallel":
        torch.testing.assert_close(got.pooled_BD, expected.pooled_BD, atol=1e-5, rtol=0)
    # as many queries as before: the contrastive one is one more token of the decoder
    torch.manual_seed(7)
    wide = VideoCoCa(build_coca(coca_config(pooler))).eval()
    wide.load_state_dict(expand_state_dict(one.state_dict(), wide))
    with torch.inference_mode():
        assert wide.encode_clips(pixels).tokens_BND.shape == (2, 5, 32)


def test_added_parts_keep_their_initial_values():
    one, expanded = make(), make("factorized", temporal=True, seed=3)
    expanded.load_state_dict(expand_state_dict(one.state_dict(), expanded))
    pixels = random_pixels(num_frames=1)
    with torch.inference_mode():
        torch.testing.assert_close(
            expanded.encode_clips(pixels).tokens_BND, one.encode_clips(pixels).tokens_BND, atol=1e-5, rtol=0
        )


def test_pooled_texts_need_no_padding():
    """With the mask of published weights, which lets CLS attend to one position too many, and with the correct one."""
    model = make()
    torch.nn.init.normal_(model.coca.text.positional_embedding)
    ids = torch.zeros(4, 10, dtype=torch.long)
    for row, length in enumerate((2, 5, 6, 3)):
        ids[row, :length] = torch.arange(1, length + 1)
    full_length = ids.clone()
    full_length[2] = torch.arange(10) + 1
    for text in (ids, full_length, torch.zeros(1, 10, dtype=torch.long)):
        pooled = []
        for is_correct in (False, True):
            model.coca.text.correct_cls_mask = is_correct
            with torch.inference_mode():
                pooled.append(model.pool_texts(text))
                torch.testing.assert_close(pooled[-1], model.encode_texts(text).pooled_SD, atol=1e-5, rtol=0)
        assert (pooled[0] - pooled[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"design": "median"}, "attentional"),
        ({"design": "mean", "max_frames": 3}, "order"),
        ({"design": "joint", "num_joint_layers": 1}, "attentional"),
    ],
)
def test_contradicting_designs_are_refused(settings, match):
    with pytest.raises(UsageError, match=match):
        FrameEncoder(build_coca(coca_config()).visual, **settings)


def test_clips_of_no_frames_or_too_many_are_refused():
    with pytest.raises(UsageError, match="without frames"):
        make().encode_clips(random_pixels(num_frames=0))
    with pytest.raises(UsageError, match="has 4"):
        make(temporal=True).encode_clips(random_pixels(num_frames=5))


def test_open_clip_weights_open_in_every_design_and_keep_their_mask(monkeypatch, tmp_path):
    import open_clip
    from safetensors.torch import save_file

    config = coca_config()
    for part in ("text_cfg", "multimodal_cfg"):
        config[part]["vocab_size"] = 49408
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "coca_small", {**config, "custom_text": True})
    plain = load_captioner("open_clip:coca_small/random")
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in plain.model.coca.state_dict().items()}, path)
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    scores = {}
    for design in (*DESIGNS, *POOLERS):
        captioner = load_captioner(f"open_clip:coca_small/{path}@{design}")
        assert captioner.name.endswith("" if design == "attentional" else f"@{design}")
        assert captioner.model.coca.text.correct_cls_mask is False  # what the published weights were trained with
        assert captioner.caption([frames], max_tokens=3)[0].clip_sha256
        scores[design] = float(captioner.score([frames], ["a dog"])[0, 0])
    assert scores["parallel"] == pytest.approx(scores["attentional"], abs=1e-5)
    assert scores["mean"] != pytest.approx(scores["attentional"], abs=1e-4)
    assert make().coca.text.correct_cls_mask is True
    with pytest.raises(UsageError, match="attentional"):
        load_captioner(f"open_clip:coca_small/{path}@median")


def test_clip_embeddings_have_unit_length_in_bf16_too():
    clips = [np.random.default_rng(seed).integers(0, 256, (8, 40, 56, 3), np.uint8) for seed in range(6)]
    exact, coarse = load_captioner("tiny"), load_captioner("tiny", dtype=torch.bfloat16)
    for embeddings_BD in (coarse.embed_clips(clips), coarse.embed_clips(coarse.encode(clips))):
        assert embeddings_BD.dtype == np.float32
        assert np.abs(np.linalg.norm(embeddings_BD, axis=1) - 1).max() < 1e-6
    texts = ["A red circle moves left.", "A blue square."]
    assert np.abs(coarse.score(clips, texts) - exact.score(clips, texts)).max() < 0.02


def test_frames_are_uploaded_as_bytes_and_normalised_on_the_device(monkeypatch):
    from recaption.captioners.videococa import captioner as captioner_module

    uploaded = []
    upload = captioner_module.upload
    monkeypatch.setattr(captioner_module, "upload", lambda *given: uploaded.append(given[0]) or upload(*given))
    tiny = load_captioner("tiny")
    clips = [np.random.default_rng(seed).integers(0, 256, (9, 40, 56, 3), np.uint8) for seed in range(3)]
    pixels_BTCHW = torch.stack([tiny.preprocessor.to_tensor(c, num_frames=tiny.num_frames, repeat=True) for c in clips])
    with torch.inference_mode():
        expected = tiny.model.encode_clips(pixels_BTCHW).pooled_BD.numpy()
    assert np.array_equal(tiny.embed_clips(clips), expected)
    assert [(pixels.dtype, len(pixels)) for pixels in uploaded] == [(np.uint8, 3)]
