"""GIT and chat models: real classes and processors, a few kB of random weights."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from small_captioners import CHAT_SPECIALS, VLMS, small_tokenizer

from recaption.captioners.backends.instructions import QUESTIONS
from recaption.captioners.registry import check_spec, load_captioner, runs_elsewhere
from recaption.captions.text import clean
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


def test_beams_find_what_greedy_misses_and_logprobs_are_the_models_own(small_model):
    captioner = load_captioner(f"git:{small_model('git')}")
    greedy = captioner.caption(MIXED, max_tokens=5)
    beams = captioner.caption(MIXED, max_tokens=5, num_beams=4)
    assert sum(b.mean_logprob for b in beams) > sum(g.mean_logprob for g in greedy)
    # the same numbers from one pass over the whole text
    model, clips = captioner.model, MIXED[:1]
    tokenizer = captioner.processor.tokenizer
    states = captioner._encode(clips)
    with torch.inference_mode():
        made = model.generate(
            input_ids=torch.tensor([captioner._prompt]), pixel_values=states, max_new_tokens=5, do_sample=False
        )
        logits = model(input_ids=made, pixel_values=states).logits[0, -made.shape[1] :]
    new = made[0, len(captioner._prompt) :]
    logprobs = logits[len(captioner._prompt) - 1 : -1].log_softmax(-1).gather(1, new[:, None])
    assert greedy[0].text == clean(tokenizer.decode(new, skip_special_tokens=True))
    assert greedy[0].mean_logprob == pytest.approx(float(logprobs.mean()), abs=1e-4)


def test_git_encodes_all_frames_together_as_it_would_one_by_one(small_model):
    from transformers import GitForCausalLM

    captioner = load_captioner(f"git:{small_model('git')}")
    plain = GitForCausalLM.from_pretrained(small_model("git")).eval()
    pixels = torch.stack(
        [
            captioner.processor.image_processor(images=list(one), return_tensors="pt")["pixel_values"]
            for one in MIXED[::2]
        ]
    )
    ids = torch.tensor([captioner._prompt] * 2)
    calls = []
    captioner._encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        expected = plain(input_ids=ids, pixel_values=pixels).logits
        got = captioner.model(input_ids=ids, pixel_values=captioner._encode(MIXED[::2])).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    captioner.caption(MIXED, max_tokens=4, num_beams=3)
    assert len(calls) == 2  # once above, once for four clips and three beams


def test_git_goes_on_from_a_prompt_that_fits(small_model):
    spec = f"git:{small_model('git')}"
    plain, prompted = load_captioner(spec), load_captioner(spec, prompt="A red circle")
    assert prompted.max_tokens < plain.max_tokens
    assert "A red circle" not in prompted.caption([clip(0)], max_tokens=4)[0].text
    with pytest.raises(UsageError, match="leaves no room in its context of 64"):
        load_captioner(spec, prompt="circle " * 80)


def test_a_chat_model_is_asked_the_question_of_the_kind(small_model):
    captioner = load_captioner(f"vlm:{small_model('internvl')}", prompt="What is it?", num_frames=3)
    assert captioner.num_frames == 3
    assert captioner.kinds == tuple(QUESTIONS)
    asked = []
    template = captioner.processor.apply_chat_template
    captioner.processor.apply_chat_template = lambda messages, **more: (
        asked.append(messages[0]["content"][-1]["text"]) or template(messages, **more)
    )
    captioner.describe([clip(0)], max_tokens=2)
    captioner.describe([clip(0)], kind="colour", max_tokens=2)
    assert asked == ["What is it?", QUESTIONS["colour"]]
    with pytest.raises(UsageError, match="no captions of kind 'rhyme'"):
        captioner.describe([clip(0)], kind="rhyme")


def test_a_prompt_longer_than_the_context_is_one_sentence(small_model, tmp_path):
    folder = shutil.copytree(small_model("llava_onevision"), tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 128
    (folder / "config.json").write_text(json.dumps(config))
    captioner = load_captioner(f"vlm:{folder}", prompt="What is it? " * 30)
    with pytest.raises(
        UsageError, match=r"4 frames and the question are \d+ tokens.*has 128; use --caption.num-frames"
    ):
        captioner.caption([clip(0)], max_tokens=20)


@pytest.mark.parametrize("backend", ["git", "qwen2_5_vl"])
def test_clips_without_frames_and_other_things_are_refused(small_model, backend):
    captioner = load_captioner(f"{'git' if backend == 'git' else 'vlm'}:{small_model(backend)}")
    with pytest.raises(UsageError, match="without frames"):
        captioner.caption([np.zeros((0, 8, 8, 3), np.uint8)])
    with pytest.raises(UsageError, match="uint8"):
        captioner.caption([np.zeros((2, 8, 8, 3), np.float32)])
    assert captioner.caption([]) == []


def test_what_it_cannot_do_is_said(small_model):
    captioner = load_captioner(f"git:{small_model('git')}")
    assert not captioner.can_score
    described = captioner.describe([clip(0)], max_tokens=3)
    assert described.clip_BD is None
    assert described.text_BD is None
    assert described.captions[0].clip_score is None
    for ask in (lambda: captioner.score([clip(0)], ["a"]), lambda: captioner.embed_clips([clip(0)])):
        with pytest.raises(UsageError, match=r"scores nothing; name another one as --caption\.scorer"):
            ask()
    with pytest.raises(UsageError, match="no text tower"):
        _ = captioner.text_tower
    with pytest.raises(UsageError, match=r"git:.* scores nothing"):
        load_captioner("tiny", scorer=f"git:{small_model('git')}")


def test_checkpoints_of_other_architectures_are_named(small_model, tmp_path):
    with pytest.raises(UsageError, match="a 'smolvlm' model; git: takes GIT"):
        load_captioner(f"git:{small_model('smolvlm')}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UsageError, match="a 'gpt2' model; vlm: takes models for image-text-to-text"):
        load_captioner(f"vlm:{tmp_path}")
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        load_captioner(str(tmp_path / ".."))


@pytest.mark.parametrize("name", ["git", "qwen2_5_vl"])
def test_what_does_not_fit_is_one_sentence(small_model, tmp_path, name):
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


def test_pictures_must_be_the_same_token_to_tokenizer_and_model(small_model, tmp_path):
    folder = shutil.copytree(small_model("qwen2_5_vl"), tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["image_token_id"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointMismatchError, match="pictures are token"):
        load_captioner(f"vlm:{folder}")


def test_a_model_without_chat_template_is_refused(small_model, tmp_path):
    folder = shutil.copytree(small_model("llava_onevision"), tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="no chat template"):
        load_captioner(f"vlm:{folder}")


@pytest.mark.parametrize("spec", ["git:nobody/nothing", "vlm:nobody/nothing", "frozenbilm:nobody/nothing"])
def test_weights_out_of_reach_are_one_sentence(monkeypatch, tmp_path, spec):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_spec(spec)
    with pytest.raises(WeightsUnreachableError, match=rf"captioner {spec}: .*HF_HUB_OFFLINE.*give a folder"):
        load_captioner(spec)


def test_only_an_endpoint_runs_elsewhere(small_model):
    assert runs_elsewhere("http://host/v1#m")
    assert not runs_elsewhere("tiny")
    assert not runs_elsewhere(f"vlm:{small_model(VLMS[0])}")


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "smolvlm"])
def test_a_model_that_takes_no_videos_is_shown_pictures(small_model, name):
    captioner = load_captioner(f"vlm:{small_model(name)}")
    captioner.takes_videos = False
    shown = captioner._inputs([clip(0), clip(2)], "What is it?", 4)
    assert "pixel_values_videos" not in shown
    together = captioner.caption(MIXED, max_tokens=4)
    assert [one.text for one in together] == [captioner.caption([one], max_tokens=4)[0].text for one in MIXED]


def test_a_git_of_pictures_looks_at_one_frame(small_model, tmp_path):
    from transformers import GitConfig, GitForCausalLM

    folder = shutil.copytree(small_model("git"), tmp_path / "picture")
    config = GitConfig.from_pretrained(folder)
    config.num_image_with_embedding = None
    torch.manual_seed(0)
    GitForCausalLM(config).save_pretrained(folder)
    captioner = load_captioner(f"git:{folder}")
    assert captioner.num_frames == 1
    plain = GitForCausalLM.from_pretrained(folder).eval()
    pixels = captioner.processor.image_processor(images=[clip(0)[2]], return_tensors="pt")["pixel_values"]
    ids = torch.tensor([captioner._prompt])
    with torch.inference_mode():
        expected = plain(input_ids=ids, pixel_values=pixels).logits
        got = captioner.model(input_ids=ids, pixel_values=captioner._encode([clip(0)])).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert len(captioner.caption(MIXED, max_tokens=3, num_beams=2)) == len(MIXED)


def test_the_best_of_several_samples_is_kept(small_model):
    captioner = load_captioner(f"git:{small_model('git')}")
    settings = {"max_tokens": 5, "temperature": 1.0, "seed": 1}
    one = captioner.caption(MIXED, **settings)
    best = captioner.caption(MIXED, num_samples=4, **settings)
    assert all(b.mean_logprob >= o.mean_logprob or b.reason is None for b, o in zip(best, one, strict=True))
    assert [b.text for b in best] != [o.text for o in one]
    assert [b.clip_sha256 for b in best] == [o.clip_sha256 for o in one]
