"""The sampler: sizes, seeds, guidance; contact sheet and mp4 files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from packing.buckets import Bucket
from packing.grid import Grid
from recaption.errors import CheckpointMismatchError, UsageError
from train.backbones.registry import build
from train.checkpoint import step_folder
from train.diffusion.process import DiffusionSettings
from train.sampling.contact_sheet import contact_sheet_png, write
from train.sampling.sampler import Sampler, sample
from train.sampling.sizes import nearest_size
from train.text.encoder import TextEncoder

BUCKETS = (Bucket(5, 16, 24, 8), Bucket(1, 16, 16, 8))


class HashTower:
    """Two tokens per text, numbers from its letters."""

    width, pooled_width = 6, 4

    def encode(self, texts):
        seeds = [sum(map(ord, text)) for text in texts]
        tokens = torch.cat([torch.randn(2, 6, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return tokens, torch.tensor([2] * len(texts)), torch.tensor([[float(seed % 7)] * 4 for seed in seeds])


class BlockMeans:
    """A compressor of block means: (B, 3, T, H, W) to (B, 3, t, H/8, W/8) and back by repetition."""

    name, num_channels, frame_stride, spatial_stride = "block-means", 3, 4, 8
    config = {"kind": "block-means"}  # noqa: RUF012

    def to(self, device):
        return self

    def encode(self, pixels_BCTHW):
        padded = torch.cat([pixels_BCTHW[:, :, :1].repeat(1, 1, 3, 1, 1), pixels_BCTHW], dim=2)
        return nn.functional.avg_pool3d(padded, (4, 8, 8))

    def decode(self, latents_BCTHW):
        pixels = latents_BCTHW.repeat_interleave(4, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
        return pixels[:, :, 3:]


@pytest.fixture
def sampler():
    torch.manual_seed(0)
    model = build("dit", token_width=3, text_width=6, pooled_width=4, width=24, depth=1, num_heads=2)
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.2)
    encoder = TextEncoder(HashTower(), spec="hash", weights_hash="0")
    diffusion = DiffusionSettings(shift_tokens=4)
    return Sampler(
        model, encoder=encoder, compressor=BlockMeans(), patch=(1, 1, 1), diffusion=diffusion, buckets=BUCKETS
    )


def sample_videos(sampler, prompts, **settings):
    size = sampler.size(None, None, None)
    return sampler.sample(prompts, size=size, **({"num_steps": 3, "guidance": 2.0} | settings))


def test_a_prompt_gives_the_same_video_alone_and_among_others(sampler):
    together = sample_videos(sampler, ["red", "blue", "green"])
    assert [v.shape for v in together] == [(5, 16, 24, 3)] * 3
    assert all(v.dtype == np.uint8 for v in together)
    for prompt, video in zip(("red", "blue", "green"), together):
        alone = sample_videos(sampler, [prompt])[0].astype(int)
        assert np.abs(alone - video.astype(int)).max() <= 1  # one rounding step
    assert not np.array_equal(together[0], together[1])


def test_the_limit_of_tokens_does_not_change_the_videos(sampler, monkeypatch):
    prompts = ["red", "blue", "green"]
    at_once = sample_videos(sampler, prompts)
    monkeypatch.setattr("train.sampling.solver_settings.MAX_PACK_TOKENS", 12 * 2)
    for one, other in zip(at_once, sample_videos(sampler, prompts)):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


def test_seeds_are_repeatable_and_a_repeated_prompt_gives_another_video(sampler):
    first = sample_videos(sampler, ["red", "red"], seed=3)
    assert np.array_equal(first[0], sample_videos(sampler, ["red"], seed=3)[0])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], sample_videos(sampler, ["red"], seed=4)[0])


def test_guidance_1_calls_the_model_once_without_the_null_caption(sampler):
    lengths = []
    hook = sampler.model.register_forward_pre_hook(lambda m, args: lengths.append(len(args[0].tokens_LD)))
    sample_videos(sampler, ["red"], guidance=1.0)
    sample_videos(sampler, ["red"], guidance=3.0, solver="heun")
    hook.remove()
    assert lengths == [12] * 3 + [24] * 6
    with torch.no_grad():
        before = sample_videos(sampler, ["red"], guidance=1.0)
        sampler.model.text_embedder.null_pooled_embedding_C += 5
        assert np.array_equal(before[0], sample_videos(sampler, ["red"], guidance=1.0)[0])
        sampler.model.text_embedder.null_pooled_embedding_C -= 5


def test_sizes_off_the_grid_are_refused_with_the_nearest_one(sampler):
    assert sampler.size(None, None, None) == BUCKETS[0]
    assert sampler.size(9, 32, None) == Bucket(9, 32, 24, 8)
    with pytest.raises(UsageError, match=r"16 frames of 30x24 px.*nearest is 17 frames of 32x24"):
        sampler.size(16, 30, None)
    with pytest.raises(UsageError, match="no prompt"):
        sample_videos(sampler, [])


def test_nearest_size_counts_patches_too():
    grid = Grid(frame_stride=4, spatial_stride=8, patch=(2, 2, 1))
    assert nearest_size(Bucket(9, 100, 100, 8), grid) == Bucket(13, 96, 104, 8)
    assert nearest_size(Bucket(13, 96, 104, 8), grid) == Bucket(13, 96, 104, 8)
    assert nearest_size(Bucket(1, 1, 1, 8), grid) == Bucket(5, 16, 8, 8)


def test_contact_sheet_has_a_row_per_prompt_and_frames_left_to_right():
    red = np.full((5, 16, 24, 3), (255, 0, 0), np.uint8)
    dark_to_light = np.arange(0, 250, 50, dtype=np.uint8)[:, None, None, None] + np.zeros((5, 16, 24, 3), np.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet_png([red, dark_to_light], ["red", "light " * 100]))))
    assert sheet.shape == (2 * (128 + 26 + 4) + 4, 5 * 192 + 4 * 4 + 2 * 4, 3)
    assert sheet[4 + 26 + 64, 50].tolist() == [255, 0, 0]
    second_row = sheet[4 + 158 + 26 + 64]
    assert [int(second_row[4 + 196 * i + 90, 0]) for i in range(5)] == [0, 50, 100, 150, 200]
    assert (sheet[4 : 4 + 26] < 128).any(), "the prompt is written above its row"


def test_write_puts_numbered_mp4s_and_the_sheet(tmp_path):
    video_io = pytest.importorskip("recaption.video_io.reader")
    videos = [np.full((5, 16, 32, 3), level, np.uint8) for level in (60, 200)]
    files = write(videos, str(tmp_path / "samples"), ["dark", "bright"], fps=8)
    assert [path.rsplit("/", 1)[1] for path in files.videos] == ["sample-0000.mp4", "sample-0001.mp4"]
    assert Image.open(files.contact_sheet).size[1] > 256
    for path, level in zip(files.videos, (60, 200)):
        pixels = video_io.read_frames(path, None).pixels_THWC
        assert pixels.shape == (5, 16, 32, 3)
        assert abs(float(pixels.mean()) - level) < 6


def test_a_folder_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no checkpoint"):
        sample(str(tmp_path), ["red"])


@pytest.mark.parametrize(
    "change",
    [{"backbone": []}, {"backbone": {"name": "dit", "width": 10**10}}, {"patch": 7}, {"buckets": ["x"]},
     {"diffusion": {"a": 1}}, {"text_encoder": None}],
)  # fmt: skip
def test_a_checkpoint_whose_config_lies_is_one_sentence(tmp_path, sampler, change):
    config = {
        "task": "dit", "backbone": {"name": "dit", **sampler.model.config}, "patch": [1, 1, 1], "diffusion": {},
        "text_encoder": {"spec": "captioner:tiny", "weights_hash": "0"}, "buckets": ["5f-16x24-8fps"], "conditions": [],
        "compressor": {"spec": "patch", "config": {}},
    }  # fmt: skip
    step_folder.write(
        str(tmp_path), step=1, config=config | change, state={}, keep_last=1,
        tensors=step_folder.with_file_prefix(step_folder.MODEL_FILE, sampler.model.state_dict()),
    )  # fmt: skip
    with pytest.raises(CheckpointMismatchError) as refused:
        Sampler.from_checkpoint(str(tmp_path / "step-000001"))
    assert "\n" not in str(refused.value)
