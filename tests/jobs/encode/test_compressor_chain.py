"""Encode, train and sample with each kind of compressor."""

import dataclasses
import shutil

import pytest

from jobs.cluster.cluster import Cluster
from jobs.encode.encode import encode
from jobs.sample.sample import sample_run
from jobs.train.train import train_model
from recaption.video_io.reader import read_frames
from train.compressors.settings import CompressorSettings
from train.engine.settings import TrainerSettings
from train.generator.settings import DitSettings

TWO_STEPS = TrainerSettings(num_steps=2, warmup_steps=1, device="cpu")


def with_compressor(recipe, spec, *, frame_stride=4, spatial_stride=8):
    return dataclasses.replace(
        recipe,
        encode=dataclasses.replace(
            recipe.encode, compressor=spec, frame_stride=frame_stride, spatial_stride=spatial_stride
        ),
        train_dit=dataclasses.replace(
            recipe.train_dit,
            dit=DitSettings(width=32, depth=1, num_heads=2, patch=(1, 2, 2), validation_packs=1),
            trainer=TWO_STEPS,
        ),
        sample=dataclasses.replace(recipe.sample, num_steps=2, num_frames=9, prompts=("a red circle",)),
    )


def encode_train_sample(run, recipe, in_process):
    """Frames of the sampled video."""
    summary = encode(run, recipe, in_process)
    assert summary["samples"] > 0
    train_model("dit", run.uri, "dit", recipe, Cluster(), progress=False)
    summary = sample_run(run, "dit", recipe, progress=False)
    return read_frames(summary["videos"][0], None).pixels_THWC


PRETRAINED = {
    "AutoencoderKLWan": (4, 8),
    "AutoencoderKL": (1, 8),
    "AutoencoderKLCogVideoX": (4, 8),
    "AutoencoderKLHunyuanVideo": (4, 8),
    "AutoencoderKLLTXVideo": (8, 32),
    "AutoencoderKLMochi": (6, 8),
    "AutoencoderDC": (1, 4),
}
"""diffusers class -> (frame stride, spatial stride)."""
ALSO_FAST = ("AutoencoderKLWan", "AutoencoderKL")


@pytest.mark.parametrize(
    ("kind", "strides"),
    [pytest.param(*one, marks=() if one[0] in ALSO_FAST else pytest.mark.slow) for one in PRETRAINED.items()],
)
def test_pretrained_autoencoders_go_through_the_commands(run_copy, command, tmp_path, kind, strides):
    diffusers = pytest.importorskip("diffusers")
    from tests.train.compressors.test_compressors import tiny_autoencoder

    tiny_autoencoder(diffusers, kind).save_pretrained(tmp_path / "pipeline" / "vae")
    spec, (frame_stride, spatial_stride) = f"diffusers:{tmp_path}/pipeline#vae", strides
    num_frames = 9 if 8 % frame_stride == 0 else 13
    stride = ("--encode.frame-stride", str(frame_stride), "--encode.spatial-stride", str(spatial_stride))
    at_run = ("--run", run_copy.uri)

    def done(*arguments):
        code, found, err = command(*arguments)
        assert code == 0, err
        return found

    if strides not in ((4, 8), (1, 8), (1, 4)):  # shards of sizes that it supports
        for name in ("shards", "latents"):
            shutil.rmtree(run_copy.path(name), ignore_errors=True)
        multiple = ("--shard.buckets.size-multiple-px", str(2 * spatial_stride))
        done("shard", *at_run, "--shard.buckets.num-frames", str(num_frames), *multiple)
    assert done("encode", *at_run, "--compressor", spec, *stride)["samples"] > 0
    size = ("--train-dit.dit.width", "32", "--train-dit.dit.depth", "1", "--train-dit.dit.num-heads", "2")
    steps = ("--train-dit.trainer.num-steps", "2", "--train-dit.trainer.warmup-steps", "1")
    trained = done("train", "dit", *at_run, "--encode.compressor", spec, *size, *steps)
    prompt = ("--prompt", "a red circle", "--expander", "none", "--num-steps", "2", "--num-frames", str(num_frames))
    sampled = done("sample", "--checkpoint", trained["checkpoint"], *prompt, "--out", str(tmp_path / "out"))
    assert read_frames(sampled["videos"][0], None).pixels_THWC.shape == (num_frames, 64, 64, 3)
    if kind == "AutoencoderKLWan":
        code, _, err = command("encode", *at_run, "--compressor", spec, "--encode.frame-stride", "2")
        assert code != 0
        assert "has strides (4, 8)" in err
        assert "set --encode.frame-stride" in err


@pytest.mark.parametrize(
    ("kind", "bottleneck", "frame_stride"), [("causal3d", "vq", 4), ("spatial", "kl", 1)], ids=["spacetime", "spatial"]
)
def test_a_compressor_trained_on_the_run_encodes_trains_and_samples(
    run_copy, small_recipe, in_process, kind, bottleneck, frame_stride
):
    settings = CompressorSettings(
        kind=kind, bottleneck=bottleneck, latent_channels=8, width=8, num_codebooks=2, codebook_size=32, batch_size=2
    )
    trained = dataclasses.replace(
        small_recipe,
        train_compressor=dataclasses.replace(small_recipe.train_compressor, compressor=settings, trainer=TWO_STEPS),
    )
    summary = train_model("compressor", run_copy.uri, "vae", trained, Cluster(), progress=False)
    assert summary["validation"]["psnr_db"] > 12
    assert summary["validation"]["ssim"] > 0.3
    recipe = with_compressor(trained, run_copy.path("train", "vae"), frame_stride=frame_stride)
    assert encode_train_sample(run_copy, recipe, in_process).shape == (9, 64, 64, 3)
