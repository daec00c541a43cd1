"""GIT and vision-language models: real model classes and processors, a few kB of random weights."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from small_captioners import CHAT_SPECIALS, VLMS, small_tokenizer

from recaption.captioners.backends.instructions import INSTRUCTIONS
from recaption.captioners.registry import check_spec, is_remote, load_captioner
from recaption.captions.text import normalize_text
from recaption.errors import CheckpointMismatchError, UsageError, WeightsUnreachableError


def clip(seed: int, num_frames: int = 4, height_px: int = 40, width_px: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height_px, width_px, 3), dtype=np.uint8)


MIXED = [clip(0), clip(1, 3, 64, 64), clip(2), clip(3, 9)]


@pytest.mark.parametrize("name", ["git", "qwen2_5_vl", "smolvlm"])
def test_captions_do_not_depend_on_the_batch(small_model, name):
    captioner = load_captioner(f"{'git' if name == 'git' else 'vlm'}:{small_model(name)}")
    for settings in ({}, {"temperature": 1.0, "seed": 3}, {"num_beams": 3}):
        together = captioner.caption(MIXED, max_tokens=6, **settings)
        alone = [captioner.caption([one], max_tokens=6, **settings)[0] for one in MIXED]
        assert [one.text for one in together] == [one.text for one in alone]
        np.testing.assert_allclose(
            [one.mean_logprob for one in together], [one.mean_logprob for one in alone], atol=1e-3
        )
    drawn = [captioner.caption(MIXED, max_tokens=6, temperature=1.0, seed=seed) for seed in (3, 4)]
    assert [one.text for one in drawn[0]] != [one.text for one in drawn[1]]


def test_beam_search_beats_greedy_and_logprobs_are_those_of_the_model(small_model):
    captioner = load_captioner(f"git:{small_model('git')}")
    greedy = captioner.caption(MIXED, max_tokens=5)
    beams = captioner.caption(MIXED, max_tokens=5, num_beams=4)
    assert sum(b.mean_logprob for b in beams) > sum(g.mean_logprob for g in greedy)
    # the same log-probabilities from one forward pass over the whole text
    model, clips = captioner.model, MIXED[:1]
    tokenizer = captioner.processor.tokenizer
    states = captioner._encode_frames(clips)
    with torch.inference_mode():
        generated = model.generate(
            input_ids=torch.tensor([captioner._prompt_ids]), pixel_values=states, max_new_tokens=5, do_sample=False
        )
        logits = model(input_ids=generated, pixel_values=states).logits[0, -generated.shape[1] :]
    new = generated[0, len(captioner._prompt_ids) :]
    logprobs = logits[len(captioner._prompt_ids) - 1 : -1].log_softmax(-1).gather(1, new[:, None])
    assert greedy[0].text == normalize_text(tokenizer.decode(new, skip_special_tokens=True))
    assert greedy[0].mean_logprob == pytest.approx(float(logprobs.mean()), abs=1e-4)


def test_git_encodes_frames_together_as_one_by_one(small_model):
    from transformers import GitForCausalLM

    captioner = load_captioner(f"git:{small_model('git')}")
    plain = GitForCausalLM.from_pretrained(small_model("git")).eval()
    pixels = torch.stack(
        [
            captioner.processor.image_processor(images=list(one), return_tensors="pt")["pixel_values"]
            for one in MIXED[::2]
        ]
    )
    ids = torch.tensor([captioner._prompt_ids] * 2)
    calls = []
    captioner._encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        expected = plain(input_ids=ids, pixel_values=pixels).logits
        got = captioner.model(input_ids=ids, pixel_values=captioner._encode_frames(MIXED[::2])).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    captioner.caption(MIXED, max_tokens=4, num_beams=3)
    assert len(calls) == 2  # once above, once for four clips and three beams


def test_git_continues_a_prompt_that_fits_its_context(small_model):
    spec = f"git:{small_model('git')}"
    plain, prompted = load_captioner(spec), load_captioner(spec, prompt="A red circle")
    assert prompted.max_tokens < plain.max_tokens
    assert "A red circle" not in prompted.caption([clip(0)], max_tokens=4)[0].text
    with pytest.raises(UsageError, match="leaves no room in its context of 64"):
        load_captioner(spec, prompt="circle " * 80)


def test_vlm_gets_the_instruction_of_the_caption_kind(small_model):
    captioner = load_captioner(f"vlm:{small_model('internvl')}", prompt="What is it?", num_frames=3)
    assert captioner.num_frames == 3
    assert captioner.kinds == tuple(INSTRUCTIONS)
    instructions = []
    template = captioner.processor.apply_chat_template
    captioner.processor.apply_chat_template = lambda messages, **more: (
        instructions.append(messages[0]["content"][-1]["text"]) or template(messages, **more)
    )
    captioner.caption_with_embeddings([clip(0)], max_tokens=2)
    captioner.caption_with_embeddings([clip(0)], kind="colour", max_tokens=2)
    assert instructions == ["What is it?", INSTRUCTIONS["colour"]]
    with pytest.raises(UsageError, match="no captions of kind 'rhyme'"):
        captioner.caption_with_embeddings([clip(0)], kind="rhyme")


def test_prompt_longer_than_the_context_is_refused(small_model, tmp_path):
    folder = shutil.copytree(small_model("llava_onevision"), tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 128
    (folder / "config.json").write_text(json.dumps(config))
    captioner = load_captioner(f"vlm:{folder}", prompt="What is it? " * 30)
    with pytest.raises(
        UsageError, match=r"4 frames and the instruction are \d+ tokens.*has 128; use --caption.num-frames"
    ):
        captioner.caption([clip(0)], max_tokens=20)


@pytest.mark.parametrize("backend", ["git", "qwen2_5_vl"])
def test_empty_clips_and_wrong_dtypes_are_refused(small_model, backend):
    captioner = load_captioner(f"{'git' if backend == 'git' else 'vlm'}:{small_model(backend)}")
    with pytest.raises(UsageError, match="without frames"):
        captioner.caption([np.zeros((0, 8, 8, 3), np.uint8)])
    with pytest.raises(UsageError, match="uint8"):
        captioner.caption([np.zeros((2, 8, 8, 3), np.float32)])
    assert captioner.caption([]) == []


def test_captioner_without_contrastive_head_refuses_to_score(small_model):
    captioner = load_captioner(f"git:{small_model('git')}")
    assert not captioner.has_contrastive_head
    described = captioner.caption_with_embeddings([clip(0)], max_tokens=3)
    assert described.clip_embeddings_BD is None
    assert described.text_embeddings_BD is None
    assert described.captions[0].clip_score is None
    for call in (lambda: captioner.score([clip(0)], ["a"]), lambda: captioner.embed_clips([clip(0)])):
        with pytest.raises(UsageError, match=r"has no contrastive head.* set another captioner as --caption\.scorer"):
            call()
    with pytest.raises(UsageError, match="no text tower"):
        _ = captioner.text_tower
    with pytest.raises(UsageError, match=r"git:.* cannot score"):
        load_captioner("tiny", scorer=f"git:{small_model('git')}")


def test_checkpoint_of_another_architecture_is_refused_by_name(small_model, tmp_path):
    with pytest.raises(UsageError, match="a 'smolvlm' model; git: supports GIT"):
        load_captioner(f"git:{small_model('smolvlm')}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UsageError, match="a 'gpt2' model; vlm: supports models for image-text-to-text"):
        load_captioner(f"vlm:{tmp_path}")
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        load_captioner(str(tmp_path / ".."))


@pytest.mark.parametrize("name", ["git", "qwen2_5_vl"])
def test_mismatched_files_give_one_clear_error(small_model, tmp_path, name):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(small_model(name), tmp_path / name)
    spec = f"{'git' if name == 'git' else 'vlm'}:{folder}"
    weights = load_file(folder / "model.safetensors")
    gone = sorted(weights)[3]
    save_file({k: v for k, v in weights.items() if k != gone}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointMismatchError, match="lack 1 tensors of the model"):
        load_captioner(spec)
    specials = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"} if name == "git" else CHAT_SPECIALS
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    small_tokenizer(specials, (*marks, *(f"<{i}>" for i in range(90)))).save_pretrained(folder)
    shutil.copy(small_model(name) / "model.safetensors", folder)
    with pytest.raises(CheckpointMismatchError, match="do not belong together"):
        load_captioner(spec)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsUnreachableError, match=r"give a folder with config\.json"):
        load_captioner(spec)


def test_image_token_of_tokenizer_and_model_must_agree(small_model, tmp_path):
    folder = shutil.copytree(small_model("qwen2_5_vl"), tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["image_token_id"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointMismatchError, match="the image token is"):
        load_captioner(f"vlm:{folder}")


def test_model_without_chat_template_is_refused(small_model, tmp_path):
    folder = shutil.copytree(small_model("llava_onevision"), tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="no chat template"):
        load_captioner(f"vlm:{folder}")


@pytest.mark.parametrize("spec", ["git:nobody/nothing", "vlm:nobody/nothing", "frozenbilm:nobody/nothing"])
def test_unreachable_weights_give_one_clear_error(monkeypatch, tmp_path, spec):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_spec(spec)
    with pytest.raises(WeightsUnreachableError, match=rf"captioner {spec}: .*HF_HUB_OFFLINE.*give a folder"):
        load_captioner(spec)


def test_only_endpoints_are_remote(small_model):
    assert is_remote("http://host/v1#m")
    assert not is_remote("tiny")
    assert not is_remote(f"vlm:{small_model(VLMS[0])}")


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "smolvlm"])
def test_vlm_without_video_input_gets_images(small_model, name):
    captioner = load_captioner(f"vlm:{small_model(name)}")
    captioner.takes_videos = False
    inputs = captioner._inputs([clip(0), clip(2)], "What is it?", 4)
    assert "pixel_values_videos" not in inputs
    together = captioner.caption(MIXED, max_tokens=4)
    assert [one.text for one in together] == [captioner.caption([one], max_tokens=4)[0].text for one in MIXED]


def test_image_git_uses_one_frame(small_model, tmp_path):
    from transformers import GitConfig, GitForCausalLM

    folder = shutil.copytree(small_model("git"), tmp_path / "image")
    config = GitConfig.from_pretrained(folder)
    config.num_image_with_embedding = None
    torch.manual_seed(0)
    GitForCausalLM(config).save_pretrained(folder)
    captioner = load_captioner(f"git:{folder}")
    assert captioner.num_frames == 1
    plain = GitForCausalLM.from_pretrained(folder).eval()
    pixels = captioner.processor.image_processor(images=[clip(0)[2]], return_tensors="pt")["pixel_values"]
    ids = torch.tensor([captioner._prompt_ids])
    with torch.inference_mode():
        expected = plain(input_ids=ids, pixel_values=pixels).logits
        got = captioner.model(input_ids=ids, pixel_values=captioner._encode_frames([clip(0)])).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert len(captioner.caption(MIXED, max_tokens=3, num_beams=2)) == len(MIXED)


def test_best_of_several_samples_is_kept(small_model):
    captioner = load_captioner(f"git:{small_model('git')}")
    settings = {"max_tokens": 5, "temperature": 1.0, "seed": 1}
    one = captioner.caption(MIXED, **settings)
    best = captioner.caption(MIXED, num_samples=4, **settings)
    assert all(b.mean_logprob >= o.mean_logprob or b.reason is None for b, o in zip(best, one, strict=True))
    assert [b.text for b in best] != [o.text for o in one]
    assert [b.clip_sha256 for b in best] == [o.clip_sha256 for o in one]
