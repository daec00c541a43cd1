"""`recaption train dit` on the command line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs.recipe.run_inputs import open_run
from recaption.weights import weights_hash
from tests.stand_ins.packed_inputs import HALVING
from train import compressors
from train.backbones.pretrained.unet import build_unet

SHORT = [
    "--train-dit.dit.width", "32", "--train-dit.dit.depth", "1", "--train-dit.dit.num-heads", "2", "--steps", "2",
    "--train-dit.dit.validation-packs", "1", "--train-dit.trainer.device", "cpu",
]  # fmt: skip


def test_images_first_then_video_are_two_commands(run_copy, command):
    train = ("train", "dit", "--run", run_copy.uri, *SHORT)
    code, images, err = command(*train, "--name", "images", "--plan.max-latent-frames", "1")
    assert (code, images["steps"]) == (0, 2), err
    start = ("--init-from", run_copy.path("train", "images"))
    code, video, err = command(*train, "--name", "video", *start)
    assert (code, video["steps"]) == (0, 2), err
    config = json.loads((Path(video["checkpoint"]) / "config.json").read_text())
    assert config["init_from"]["step"] == 2
    assert config["plan"]["max_latent_frames"] == []
    code, _, err = command(*train, "--name", "wider", *start, "--train-dit.dit.width", "64")
    assert code == 2
    assert "backbone width 32 there, 64 here" in err


def test_temporal_layers_over_an_image_model_train_resume_and_sample(run_copy, command):
    """Video LDM: images, then temporal layers over the frozen image model, then over another one of its architecture."""
    train = ("train", "dit", "--run", run_copy.uri, *SHORT)
    for name, seed in (("images", "0"), ("other", "1")):
        code, _, err = command(
            *train, "--name", name, "--plan.max-latent-frames", "1", "--train-dit.trainer.seed", seed
        )
        assert code == 0, err
    images = Path(run_copy.path("train", "images"))
    before = {path: path.read_bytes() for path in images.rglob("*.safetensors")}
    video = (*train, "--name", "video", "--backbone", "temporal", "--train-dit.dit.conditions", "none=0.5",
             "first=0.2", "keyframes=0.3")  # fmt: skip
    code, _, err = command(*video)
    assert code == 2
    assert "name its checkpoint with --init-from" in err
    video = (*video, "--init-from", str(images))
    code, first, err = command(*video)
    assert (code, first["steps"]) == (0, 2), err
    code, second, err = command(*video, "--steps", "4")
    assert (code, second["steps"], second["resumed_from"]) == (0, 4, 2), err
    checkpoint = Path(second["checkpoint"])
    assert {path: path.read_bytes() for path in images.rglob("*.safetensors")} == before
    saved = load_file(checkpoint / "model.safetensors")
    assert saved
    assert all(name.startswith("temporal") for name in saved)
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["base"]["prefix"] == "base."
    assert config["base"]["weights_hash"] == weights_hash(load_file(next(images.rglob("ema.safetensors"))))

    sample = ("sample", "--checkpoint", str(checkpoint), "--prompt", "a red circle", "--num-steps", "2", "--num-frames", "5",
              "--expander", "none")  # fmt: skip
    code, own, err = command(*sample)
    assert code == 0, err
    code, over, err = command(*sample, "--base", run_copy.path("train", "other"))
    assert code == 0, err
    assert "-over-other" in over["videos"][0]
    assert Path(own["videos"][0]).read_bytes() != Path(over["videos"][0]).read_bytes()
    code, _, err = command(*sample, "--guidance-context", "2")
    assert code == 2
    assert "no effect on videos without conditioning frames" in err
    code, _, err = command("sample", "--checkpoint", str(images), "--prompt", "a", "--base", str(checkpoint))
    assert code == 2
    assert "was not trained over a frozen base: leave --base out" in err


def test_settings_of_temporal_layers_need_the_backbone(run_copy, command):
    code, _, err = command("train", "dit", "--run", run_copy.uri, *SHORT, "--train-dit.dit.temporal.layers", "conv")
    assert code == 2
    assert "settings of temporal have no effect with backbone 'dit'" in err


def test_temporal_layers_over_a_unet_train_resume_and_sample(run_copy, command, tmp_path):
    """A U-Net of Stable Diffusion's class with random weights; a published one takes the same path."""
    pytest.importorskip("diffusers")
    compressor = compressors.load(open_run(run_copy.uri)[1].encode.compressor)
    sizes = {"in_channels": compressor.num_channels, "out_channels": compressor.num_channels}
    for name, seed in (("sd", 0), ("other", 1)):
        torch.manual_seed(seed)
        build_unet(HALVING | sizes | {"cross_attention_dim": 160}).save_pretrained(tmp_path / name / "unet")
    train = ("train", "dit", "--run", run_copy.uri, *SHORT, "--name", "unet", "--backbone", "temporal-unet",
             "--train-dit.dit.patch", "1", "1", "1", "--train-dit.dit.validation-packs", "0")  # fmt: skip
    code, _, err = command(*train)
    assert code == 2
    assert "name it with --init-from diffusers:ID#unet" in err
    train = (*train, "--init-from", f"diffusers:{tmp_path}/sd#unet")
    code, _, err = command(*train)
    assert code == 0, err
    code, second, err = command(*train, "--steps", "3")
    assert (code, second["resumed_from"]) == (0, 2), err
    assert all(name.startswith("temporal") for name in load_file(Path(second["checkpoint"]) / "model.safetensors"))
    sample = ("sample", "--checkpoint", second["checkpoint"], "--prompt", "a red circle", "--num-steps", "2",
              "--num-frames", "5", "--expander", "none")  # fmt: skip
    code, own, err = command(*sample)
    assert code == 0, err
    code, over, err = command(*sample, "--base", f"diffusers:{tmp_path}/other#unet")
    assert code == 0, err
    assert Path(own["videos"][0]).read_bytes() != Path(over["videos"][0]).read_bytes()


def test_temporal_layers_in_a_decoder_train_resume_and_decode(run_copy, command):
    train = ("train", "compressor", "--run", run_copy.uri, "--train-compressor.trainer.device", "cpu")
    small = ("--train-compressor.compressor.num-frames", "5", "--train-compressor.compressor.batch-size", "2",
             "--train-compressor.compressor.height-px", "32", "--train-compressor.compressor.width-px", "32",
             "--train-compressor.compressor.num-validation-scenes", "1")  # fmt: skip
    code, image, err = command(*train, *small, "--name", "vae", "--steps", "1",
                               "--train-compressor.compressor.kind", "spatial")  # fmt: skip
    assert code == 0, err
    video = (*train, *small, "--name", "video-vae", "--temporal", "--train-compressor.compressor.loss.discriminator-weight",
             "0.5", "--train-compressor.compressor.loss.discriminator-start", "0")  # fmt: skip
    code, _, err = command(*video, "--steps", "1")
    assert code == 2
    assert "--temporal and --init-from go together" in err
    video = (*video, "--init-from", run_copy.path("train", "vae"))
    for steps in ("1", "2"):
        code, result, err = command(*video, "--steps", steps)
        assert code == 0, err
    assert result["resumed_from"] == 1
    names = load_file(Path(result["checkpoint"]) / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"base", "temporal", "discriminator"}
    decoder, base = compressors.load(result["checkpoint"]), compressors.load(image["checkpoint"])
    assert (decoder.name, decoder.config) == (base.name, base.config)

    code, _, err = command(
        "train", "dit", "--run", run_copy.uri, *SHORT, "--name", "first", "--train-dit.trainer.checkpoint-every", "9"
    )
    assert code == 0, err
    code, _, err = command("sample", "--checkpoint", run_copy.path("train", "first"), "--prompt", "a", "--expander", "none",
                           "--decoder", result["checkpoint"])  # fmt: skip
    assert code == 2
    assert "was trained on latents of" in err
