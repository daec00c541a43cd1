"""FrozenBiLM and mPLUG-2: they overfit a few scenes, and checkpoints that do not fit are refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from small_captioners import (
    BERT_SPECIALS,
    small_bert_tokenizer,
    small_frozenbilm_config,
    small_mplug2_config,
    small_tokenizer,
)

from recaption.captioners.backends.checkpoint_folder import (
    collate,
    openai_clip_preprocessor,
    stack_clips,
    write_checkpoint_folder,
)
from recaption.captioners.backends.frozenbilm_model import FrozenBiLM
from recaption.captioners.backends.mplug2_model import MPlug2, convert_checkpoint, convert_state_dict
from recaption.captioners.registry import load_captioner
from recaption.errors import CheckpointMismatchError, UsageError
from recaption.scenes.renderer import SIMPLE, render

TEXTS = [
    "A red circle moves left over the sea.",
    "A blue star stays still on the grass.",
    "A green square jumps up and down.",
    "A blue circle moves in front of a hill.",
]


@pytest.fixture(scope="module")
def clips():
    return [render(100 + i, num_frames=9, height_px=32, width_px=32, fps=8, **SIMPLE).frames_THWC for i in range(4)]


@pytest.fixture(scope="module")
def tokenizer():
    return small_bert_tokenizer()


def train(model, parameters, loss, *, lr, steps):
    optimiser = torch.optim.AdamW(parameters, lr=lr)
    losses = []
    for _ in range(steps):
        value = loss()
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(float(value.detach()))
    return losses


def test_frozenbilm_overfits_a_few_scenes_and_its_language_model_stays_frozen(clips, tokenizer, tmp_path):
    torch.manual_seed(0)
    config = small_frozenbilm_config(tokenizer.vocab_size)
    config["lengths"] = sorted({len(tokenizer.encode(text)) for text in TEXTS})
    assert len(config["lengths"]) > 1  # the length is predicted
    model = FrozenBiLM(config).eval()
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = stack_clips(clips, openai_clip_preprocessor(32), 4)
    batch = collate(pixels.repeat(3, 1, 1, 1, 1), TEXTS * 3, tokenizer)
    generator = torch.Generator().manual_seed(0)
    parameters = list(model.trainable_parameters())
    assert sum(p.numel() for p in parameters) < sum(p.numel() for p in model.parameters()) / 2
    losses = train(model, parameters, lambda: model.loss(batch, tokenizer, generator=generator), lr=5e-3, steps=250)
    assert np.mean(losses[-20:]) < losses[0] / 20
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, frozen[name])}
    assert changed
    assert all(".1." in name or "LayerNorm" in name or name.startswith("prefix.") for name in changed)

    write_checkpoint_folder(tmp_path / "mine", config=config, tokenizer=tokenizer, model=model)
    captioner = load_captioner(f"frozenbilm:{tmp_path}/mine")
    captions = captioner.caption(clips)
    expected = [set(text.lower().rstrip(".").split()) for text in TEXTS]
    predicted = [set(caption.text.lower().rstrip(".").split()) for caption in captions]
    num_hits = sum(len(words & other) for words, other in zip(expected, predicted, strict=True))
    assert num_hits / sum(map(len, expected)) > 0.8, [caption.text for caption in captions]
    assert len({one.text for one in captioner.caption(clips * 2)}) == len({one.text for one in captions})


def test_frozenbilm_samples_do_not_depend_on_the_batch(small_model, clips):
    captioner = load_captioner(f"frozenbilm:{small_model('frozenbilm')}")
    together = [one.text for one in captioner.caption(clips, temperature=1.0, seed=3)]
    assert together == [captioner.caption([clip], temperature=1.0, seed=3)[0].text for clip in clips]
    assert together != [one.text for one in captioner.caption(clips, temperature=1.0, seed=4)]
    with pytest.raises(UsageError, match="has no beam search"):
        captioner.caption(clips, num_beams=2)


def test_mplug2_overfits_a_few_scenes(clips, tokenizer, tmp_path):
    torch.manual_seed(0)
    config = small_mplug2_config(tokenizer.vocab_size)
    model = MPlug2(config)
    batch = collate(stack_clips(clips, openai_clip_preprocessor(32), 4), TEXTS, tokenizer)
    prompt_ids = tokenizer.encode("a video of")
    losses = train(
        model, list(model.parameters()), lambda: model.loss(batch, tokenizer, prompt_ids=prompt_ids), lr=3e-3, steps=90
    )
    assert losses[-1] < losses[0] / 30
    write_checkpoint_folder(tmp_path / "mine", config=config, tokenizer=tokenizer, model=model)
    captioner = load_captioner(f"mplug2:{tmp_path}/mine")
    for beams in (1, 3):
        captions = captioner.caption(clips, num_beams=beams)
        assert [caption.text for caption in captions] == TEXTS  # without the prompt
        assert all(caption.reason is None and caption.mean_logprob > -0.2 for caption in captions)


@torch.inference_mode()
def test_mplug2_depends_on_frame_order_only_through_its_temporal_convolutions(tokenizer):
    torch.manual_seed(0)
    model = MPlug2(small_mplug2_config(tokenizer.vocab_size)).eval()
    pixels = torch.randn(1, 4, 3, 32, 32)
    forwards, backwards = model.encode_video(pixels)[:, 0], model.encode_video(pixels.flip(1))[:, 0]
    torch.testing.assert_close(forwards, backwards, atol=1e-5, rtol=0)
    for block in model.visual.transformer["resblocks"]:
        torch.nn.init.normal_(block.lmhra1.up_proj.weight)
    assert (model.encode_video(pixels)[:, 0] - model.encode_video(pixels.flip(1))[:, 0]).abs().max() > 1e-3


def test_published_checkpoint_converts_and_unused_tensors_are_dropped(tokenizer, tmp_path):
    torch.manual_seed(0)
    config = small_mplug2_config(tokenizer.vocab_size)
    model = MPlug2(config)
    published = {"fusion_encoder.encoder.layer.0.x": torch.zeros(1), "visual_encoder.visual.proj": torch.zeros(1)}
    published["text_encoder.encoder.layer.21.attention.self.query.weight"] = torch.zeros(1)  # text-only layer
    published["text_encoder.encoder.layer.22.intermediate_vision.dense.weight"] = torch.zeros(1)
    published["text_encoder.embeddings.word_embeddings.weight"] = torch.zeros(1)
    published["text_decoder.bert.encoder.layer.1.latents"] = torch.zeros(1)
    for name, value in model.state_dict().items():
        if name.startswith("visual."):
            published[f"visual_encoder.{name}"] = value
        elif name == "universal.latents":
            published["text_encoder.encoder.layer.22.latents"] = value
        elif name.startswith("universal.layer."):
            number, rest = name.removeprefix("universal.layer.").split(".", 1)
            published[f"text_encoder.encoder.layer.{22 + int(number)}.{rest}"] = value
        else:
            published[name] = value
    restored = MPlug2(config)
    restored.load_state_dict(convert_state_dict(published, config))
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), restored.state_dict().values(), strict=True)
    )
    torch.save({"model": published, "epoch": 3}, tmp_path / "published.pth")
    captioner = load_captioner(
        f"mplug2:{convert_checkpoint(tmp_path / 'published.pth', tokenizer, tmp_path / 'mine', config)}"
    )
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in captioner.model.state_dict().items())
    del published["visn_emb_norm.weight"]
    with pytest.raises(CheckpointMismatchError, match=r"visn_emb_norm\.weight"):
        convert_state_dict(published, config)


@pytest.mark.parametrize(("kind", "other"), [("frozenbilm", "mplug2"), ("mplug2", "frozenbilm")])
def test_checkpoint_of_another_format_is_refused_by_name(small_model, kind, other):
    with pytest.raises(CheckpointMismatchError, match=f"of another kind: {other}-1, where '{kind}-1' is needed"):
        load_captioner(f"{kind}:{small_model(other)}")


@pytest.mark.parametrize("kind", ["frozenbilm", "mplug2"])
def test_mismatched_files_give_one_clear_error(small_model, tmp_path, kind):
    folder = shutil.copytree(small_model(kind), tmp_path / kind)
    small_tokenizer(BERT_SPECIALS, tuple(f"<{i}>" for i in range(120))).backend_tokenizer.save(
        str(folder / "tokenizer.json")
    )
    with pytest.raises(CheckpointMismatchError, match="do not belong together"):
        load_captioner(f"{kind}:{folder}")
    small_tokenizer({"pad_token": "<pad>"}).backend_tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointMismatchError, match=r"lacks \[CLS\]"):
        load_captioner(f"{kind}:{folder}")
    shutil.copy(small_model(kind) / "tokenizer.json", folder)
    config = json.loads((folder / "config.json").read_text())
    part = "language" if kind == "frozenbilm" else "text"
    config[part]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointMismatchError, match="does not fit its config"):
        load_captioner(f"{kind}:{folder}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model\.safetensors is missing"):
        load_captioner(f"{kind}:{folder}")


def test_prompt_longer_than_the_context_is_refused(small_model, clips):
    spec = f"mplug2:{small_model('mplug2')}"
    with pytest.raises(UsageError, match="leaves no room in its context of 64"):
        load_captioner(spec, prompt="a video of " * 40)
    assert load_captioner(spec, prompt="a film of").max_tokens < 64
    with pytest.raises(UsageError, match="takes no prompt"):
        load_captioner(f"frozenbilm:{small_model('frozenbilm')}", prompt="a film of")
