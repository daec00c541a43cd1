"""Temporal layers in the decoder of an image autoencoder: the image decoder at first, its encoder for ever."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from recaption.errors import CheckpointMismatchError, UsageError
from recaption.weights import weights_hash
from train.checkpoint.step_folder import find
from train.compressors.autoencoder import Autoencoder
from train.compressors.loss import CompressorLossSettings
from train.compressors.pretrained import PretrainedCompressor
from train.compressors.registry import load
from train.compressors.settings import CompressorSettings
from train.compressors.task import CompressorTask
from train.compressors.temporal_decoder import TemporalDecoder
from train.engine.settings import TrainerSettings
from train.engine.trainer import train

SMALL = {
    "width": 8, "latent_channels": 8, "blocks": (1, 0), "decoder_blocks": (1, 1), "batch_size": 2, "num_frames": 5,
    "height_px": 32, "width_px": 32, "num_scenes": 6, "num_validation_scenes": 2,
}  # fmt: skip
TRAINER = {"lr": 1e-2, "warmup_steps": 1, "ema_decay": 0.9, "device": "cpu", "schedule": "constant"}


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """With nothing left at zero."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.2)
    return module


def spatial() -> Autoencoder:
    torch.manual_seed(0)
    return filled(Autoencoder("spatial", width=8, latent_channels=8, decoder_blocks=(1, 1))).eval()


def kl() -> PretrainedCompressor:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {"block_out_channels": (4, 8), "norm_num_groups": 2, "latent_channels": 4}
    types = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return PretrainedCompressor(diffusers.AutoencoderKL(**sizes, **types).eval(), source="tiny")


BASES = {"spatial": spatial, "AutoencoderKL": kl}


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_new_layers_decode_as_the_image_decoder_to_the_bit(make):
    base, reference = make(), make().requires_grad_(False)  # as they are loaded: gradients choose other kernels
    decoder = TemporalDecoder(base)
    pixels = torch.rand(2, 3, 5, 16, 24) * 2 - 1
    latents = reference.encode(pixels)
    assert torch.equal(decoder.encode(pixels), latents)
    assert (decoder.name, decoder.config) == (reference.name, reference.config), "latents on disk stay valid"
    expected = reference.decode(latents)
    assert torch.equal(decoder.decode(latents), expected)
    assert len(decoder.temporal) > 1
    filled(decoder.temporal)
    assert (decoder.decode(latents) - expected).abs().max() > 1e-3
    image = latents[:, :, :1]
    assert torch.equal(decoder.decode(image), reference.decode(image)), "an image goes the way of the image decoder"
    for mix in decoder.temporal:
        nn.init.constant_(mix.mix_factor, math.inf)
    assert torch.equal(decoder.decode(latents), expected), "alpha = 1 removes the layers"


def test_windows_decode_as_the_whole_clip():
    decoder = TemporalDecoder(spatial())
    filled(decoder.temporal)
    latents = torch.randn(1, 8, 21, 2, 3)
    whole = decoder.decode(latents, window_frames=21)
    torch.testing.assert_close(decoder.decode(latents, window_frames=4), whole, rtol=1e-5, atol=1e-5)


def test_video_models_are_refused():
    with pytest.raises(UsageError, match=r"decoder of an image autoencoder .* not to causal3d"):
        TemporalDecoder(Autoencoder("causal3d", width=8, latent_channels=8))
    with pytest.raises(UsageError, match="--temporal and --init-from go together"):
        CompressorSettings(temporal=True).check()


def temporal_task(base: str) -> CompressorTask:
    loss = CompressorLossSettings(
        perceptual_weight=0.1, discriminator_weight=0.5, discriminator_start=1, discriminator_width=4
    )
    return CompressorTask(CompressorSettings(**SMALL, init_from=base, temporal=True, loss=loss))


def test_layers_are_trained_with_a_video_discriminator_and_the_encoder_stays(tmp_path):
    base = str(tmp_path / "base")
    image_task = CompressorTask(CompressorSettings(**SMALL, kind="spatial"))
    train(image_task, TrainerSettings(num_steps=2, **TRAINER), base, progress=False)
    before = weights_hash(load(base).state_dict())
    folder = str(tmp_path / "temporal")
    first = train(temporal_task(base), TrainerSettings(num_steps=2, **TRAINER), folder, progress=False)
    assert first.resumed_from is None
    result = train(temporal_task(base), TrainerSettings(num_steps=4, **TRAINER), folder, progress=False)
    assert result.resumed_from == 2
    straight = train(
        temporal_task(base), TrainerSettings(num_steps=4, **TRAINER), str(tmp_path / "straight"), progress=False
    )
    saved = find(result.checkpoint).weights(ema=True)
    expected = find(straight.checkpoint).weights(ema=True)
    assert all(torch.equal(saved[name], expected[name]) for name in expected), "a resume is exact"
    trained = {name for name in saved if not name.startswith("base.")}
    assert {name.split(".")[0] for name in trained} == {"temporal", "discriminator"}
    decoder, image = load(folder), load(base)
    assert isinstance(decoder, TemporalDecoder)
    assert weights_hash(decoder.base.state_dict()) == before
    assert all(mix.conv2.weight.any() and mix.mix_factor.any() for mix in decoder.temporal)
    pixels = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    latents = decoder.encode(pixels)
    assert torch.equal(latents, image.encode(pixels))
    assert not torch.equal(decoder.decode(latents), image.decode(latents))

    train(image_task, TrainerSettings(num_steps=3, **TRAINER), base, progress=False)
    load(folder)  # the step it was trained over is there still
    train(image_task, TrainerSettings(num_steps=5, checkpoint_every=1, **TRAINER), base, progress=False)
    with pytest.raises((UsageError, CheckpointMismatchError)):
        load(folder)


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [("AutoencoderKL", 34_163_592, 49_490_179), ("AutoencoderKLTemporalDecoder", 34_163_592, 63_579_183)],
)
def test_published_sizes(name, encoder, decoder):
    """Of Stable Diffusion's autoencoder, and of the temporal decoder of Stable Video Diffusion."""
    diffusers = pytest.importorskip("diffusers")
    sizes = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    types = {"down_block_types": ("DownEncoderBlock2D",) * 4}
    if name == "AutoencoderKL":
        types["up_block_types"] = ("UpDecoderBlock2D",) * 4
    with torch.device("meta"):
        model = getattr(diffusers, name)(**sizes, **types)
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in (model.encoder, model.decoder)]
    assert counts == [encoder, decoder]
    if name == "AutoencoderKL":
        assert len(TemporalDecoder(PretrainedCompressor(model, source="sd")).temporal) == 14
