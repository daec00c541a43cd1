from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.shards.samples import latent_shard_name
from recaption import hub
from recaption.errors import CheckpointMismatchError, RecaptionError, UsageError, WeightsUnreachableError
from recaption.scenes.renderer import render
from train.checkpoint import step_folder
from train.checkpoint.step_folder import EMA_FILE, MODEL_FILE
from train.compressors.autoencoder import Autoencoder
from train.compressors.bottleneck import VqBottleneck
from train.compressors.patch_transform import PatchTransform
from train.compressors.picture_quality import psnr_db
from train.compressors.pixels import to_pixels
from train.compressors.pretrained import folder_name
from train.compressors.registry import load

MAX_PATCH_CHANNELS = 193


def scene_BCTHW(seed: int, *, num_frames: int = 9, height_px: int = 96, width_px: int = 96) -> torch.Tensor:
    frames = render(seed, num_frames=num_frames, height_px=height_px, width_px=width_px, fps=8).frames_THWC
    return to_pixels(torch.from_numpy(frames))[None]


def noise_BCTHW(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def small_autoencoder(kind: str = "causal3d", bottleneck: str = "kl") -> Autoencoder:
    """With random residual weights, so that it differs from the fixed transform."""
    torch.manual_seed(0)
    model = Autoencoder(
        kind,
        width=8,
        latent_channels=4,
        blocks=(1, 1),
        decoder_blocks=(1, 1),
        bottleneck=bottleneck,
        codebook_size=16,
        num_codebooks=2,
    )
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


MAKERS = {
    "patch": PatchTransform,
    "patch-spatial": lambda: PatchTransform(frame_stride=1),
    "causal3d-kl": small_autoencoder,
    "causal3d-vq": lambda: small_autoencoder(bottleneck="vq"),
    "spatial-kl": lambda: small_autoencoder("spatial"),
    "spatial-vq": lambda: small_autoencoder("spatial", "vq"),
}


@pytest.fixture(params=MAKERS)
def compressor(request):
    return MAKERS[request.param]()


@pytest.fixture(params=[name for name in MAKERS if "spatial" not in name])
def temporal_compressor(request):
    """The compressors with several frames per latent frame."""
    return MAKERS[request.param]()


# --- every compressor -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 8, 8), (1, 40, 16), (5, 16, 24), (9, 24, 8)])
def test_latents_have_the_documented_shape_and_decode_to_the_input_shape(compressor, size):
    num_frames, height_px, width_px = size
    pixels = noise_BCTHW(2, 3, *size)
    latents = compressor.encode(pixels)
    latent_frames = 1 + (num_frames - 1) // compressor.frame_stride
    expected = (2, compressor.num_channels, latent_frames, height_px // 8, width_px // 8)
    assert tuple(latents.shape) == expected
    recon_BCTHW = compressor.decode(latents)
    assert recon_BCTHW.shape == pixels.shape
    assert recon_BCTHW.abs().max() <= 1


def test_later_frames_do_not_change_earlier_latents(compressor):
    pixels = noise_BCTHW(1, 3, 13, 16, 16)
    changed = pixels.clone()
    changed[:, :, 5:] = noise_BCTHW(1, 3, 8, 16, 16, seed=1)
    num_unchanged = 1 + 4 // compressor.frame_stride
    one, other = compressor.encode(pixels), compressor.encode(changed)
    torch.testing.assert_close(one[:, :, :num_unchanged], other[:, :, :num_unchanged], rtol=0, atol=1e-5)
    assert (one[:, :, num_unchanged] - other[:, :, num_unchanged]).abs().max() > 0.1
    # ... nor do later latents change earlier frames.
    torch.testing.assert_close(
        compressor.decode(one)[:, :, :5], compressor.decode(one[:, :, :num_unchanged]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", [name for name in MAKERS if not name.startswith("patch")])
def test_a_clip_in_chunks_equals_the_whole_clip(name):
    """Chunking is exact: each block caches the last frame of the previous chunk."""
    autoencoder = MAKERS[name]()
    pixels = noise_BCTHW(1, 3, 21, 16, 24)
    whole = autoencoder.encode(pixels, chunk_latent_frames=1000)
    for chunk in (1, 2, 4):
        torch.testing.assert_close(autoencoder.encode(pixels, chunk_latent_frames=chunk), whole, rtol=1e-5, atol=1e-5)
    at_once = autoencoder.decode(whole, chunk_latent_frames=1000)
    for chunk in (1, 2, 4):
        torch.testing.assert_close(autoencoder.decode(whole, chunk_latent_frames=chunk), at_once, rtol=1e-5, atol=1e-5)


def test_causal3d_uses_the_previous_frames():
    """Otherwise chunks would be equal trivially."""
    autoencoder = small_autoencoder()
    pixels = noise_BCTHW(1, 3, 9, 16, 16)
    other = torch.cat([noise_BCTHW(1, 3, 5, 16, 16, seed=1), pixels[:, :, 5:]], dim=2)
    assert (autoencoder.encode(pixels) - autoencoder.encode(other))[:, :, 2].abs().max() > 1e-3


def test_latents_do_not_depend_on_the_size_of_the_frame():
    """No statistics over the frame: away from the border, a crop has the latents of the whole."""
    autoencoder = small_autoencoder("spatial")
    pixels = noise_BCTHW(1, 3, 1, 128, 128)
    inside = autoencoder.encode(pixels)[..., 7:9, 7:9]
    crop = autoencoder.encode(pixels[..., 8:120, 8:120])[..., 6:8, 6:8]
    torch.testing.assert_close(inside, crop, rtol=1e-4, atol=1e-4)


def test_an_image_is_the_first_frame_of_a_video(compressor):
    pixels = noise_BCTHW(1, 3, 5, 16, 24)
    torch.testing.assert_close(
        compressor.encode(pixels[:, :, :1]), compressor.encode(pixels)[:, :, :1], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 10, 16, 16), r"takes 4k\+1 frames .* not 10; trim the clip to 9"),
        ((1, 3, 3, 16, 16), r"trim the clip to 1"),
        ((1, 3, 5, 20, 16), r"multiples of 8 px, not 16x20; the nearest are 16x16 and 16x24"),
        ((1, 3, 5, 33, 45), r"not 45x33; the nearest are 40x32 and 48x40"),
        ((1, 3, 5, 0, 16), r"multiples of 8 px, not 16x0; the nearest is 16x8"),
        ((1, 4, 5, 16, 16), r"takes float RGB clips"),
        ((3, 5, 16, 16), r"takes float RGB clips"),
    ],
)
def test_invalid_sizes_are_refused_with_the_nearest_valid_ones(temporal_compressor, shape, message):
    with pytest.raises(UsageError, match=message):
        temporal_compressor.encode(torch.zeros(shape))


def test_wrong_kinds_of_tensors_are_refused(compressor):
    with pytest.raises(UsageError, match="takes float RGB clips"):
        compressor.encode(torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8))
    with pytest.raises(UsageError, match="decodes latents"):
        compressor.decode(torch.zeros(1, 3, 2, 2, 2))


# --- patch ------------------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), latent_frames=st.integers(1, 3), seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_patch_transform_is_orthonormal_at_any_size(rows, columns, latent_frames, seed):
    """Without clamping, decoding and encoding again is exact."""
    compressor = PatchTransform(MAX_PATCH_CHANNELS, whitening=0.0)
    shape = (1, MAX_PATCH_CHANNELS, latent_frames, rows, columns)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    temporal = (compressor.channel_index // 64) % 4
    latents[:, temporal > 0, 0] = 0  # the first frame is repeated
    pixels = compressor.synthesise(latents)
    torch.testing.assert_close(compressor.analyse(pixels), latents, rtol=1e-4, atol=1e-4)
    # Energy is preserved: whitening 0 scales all channels alike, and the first frame counts four times.
    energy = pixels.square().sum() + 3 * pixels[:, :, 0].square().sum()
    assert float(energy * compressor.scale[0] ** 2) == pytest.approx(float(latents.square().sum()), rel=1e-3)


def test_patch_keeps_rendered_scenes_recognisable():
    scenes = [scene_BCTHW(seed) for seed in range(6)]
    means = []
    for spec in ("patch:24", "patch", "patch:96", "patch:193"):
        compressor = load(spec)
        means.append(np.mean([psnr_db(compressor.decode(compressor.encode(x)), x) for x in scenes]))
    assert means[1] > 23.5
    assert means[3] > 30
    assert means == sorted(means)


def test_patch_latents_have_about_unit_variance():
    scenes = [scene_BCTHW(seed) for seed in range(8)]
    for spec in ("patch", "patch:96", "patch:48,whitening=1.0"):
        compressor = load(spec)
        latents = torch.cat([compressor.encode(scene)[:, :, 1:] for scene in scenes])
        assert 0.7 < float(latents.square().mean().sqrt()) < 1.5
        per_channel = latents.square().mean((0, 2, 3, 4)).sqrt()
        assert float(per_channel.min()) > 0.3
        assert float(per_channel.max()) < 3


def test_whitening_moves_weight_between_colour_and_detail():
    scene = scene_BCTHW(3)
    white, plain = (load(f"patch:48,whitening={w}") for w in (1.0, 0.5))
    ratio = [float(c.scale[0] / c.scale[-1]) for c in (white, plain)]
    assert ratio[0] < ratio[1]
    torch.testing.assert_close(white.decode(white.encode(scene)), plain.decode(plain.encode(scene)), rtol=0, atol=1e-4)


def test_a_uniform_colour_uses_one_coefficient_per_colour_axis():
    compressor = PatchTransform()
    pixels = torch.tensor([0.3, -0.2, 0.9]).view(1, 3, 1, 1, 1).expand(1, 3, 5, 32, 24)
    latents = compressor.encode(pixels)
    used = (latents.abs() > 1e-4).flatten(2).any(2)[0]
    assert compressor.channel_index[used].tolist() == [0, 256, 512]
    torch.testing.assert_close(compressor.decode(latents), pixels, rtol=0, atol=1e-5)


def test_blocks_overlap_so_that_errors_show_no_borders():
    """An error in one block fades out over its neighbours instead of ending at the border."""
    compressor = PatchTransform()
    latents = torch.zeros(1, 48, 1, 5, 5)
    latents[0, 0, 0, 2, 2] = 1.0
    row = compressor.decode(latents)[0, 0, 0, 20]
    steps = row.diff().abs()
    assert steps[15] < 0.5 * row.abs().max()
    assert row[13].abs() > 0.05 * row.abs().max()


def test_names_and_configs_distinguish_settings():
    specs = ("patch", "patch:64", "patch:64,whitening=1.0", "patch:48")
    names = [load(spec).name for spec in specs]
    assert names == ["patch", "patch-64", "patch-64-w1", "patch"]
    configs = [load(spec).config for spec in specs]
    assert configs[0] == configs[3]
    assert configs[1] != configs[2]


# --- trained here -----------------------------------------------------------------------------------------------------


def save_vae(folder, model, **config) -> str:
    state = model.state_dict()
    return step_folder.write(
        str(folder / "checkpoints"), step=7, config={"task": "compressor", "model": model.config, **config}, state={},
        tensors={f"{file}/{name}": state[name] for file in (MODEL_FILE, EMA_FILE) for name in state}, keep_last=1,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["causal3d", "spatial"])
@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_a_trained_compressor_loads_with_its_latent_statistics(tmp_path, kind, bottleneck):
    model = small_autoencoder(kind, bottleneck)
    model.train()
    for seed in range(3):
        model(noise_BCTHW(1, 3, 5, 16, 16, seed=seed))
    model.eval()
    model.discriminator = torch.nn.Linear(2, 2)  # trained along with it, not loaded
    save_vae(tmp_path, model)
    loaded = load(str(tmp_path))
    pixels = noise_BCTHW(1, 3, 5, 16, 16, seed=1)
    assert torch.equal(loaded.encode(pixels), model.encode(pixels))
    assert 0.5 < float(loaded.encode(pixels).std()) < 2
    assert loaded.name.startswith(f"{kind}-")
    assert loaded.frame_stride == {"causal3d": 4, "spatial": 1}[kind]
    assert loaded.config["weights_sha256"][:8] == loaded.name[-8:]
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize(("kind", "frame_stride"), [("causal3d", 4), ("spatial", 1)])
def test_an_untrained_autoencoder_equals_the_fixed_transform(kind, frame_stride):
    scene = scene_BCTHW(5, num_frames=5, height_px=32, width_px=32)
    vae, patch = Autoencoder(kind, width=8, latent_channels=8).eval(), PatchTransform(8, frame_stride=frame_stride)
    torch.testing.assert_close(vae.decode(vae.encode(scene)), patch.decode(patch.encode(scene)), rtol=0, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):  # the transform stays exact
        torch.testing.assert_close(vae.decode(vae.encode(scene)), patch.decode(patch.encode(scene)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["causal3d", "spatial"])
@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_gradients_reach_every_weight(kind, bottleneck):
    model = small_autoencoder(kind, bottleneck).train()
    output = model(noise_BCTHW(1, 3, 5, 16, 16))
    (output.pixels_BCTHW.abs().mean() + output.bottleneck_output.loss_B.mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


# --- VQ ---------------------------------------------------------------------------------------------------------------


def test_vq_latents_are_codes_and_decoding_quantizes_to_them():
    model = small_autoencoder(bottleneck="vq").train()
    for seed in range(4):
        model(noise_BCTHW(2, 3, 5, 16, 16, seed=seed))
    model.eval()
    latents = model.encode(noise_BCTHW(1, 3, 5, 16, 16))
    mean, std = model._statistics()
    vectors_GND = model.bottleneck._vectors(latents * std + mean)
    distances = torch.cdist(vectors_GND, model.bottleneck.codebook_GKD).amin(-1)
    assert distances.max() < 1e-5
    # A generated latent close to a code is decoded as that code.
    torch.testing.assert_close(model.decode(latents + 1e-4), model.decode(latents), rtol=0, atol=1e-5)


def test_codes_find_the_clusters_and_dead_codes_are_reset_to_them():
    """Eight distant clusters; 32 codes that all start at one point between them."""
    bottleneck = VqBottleneck(2, codebook_size=32)
    bottleneck.num_updates += 1  # no initialisation from data: all codes are far from most vectors
    bottleneck.codebook_GKD.normal_(std=0.01, generator=torch.Generator().manual_seed(0))
    angles = torch.arange(8) * (2 * torch.pi / 8)
    centres = 10 * torch.stack([angles.cos(), angles.sin()], dim=1)
    torch.manual_seed(0)
    for _ in range(100):
        vectors = centres[torch.randint(8, (64,))] + 0.1 * torch.randn(64, 2)
        output = bottleneck(vectors.T.reshape(1, 2, 1, 8, 8))
    assert torch.cdist(centres, bottleneck.codebook_GKD[0]).amin(1).max() < 1
    assert float(output.logs["codes_used_share"]) > 0.6
    assert 8 < float(output.logs["code_perplexity"]) <= 32
    assert float(output.loss_B.mean()) < 0.25 * 0.02


def test_straight_through_gradient_is_that_of_the_code():
    bottleneck = VqBottleneck(2, codebook_size=4).train()
    encoded = torch.randn(1, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(1, 2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    (bottleneck(encoded).latents_BCthw * weight).sum().backward()
    torch.testing.assert_close(encoded.grad, weight)


def test_a_batch_with_nan_does_not_change_the_codes():
    bottleneck = VqBottleneck(2, codebook_size=4).train()
    bottleneck(torch.randn(1, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    before = {name: value.clone() for name, value in bottleneck.state_dict().items()}
    bottleneck(torch.full((1, 2, 1, 4, 4), torch.nan))
    assert all(torch.equal(before[name], value) for name, value in bottleneck.state_dict().items())


def test_invalid_codebooks_are_refused():
    with pytest.raises(UsageError, match="4 channels cannot have codebook_size = 16, num_codebooks = 3"):
        Autoencoder("spatial", width=8, latent_channels=4, bottleneck="vq", codebook_size=16, num_codebooks=3)
    with pytest.raises(UsageError, match="unknown bottleneck 'lfq'; choose from: kl, vq"):
        Autoencoder("spatial", width=8, latent_channels=4, bottleneck="lfq")


def test_single_frames_keep_more_detail_than_groups():
    """The per-frame transform keeps more of a frame with fewer numbers than half of the grouped one's."""
    scene = scene_BCTHW(3)
    compressor = load("patch:48,frame-stride=1")
    assert compressor.name == "patch-f1"
    assert compressor.encode(scene).shape[2] == 9
    grouped = load("patch")
    assert psnr_db(compressor.decode(compressor.encode(scene)), scene) > 2 + psnr_db(
        grouped.decode(grouped.encode(scene)), scene
    )


def test_checkpoints_of_other_models_are_refused(tmp_path):
    model = small_autoencoder()
    save_vae(tmp_path / "dit", model, task="dit")
    with pytest.raises(CheckpointMismatchError, match="task 'dit', where 'compressor' is needed"):
        load(str(tmp_path / "dit"))
    model.config = {**model.config, "kind": "vq"}
    save_vae(tmp_path / "other", model)
    with pytest.raises(CheckpointMismatchError, match="is not a compressor that this version can build"):
        load(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vqgan", "neither a folder with a checkpoint nor one of: patch"),
        ("/nowhere/at/all", "neither a folder with a checkpoint"),
        ("patch:2", "choose 4 to 193 channels"),
        ("patch:many", "write patch, patch:64 or"),
        ("patch:48,sharpness=3", "write patch, patch:64 or"),
        ("patch:48,whitening=2", "whitening of 0 to 1"),
        ("patch:48,frame-stride=2", "frame-stride of 1 or 4"),
        ("patch:190,frame-stride=1", "frame stride of 1; choose 4 to 95 channels"),
    ],
)
def test_invalid_specs_are_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        load(spec)


def test_missing_diffusers_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"pip install 'recaption\[vae\]'"):
        load("diffusers:Wan-AI/Wan2.1-T2V-1.3B-Diffusers#vae")


# --- diffusers --------------------------------------------------------------------------------------------------------


def tiny_autoencoder(diffusers, kind: str):
    torch.manual_seed(0)
    if kind == "AutoencoderKLWan":
        return diffusers.AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
            latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0],
        )  # fmt: skip
    if kind == "AutoencoderKLCogVideoX":
        return diffusers.AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
            scaling_factor=1.5,
        )  # fmt: skip
    if kind == "AutoencoderKLMochi":  # its group norms have 32 groups, its statistics 12 channels
        return diffusers.AutoencoderKLMochi(
            encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1), act_fn="silu",
        )  # fmt: skip
    if kind == "AutoencoderKL":
        return diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=2,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, scaling_factor=0.5, shift_factor=0.25,
        )  # fmt: skip
    if kind == "AutoencoderDC":
        return diffusers.AutoencoderDC(
            latent_channels=4, attention_head_dim=4, scaling_factor=0.5,
            encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
            encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
            encoder_block_types="ResBlock", decoder_block_types="ResBlock",
            encoder_qkv_multiscales=((), (), ()), decoder_qkv_multiscales=((), (), ()),
        )  # fmt: skip
    if kind == "AutoencoderKLHunyuanVideo":
        return diffusers.AutoencoderKLHunyuanVideo(
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
        )
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "strides"),
    [
        ("AutoencoderKLWan", (4, 8)),
        ("AutoencoderKLCogVideoX", (4, 8)),
        ("AutoencoderKLHunyuanVideo", (4, 8)),
        ("AutoencoderKLLTXVideo", (8, 32)),
        ("AutoencoderKLMochi", (6, 8)),
        ("AutoencoderKL", (1, 8)),
        ("AutoencoderDC", (1, 4)),
    ],
)
def test_pretrained_autoencoders_open_from_a_folder(kind, strides, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    autoencoder = tiny_autoencoder(diffusers, kind)
    autoencoder.save_pretrained(tmp_path / "vae")
    compressor = load(f"diffusers:{tmp_path}#vae")
    assert (compressor.frame_stride, compressor.spatial_stride) == strides
    frame_stride, spatial_stride = strides
    pixels = noise_BCTHW(1, 3, 1 + 2 * frame_stride, 2 * spatial_stride, spatial_stride)
    latents = compressor.encode(pixels)
    assert tuple(latents.shape) == (1, compressor.num_channels, 3, 2, 1)
    assert compressor.decode(latents).shape == pixels.shape
    assert compressor.encode(pixels[:, :, :1]).shape[2] == 1
    if kind == "AutoencoderKLWan":
        raw = autoencoder.encode(pixels).latent_dist.mode()[:, 3]
        torch.testing.assert_close(latents[:, 3], (raw - 0.4) / 4.0, rtol=1e-4, atol=1e-5)
    if kind == "AutoencoderKLCogVideoX":
        raw = autoencoder.eval().encode(pixels).latent_dist.mode()
        torch.testing.assert_close(latents, raw * 1.5, rtol=1e-3, atol=1e-4)
    if kind == "AutoencoderKL":
        raw = autoencoder.eval().encode(pixels[0].transpose(0, 1)).latent_dist.mode().transpose(0, 1)[None]
        torch.testing.assert_close(latents, (raw - 0.25) * 0.5, rtol=1e-4, atol=1e-5)
    if kind == "AutoencoderDC":
        raw = autoencoder.eval().encode(pixels[0].transpose(0, 1)).latent.transpose(0, 1)[None]
        torch.testing.assert_close(latents, raw * 0.5, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=rf"multiples of {spatial_stride} px"):
        compressor.encode(pixels[..., :-1])
    if frame_stride > 1:  # diffusers would encode these and silently return fewer frames
        with pytest.raises(UsageError, match=rf"takes {frame_stride}k\+1 frames"):
            compressor.encode(pixels[:, :, :-1])


@pytest.mark.parametrize("shift", range(5))
def test_latents_of_a_long_path_get_a_valid_folder_name(shift):
    source = "/deep" * 16 + "/vae" + "x" * shift  # truncated at every position of "/deep"
    assert latent_shard_name(folder_name(source), "shards/17f-64x64-8fps/000000.tar").startswith("latents/")


def test_unreachable_pretrained_weights_are_refused_with_a_remedy(tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setattr(hub, "unavailable_reason", lambda repository, file: "no route to host")
    with pytest.raises(WeightsUnreachableError, match=r"no route to host.*pass diffusers:/path/of/that/folder"):
        load("diffusers:nobody/nothing#vae")
    tiny_autoencoder(diffusers, "AutoencoderKLWan").save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsUnreachableError, match=r"download the folder with config\.json"):
        load(f"diffusers:{tmp_path}")
    with pytest.raises(UsageError, match="has no config of a model"):
        load(f"diffusers:{tmp_path}#vae")


CONFIGS = {
    "list": [],
    "unknown name": {"colour": 1},
    "wrong type": {"width": "wide"},
    "width of 10^10": {"width": 10**10},
    "width of twice the size": {"width": 32},
    "text for a number of channels": {"latent_channels": "16"},
    "negative": {"blocks": -1},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_trained_compressor_with_a_config_that_lies_is_one_sentence(tmp_path, name):
    model = Autoencoder("causal3d", width=16, latent_channels=16)
    change = CONFIGS[name]
    config = {**model.config, **change} if isinstance(change, dict) else change
    step_folder.write(
        str(tmp_path), step=1, config={"task": "compressor", "model": config}, state={}, keep_last=1,
        tensors=step_folder.with_file_prefix(step_folder.MODEL_FILE, model.state_dict()),
    )  # fmt: skip
    with pytest.raises(CheckpointMismatchError) as refused:
        load(str(tmp_path / "step-000001"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 8, b"\x80\x04K\x01.", None, "config"])
def test_a_damaged_folder_of_diffusers_is_one_sentence(tmp_path, damage):
    diffusers = pytest.importorskip("diffusers")
    diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    if damage == "config":
        (tmp_path / "config.json").write_text("[1, 2]")
    elif damage is None:
        weights.rename(weights.with_suffix(".bin"))
    else:
        weights.write_bytes(damage)
    with pytest.raises(RecaptionError) as refused:
        load(f"diffusers:{tmp_path}")
    assert "\n" not in str(refused.value)
