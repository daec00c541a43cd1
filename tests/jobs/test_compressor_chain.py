"""Shards to a sampled video through each kind of compressor, by the functions that the commands call."""

import dataclasses

import pytest

from jobs.cluster import Cluster
from jobs.encode import encode
from jobs.sample import sample_run
from jobs.train import train_model
from recaption.errors import UsageError
from recaption.video_io import read_frames
from train.compressor_task import CompressorSettings
from train.dit_task import DitSettings
from train.trainer import TrainerSettings

TWO_STEPS = TrainerSettings(num_steps=2, warmup_steps=1, device="cpu")


def with_compressor(recipe, spec, *, frame_stride=4, spatial_stride=8):
    return dataclasses.replace(
        recipe,
        encode=dataclasses.replace(
            recipe.encode, compressor=spec, frame_stride=frame_stride, spatial_stride=spatial_stride
        ),
        train_dit=dataclasses.replace(
            recipe.train_dit,
            dit=DitSettings(width=32, depth=1, num_heads=2, patch=(1, 2, 2), validation_rows=1),
            trainer=TWO_STEPS,
        ),
        sample=dataclasses.replace(recipe.sample, num_steps=2, num_frames=9, prompts=("a red circle",)),
    )


def encode_train_sample(run, recipe, in_process):
    """Frames of the sampled video."""
    summary = encode(run, recipe, in_process)
    assert summary["samples"] > 0
    train_model("dit", run.uri, "dit", recipe, Cluster(), progress=False)
    made = sample_run(run, "dit", recipe, progress=False)
    return read_frames(made["videos"][0], None).pixels_THWC


@pytest.mark.parametrize(
    ("kind", "frame_stride"), [("AutoencoderKLWan", 4), ("AutoencoderKL", 1)], ids=["video", "images"]
)
def test_pretrained_autoencoder_goes_through_the_chain(
    run_copy, small_recipe, in_process, tmp_path, kind, frame_stride
):
    diffusers = pytest.importorskip("diffusers")
    from tests.train.test_compressors import tiny_autoencoder

    tiny_autoencoder(diffusers, kind).save_pretrained(tmp_path / "pipeline" / "vae")
    spec = f"diffusers:{tmp_path}/pipeline#vae"
    recipe = with_compressor(small_recipe, spec, frame_stride=frame_stride)
    assert encode_train_sample(run_copy, recipe, in_process).shape == (9, 64, 64, 3)
    wrong = with_compressor(small_recipe, spec, frame_stride=2)
    with pytest.raises(UsageError, match=rf"has strides \({frame_stride}, 8\).*set --encode.frame-stride"):
        encode(run_copy, wrong, in_process)


@pytest.mark.parametrize(
    ("kind", "bottleneck", "frame_stride"), [("causal3d", "vq", 4), ("spatial", "kl", 1)], ids=["spacetime", "spatial"]
)
def test_compressor_trained_on_the_runs_own_clips_goes_through_the_chain(
    run_copy, small_recipe, in_process, kind, bottleneck, frame_stride
):
    settings = CompressorSettings(
        kind=kind, bottleneck=bottleneck, latent_channels=8, width=8, vq_groups=2, vq_codes=32, batch_size=2
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
